//! Values that are different in each fork: `{i}` stands for its index.

use std::str::FromStr;

/// The text of a value of type `T`, which was valid with an index in place of each `{i}`.
#[derive(Debug, Clone)]
pub(crate) struct PerFork<T> {
    text: String,
    first: T,
}

impl<T: FromStr + Clone> PerFork<T> {
    /// The mark in whose place each fork has its index.
    pub(crate) const INDEX: &str = "{i}";

    /// Returns the value of the fork with this index; without one, the text stands for itself.
    pub(crate) fn of(&self, index: Option<usize>) -> T {
        let text = match index {
            Some(index) => self.text.replace(Self::INDEX, &index.to_string()),
            None => self.text.clone(),
        };
        // An index is a number in any case, so the text stays valid.
        text.parse().unwrap_or_else(|_| self.first.clone())
    }

    /// Returns whether the forks have different values.
    pub(crate) fn differs(&self) -> bool {
        self.text.contains(Self::INDEX)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl<T: FromStr> FromStr for PerFork<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<PerFork<T>, T::Err> {
        let first = text.replace("{i}", "0").parse()?;
        Ok(PerFork { text: text.to_owned(), first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_takes_the_place_of_its_mark() {
        let value: PerFork<String> = "w{i}-{i}".parse().unwrap();
        assert!(value.differs());
        assert_eq!((value.of(Some(7)), value.of(None)), ("w7-7".to_owned(), "w{i}-{i}".to_owned()));
        assert!("x{i}".parse::<PerFork<u32>>().is_err());
        assert_eq!("1{i}".parse::<PerFork<u32>>().unwrap().of(Some(12)), 112);
        assert!(!"1".parse::<PerFork<u32>>().unwrap().differs());
    }
}

//! The words of an option's value, `PATH,key=value,flag`. Read by the options that are such lists.

/// One word behind the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// As it is written.
    pub text: &'a str,
    /// What is before the first `=`, or all of it.
    pub key: &'a str,
    /// What is behind the first `=`.
    pub value: Option<&'a str>,
}

/// The words of a list. A word whose key was there before is an error: the word.
pub(super) fn words<'a>(
    list: impl Iterator<Item = &'a str>,
) -> impl Iterator<Item = Result<Word<'a>, &'a str>> {
    let mut seen = Vec::new();
    list.map(move |text| {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if seen.contains(&key) {
            return Err(text);
        }
        seen.push(key);
        Ok(Word { text, key, value })
    })
}

/// The path that is the first word, with or without `path=`, and the words behind it; none when it is empty.
pub(super) fn path_and_words(text: &str) -> Option<(&str, impl Iterator<Item = Result<Word<'_>, &str>>)> {
    let mut list = text.split(',');
    let first = list.next()?;
    let path = first.strip_prefix("path=").unwrap_or(first);
    (!path.is_empty()).then(|| (path, words(list)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_comes_once() {
        let word = |text, key, value| Word { text, key, value };
        let list: Vec<_> = words("ro,id=a=b,ro,id=c,".split(',')).collect();
        let expected =
            [Ok(word("ro", "ro", None)), Ok(word("id=a=b", "id", Some("a=b"))), Err("ro"), Err("id=c")];
        assert_eq!(list[..4], expected);
        assert_eq!(list[4], Ok(word("", "", None)));
    }

    #[test]
    fn path_is_the_first_word() {
        for text in ["disk,ro", "path=disk,ro"] {
            let (path, mut words) = path_and_words(text).unwrap();
            assert_eq!((path, words.next().unwrap().unwrap().key), ("disk", "ro"), "{text}");
        }
        assert!(path_and_words("").is_none() && path_and_words("path=,ro").is_none());
    }
}

//! Decoding of lists that may not be longer than a limit.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Decodes a list of at most `MAX` elements, and allocates for no more than it has decoded.
///
/// # Errors
/// The list is longer, or an element cannot be decoded.
pub(super) fn list<'de, T, D, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(Limited::<T, MAX>(PhantomData))
}

struct Limited<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Limited<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let announced = elements.size_hint();
        if announced.is_some_and(|length| length > MAX) {
            return Err(A::Error::invalid_length(announced.unwrap_or(MAX), &self));
        }
        // The announced length is untrusted even below the limit: grow with the elements.
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() >= MAX {
                return Err(A::Error::invalid_length(list.len().saturating_add(1), &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

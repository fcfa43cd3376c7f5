//! The variables of a command in a guest, as the user writes them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Checks that a variable, `NAME=VALUE` or `NAME`, has a name.
///
/// # Errors
/// The name is empty.
pub(crate) fn named(text: OsString) -> Result<OsString, &'static str> {
    match text.as_bytes() {
        [] | [b'=', ..] => Err("it has no name: write NAME=VALUE, or NAME for its value here"),
        _ => Ok(text),
    }
}

/// Splits `NAME=VALUE`, or looks up the value of `NAME` here; `None` if it is not set.
pub(crate) fn name_and_value(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(place) => {
            let (name, value) = bytes.split_at(place);
            let value = value.get(1..).unwrap_or_default();
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        }
        None => env::var_os(text).map(|value| (text.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_given_or_taken_from_here() {
        let of = |text: &str| name_and_value(OsStr::new(text));
        assert_eq!(of("A=b=c"), Some(("A".into(), "b=c".into())));
        assert_eq!(of("A="), Some(("A".into(), "".into())));
        assert_eq!(of("PATH").map(|(name, _)| name), Some("PATH".into()));
        assert_eq!(of("NO_SUCH_VARIABLE_HERE"), None);
    }

    #[test]
    fn variable_has_a_name() {
        assert!(named("A".into()).is_ok() && named("A=".into()).is_ok());
        assert!(named("".into()).is_err() && named("=b".into()).is_err());
    }
}

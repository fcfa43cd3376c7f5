//! Values of a config file that are written as on the command line, so that flags and file share one parser.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::{ConfigError, parse_duration};

/// The JSON values that a type accepts in place of text on the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Number,
    TextOrNumber,
}

/// Implements `Deserialize` in terms of `FromStr`: `written!(TYPE, FORM)`.
macro_rules! written {
    ($type:ty, $form:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::config::written::read(from, $form)
            }
        }
    };
}
pub(super) use written;

written!(Time, Form::TextOrNumber);

/// A duration in a config file, for a field of type [`Duration`], whose own serde representation differs.
pub(super) struct Time(Duration);

impl From<Time> for Duration {
    fn from(Time(time): Time) -> Duration {
        time
    }
}

impl FromStr for Time {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        parse_duration(text).map(Time)
    }
}

pub(super) fn read<'de, T, D>(from: D, form: Form) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    from.deserialize_any(Written { form, value: PhantomData })
}

struct Written<T> {
    form: Form,
    value: PhantomData<T>,
}

impl<T: FromStr<Err: Display>> Written<T> {
    fn number<E: Error>(&self, number: impl Display, else_error: E) -> Result<T, E> {
        if self.form == Form::Text { Err(else_error) } else { parsed(&number.to_string()) }
    }
}

impl<T: FromStr<Err: Display>> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.form {
            Form::Text => "a string",
            Form::Number => "a number",
            Form::TextOrNumber => "a string or a number",
        })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        match self.form {
            Form::Number => Err(E::invalid_type(Unexpected::Str(text), &self)),
            Form::Text | Form::TextOrNumber => parsed(text),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.number(number, E::invalid_type(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.number(number, E::invalid_type(Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.number(number, E::invalid_type(Unexpected::Float(number), &self))
    }
}

fn parsed<T: FromStr<Err: Display>, E: Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(E::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accel, MemoryConfig, SerialConfig, VcpuCount};

    fn value<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn text_is_read_as_on_the_command_line() {
        assert_eq!(value::<MemoryConfig>(r#""2G""#), Ok("2G".parse().unwrap()));
        assert_eq!(
            value::<SerialConfig>(r#""file=a""#),
            Ok(SerialConfig::File(crate::config::SerialFile::new("a")))
        );
        assert_eq!(value::<Accel>(r#""kvm""#), Ok(Accel::Kvm));
    }

    #[test]
    fn bare_numbers_stand_for_numbers_only() {
        assert_eq!(value::<MemoryConfig>("512"), Ok("512M".parse().unwrap()));
        assert_eq!(value::<VcpuCount>("4"), Ok(VcpuCount::new(4).unwrap()));
        assert!(value::<VcpuCount>(r#""4""#).unwrap_err().contains("expected a number"));
        assert!(value::<SerialConfig>("5").unwrap_err().contains("expected a string"));
    }

    #[test]
    fn what_the_command_line_refuses_is_refused_in_the_same_words() {
        assert!(value::<VcpuCount>("65").unwrap_err().starts_with("65 vCPUs are not possible"));
        assert!(value::<VcpuCount>("-1").unwrap_err().starts_with("-1 vCPUs are not possible"));
        assert!(value::<VcpuCount>("1.5").unwrap_err().starts_with("1.5 vCPUs are not possible"));
        assert!(value::<MemoryConfig>("-1").unwrap_err().contains("is negative"));
        assert!(value::<SerialConfig>(r#""tty""#).unwrap_err().contains("`tty` is not known here"));
    }

    #[test]
    fn other_json_is_refused() {
        for json in ["true", "null", "[]", "{}"] {
            assert!(
                value::<MemoryConfig>(json).unwrap_err().contains("expected a string or a number"),
                "{json}"
            );
        }
    }
}

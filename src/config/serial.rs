//! What the serial port is connected to.

use std::path::PathBuf;
use std::str::FromStr;

use super::ConfigError;

/// The other end of COM1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// Standard input and output of this process.
    Stdio,
    /// Output goes to a file, which is made or emptied; there is no input.
    File(PathBuf),
    /// Nothing: output is counted and dropped.
    Null,
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    /// Reads `stdio`, `file=PATH` or `null`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => return Ok(SerialConfig::Stdio),
            "null" => return Ok(SerialConfig::Null),
            _ => {}
        }
        match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => Ok(SerialConfig::File(path.into())),
            _ => Err(ConfigError::Serial { text: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_others_are_refused() {
        assert_eq!("stdio".parse(), Ok(SerialConfig::Stdio));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("file=a=b".parse(), Ok(SerialConfig::File("a=b".into())));
        for text in ["", "file=", "file", "tty", "Stdio"] {
            assert!(text.parse::<SerialConfig>().is_err(), "{text}");
        }
    }
}

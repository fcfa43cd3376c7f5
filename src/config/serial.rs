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
    /// A new pseudo-terminal of the host.
    Pty,
    /// A unix socket that is made at this path: one client after the other has the console.
    Socket(PathBuf),
    /// Nothing: output is counted and dropped.
    Null,
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    /// Reads `stdio`, `pty`, `file=PATH`, `socket=PATH` or `null`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => return Ok(SerialConfig::Stdio),
            "pty" => return Ok(SerialConfig::Pty),
            "null" => return Ok(SerialConfig::Null),
            _ => {}
        }
        match text.split_once('=') {
            Some(("file", path)) if !path.is_empty() => Ok(SerialConfig::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(SerialConfig::Socket(path.into())),
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
        assert_eq!("pty".parse(), Ok(SerialConfig::Pty));
        assert_eq!("socket=/run/x".parse(), Ok(SerialConfig::Socket("/run/x".into())));
        assert_eq!("file=a=b".parse(), Ok(SerialConfig::File("a=b".into())));
        for text in ["", "file=", "file", "socket=", "tty", "Stdio", "pty=x"] {
            assert!(text.parse::<SerialConfig>().is_err(), "{text}");
        }
    }
}

//! What the serial port is connected to.

use std::path::PathBuf;
use std::str::FromStr;

use super::ConfigError;
use super::memory_size::size_in_bytes;
use super::words::{once, split};

/// The other end of COM1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// Standard input and output of this process.
    Stdio,
    /// Output goes to a file; there is no input.
    File(SerialFile),
    /// A new pseudo-terminal of the host.
    Pty,
    /// A unix socket that is made at this path: one client after the other has the console.
    Socket(PathBuf),
    /// Nothing: output is counted and dropped.
    Null,
}

/// A file that the output goes to. It is made or emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialFile {
    /// Where it is.
    pub path: PathBuf,
    /// The most bytes that it has, for a regular file: one that is full is moved to its name with `.1` at the end, in
    /// place of what is there, and the output goes on in a new one. Without a limit the guest may fill the file system.
    pub limit: Option<u64>,
}

impl SerialFile {
    /// The limit of a file for which nothing else is said: more than a guest prints that is not out to fill it.
    pub const DEFAULT_LIMIT: u64 = 64 << 20;
    /// The least limit.
    pub const MIN_LIMIT: u64 = 64 << 10;

    /// A file with the usual limit.
    pub fn new(path: impl Into<PathBuf>) -> SerialFile {
        SerialFile { path: path.into(), limit: Some(Self::DEFAULT_LIMIT) }
    }

    /// Reads what follows `file=`.
    fn read(text: &str) -> Result<SerialFile, ConfigError> {
        let mut words = split(text);
        let mut file = SerialFile::new(words.remove(0).text);
        let unknown = |word: String| ConfigError::SerialWord { word };
        for word in once(words).map_err(unknown)? {
            file.limit = match (word.key(), word.value()) {
                ("limit", Some("none")) => None,
                ("limit", Some(size)) => {
                    let bytes = size_in_bytes(size)?;
                    if bytes < Self::MIN_LIMIT {
                        return Err(unknown(word.text));
                    }
                    Some(bytes)
                }
                _ => return Err(unknown(word.text)),
            };
        }
        Ok(file)
    }
}

impl From<PathBuf> for SerialFile {
    fn from(path: PathBuf) -> SerialFile {
        SerialFile::new(path)
    }
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    /// Reads `stdio`, `pty`, `file=PATH`, `socket=PATH` or `null`. After a file's path, in which a comma is written
    /// twice, `,limit=SIZE` or `,limit=none` may follow.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => return Ok(SerialConfig::Stdio),
            "pty" => return Ok(SerialConfig::Pty),
            "null" => return Ok(SerialConfig::Null),
            _ => {}
        }
        match text.split_once('=') {
            Some(("file", file)) if !file.is_empty() => SerialFile::read(file).map(SerialConfig::File),
            Some(("socket", path)) if !path.is_empty() => Ok(SerialConfig::Socket(path.into())),
            _ => Err(ConfigError::Serial { text: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, limit: Option<u64>) -> SerialConfig {
        SerialConfig::File(SerialFile { path: path.into(), limit })
    }

    #[test]
    fn each_form_is_read_and_others_are_refused() {
        assert_eq!("stdio".parse(), Ok(SerialConfig::Stdio));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("pty".parse(), Ok(SerialConfig::Pty));
        assert_eq!("socket=/run/x".parse(), Ok(SerialConfig::Socket("/run/x".into())));
        assert_eq!("file=a=b".parse(), Ok(file("a=b", Some(64 << 20))));
        assert_eq!("file=a,,b,limit=1M".parse(), Ok(file("a,b", Some(1 << 20))));
        assert_eq!("file=a,limit=none".parse(), Ok(file("a", None)));
        for text in
            ["file=a,b", "file=a,limit=1K", "file=a,limit=1M,limit=2M", "file=a,limit", "file=a,limit=x"]
        {
            assert!(text.parse::<SerialConfig>().is_err(), "{text}");
        }
        for text in ["", "file=", "file", "socket=", "tty", "Stdio", "pty=x"] {
            assert!(text.parse::<SerialConfig>().is_err(), "{text}");
        }
    }
}

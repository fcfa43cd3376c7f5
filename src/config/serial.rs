//! What the serial port is connected to.

use std::path::PathBuf;
use std::str::FromStr;

use super::ConfigError;
use super::keyed::{Key, Keyed, Kind, with_words};
use super::memory_size::size_in_bytes;
use super::words::{Word, split};

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
    /// The most bytes that it has, for a regular file: one that is full is moved to its name with `.1` at
    /// the end, in place of what is there, and the output goes on in a new one. Without a limit the guest
    /// may fill the file system.
    pub limit: Option<u64>,
}

impl SerialFile {
    /// The limit of a file for which nothing else is said: more than a guest prints that is not out to fill
    /// it.
    pub const DEFAULT_LIMIT: u64 = 64 << 20;
    /// The least limit.
    pub const MIN_LIMIT: u64 = 64 << 10;

    /// A file with the usual limit.
    pub fn new(path: impl Into<PathBuf>) -> SerialFile {
        SerialFile { path: path.into(), limit: Some(Self::DEFAULT_LIMIT) }
    }
}

impl From<PathBuf> for SerialFile {
    fn from(path: PathBuf) -> SerialFile {
        SerialFile::new(path)
    }
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    /// Reads `stdio`, `pty`, `file=PATH`, `socket=PATH` or `null`. After a file's path, in which a comma is
    /// written twice, `,limit=SIZE` or `,limit=none` may follow.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => return Ok(SerialConfig::Stdio),
            "pty" => return Ok(SerialConfig::Pty),
            "null" => return Ok(SerialConfig::Null),
            _ => {}
        }
        match text.split_once('=') {
            Some(("file", file)) if !file.is_empty() => {
                let mut words = split(file);
                let file = Some(SerialFile::new(words.remove(0).text));
                with_words(SerialDraft { file, ..SerialDraft::default() }, words)
            }
            Some(("socket", path)) if !path.is_empty() => Ok(SerialConfig::Socket(path.into())),
            _ => Err(ConfigError::Serial { text: text.into() }),
        }
    }
}

/// What is known of a file or socket before all is read.
#[derive(Default)]
pub(super) struct SerialDraft {
    file: Option<SerialFile>,
    socket: Option<PathBuf>,
    /// As told; `Some(None)` is for a file without a limit.
    limit: Option<Option<u64>>,
}

impl Keyed for SerialConfig {
    type Draft = SerialDraft;

    const KEYS: &'static [Key] = &[
        Key { name: "file", kind: Kind::Text, about: "File that the output goes to" },
        Key {
            name: "socket",
            kind: Kind::Text,
            about: "Unix socket whose clients have the console, one after the other",
        },
        Key {
            name: "limit",
            kind: Kind::Quantity,
            about: "Most bytes of a file, from 64K on, or none; a number is MiB. A file that is full goes on \
                    in a new one",
        },
    ];

    const NEEDS: &'static [&'static str] = &["file", "socket"];

    fn draft() -> SerialDraft {
        SerialDraft::default()
    }

    fn set(draft: &mut SerialDraft, word: &Word) -> Option<Result<(), ConfigError>> {
        let has_end = draft.file.is_some() || draft.socket.is_some();
        match (word.key(), word.value()) {
            ("file" | "socket", Some("")) => {
                return Some(Err(ConfigError::Serial { text: word.text.clone() }));
            }
            ("file", Some(path)) if !has_end => draft.file = Some(SerialFile::new(path)),
            ("socket", Some(path)) if !has_end && draft.limit.is_none() => draft.socket = Some(path.into()),
            ("limit", Some("none")) if draft.socket.is_none() => draft.limit = Some(None),
            ("limit", Some(size)) if draft.socket.is_none() => match size_in_bytes(size) {
                Ok(bytes) if bytes < SerialFile::MIN_LIMIT => return None,
                Ok(bytes) => draft.limit = Some(Some(bytes)),
                Err(error) => return Some(Err(error)),
            },
            _ => return None,
        }
        Some(Ok(()))
    }

    fn refused(word: &str) -> ConfigError {
        ConfigError::SerialWord { word: word.into() }
    }

    fn finish(SerialDraft { file, socket, limit }: SerialDraft) -> Result<SerialConfig, ConfigError> {
        match (file, socket) {
            (Some(file), _) => {
                let limit = limit.unwrap_or(file.limit);
                Ok(SerialConfig::File(SerialFile { limit, ..file }))
            }
            (None, Some(path)) => Ok(SerialConfig::Socket(path)),
            (None, None) => Err(ConfigError::Serial { text: String::new() }),
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

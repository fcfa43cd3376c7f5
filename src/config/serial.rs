//! The host's end of the serial port.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::ConfigError;
use super::keyed::{Key, Keyed, Kind, with_words};
use super::memory_size::size_in_bytes;
use super::setting::{pattern, setting};
use super::words::{Word, escaped, split};

/// The host's end of COM1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// Standard input and output of this process.
    Stdio,
    /// A file that takes the output; there is no input.
    File(SerialFile),
    /// A new pseudo-terminal of the host.
    Pty,
    /// A Unix socket that is created at this path; its clients get the console one after the other.
    Socket(PathBuf),
    /// Nothing: output is counted and dropped.
    Null,
}

impl fmt::Display for SerialConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SerialConfig::Stdio => f.write_str("stdio"),
            SerialConfig::File(file) => {
                write!(f, "file={}", escaped(&file.path.to_string_lossy()))?;
                match file.limit {
                    Some(SerialFile::DEFAULT_LIMIT) => Ok(()),
                    Some(bytes) => write!(f, ",limit={}K", bytes >> 10),
                    None => f.write_str(",limit=none"),
                }
            }
            SerialConfig::Pty => f.write_str("pty"),
            SerialConfig::Socket(path) => write!(f, "socket={}", escaped(&path.to_string_lossy())),
            SerialConfig::Null => f.write_str("null"),
        }
    }
}

/// A file that takes the output. It is created or truncated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialFile {
    /// The path of the file.
    pub path: PathBuf,
    /// The maximum size of a regular file, in bytes. A full file is renamed to the same name with `.1`
    /// appended, replacing an earlier one, and the output continues in a new file. Without a limit, the guest
    /// can fill the file system.
    pub limit: Option<u64>,
}

impl SerialFile {
    /// The default limit: more than a guest prints unless it tries to fill the file system.
    pub const DEFAULT_LIMIT: u64 = 64 << 20;
    /// The smallest limit.
    pub const MIN_LIMIT: u64 = 64 << 10;

    /// Creates the configuration of a file with the default limit.
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

    /// Parses `stdio`, `pty`, `file=PATH`, `socket=PATH` or `null`. A comma in a path is doubled. After a
    /// file's path, `,limit=SIZE` or `,limit=none` may follow.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => return Ok(SerialConfig::Stdio),
            "pty" => return Ok(SerialConfig::Pty),
            "null" => return Ok(SerialConfig::Null),
            _ => {}
        }
        let words = split(text);
        match words.first().map(Word::key) {
            Some("file" | "socket") => with_words(SerialDraft::default(), words),
            _ => Err(ConfigError::Serial { text: text.into() }),
        }
    }
}

/// The state of a file or socket while its keys are read.
#[derive(Default)]
pub(super) struct SerialDraft {
    file: Option<SerialFile>,
    socket: Option<PathBuf>,
    /// The given limit; `Some(None)` for a file without one.
    limit: Option<Option<u64>>,
}

setting!(SerialConfig keyed SerialConfig, pattern(r"^(stdio|pty|null|(file|socket)=.+)$"), |serial, change| {
    if let SerialConfig::File(SerialFile { path, .. }) | SerialConfig::Socket(path) = serial {
        change(path);
    }
});

impl Keyed for SerialConfig {
    type Draft = SerialDraft;

    const KEYS: &'static [Key] = &[
        Key { name: "file", kind: Kind::Text, about: "File for the output" },
        Key {
            name: "socket",
            kind: Kind::Text,
            about: "Unix socket whose clients get the console, one after the other",
        },
        Key {
            name: "limit",
            kind: Kind::Quantity,
            about: "Maximum size of the file, at least 64K, or none; a number is in MiB. When a file is full, \
                    it is renamed and the output continues in a new one",
        },
    ];

    const NEEDS: &'static [&'static str] = &["file", "socket"];

    fn draft() -> SerialDraft {
        SerialDraft::default()
    }

    fn set(draft: &mut SerialDraft, word: &Word) -> Option<Result<(), ConfigError>> {
        let has_end = draft.file.is_some() || draft.socket.is_some();
        match (word.key(), word.value()) {
            ("file" | "socket", None | Some("")) => {
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
    fn each_form_is_shown_as_it_is_written() {
        for text in
            ["stdio", "null", "pty", "socket=a,,b", "file=a,,b", "file=a,limit=64K", "file=a,limit=none"]
        {
            assert_eq!(text.parse::<SerialConfig>().unwrap().to_string(), text);
        }
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
        assert_eq!("socket=a,,b=c".parse(), Ok(SerialConfig::Socket("a,b=c".into())));
        for text in ["socket=s,limit=1M", "socket=a,b", "socket=s,", "socket=s,file=f", "file=f,socket=s"] {
            let error = text.parse::<SerialConfig>().unwrap_err();
            assert!(matches!(error, ConfigError::SerialWord { .. }), "{text}: {error}");
            assert!(!error.to_string().contains("does not go with file"), "{text}: {error}");
        }
        for text in [
            "",
            "file=",
            "file",
            "socket=",
            "socket",
            "socket=,limit=1M",
            "limit=1M,file=f",
            "tty",
            "Stdio",
            "pty=x",
        ] {
            assert!(text.parse::<SerialConfig>().is_err(), "{text}");
        }
    }
}

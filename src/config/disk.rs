//! A disk of the guest: its back end and options.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use coracle_devices::virtio::poll::Poll;

use super::keyed::{ID, Key, Keyed, Kind, with_words};
use super::memory_size::size_in_bytes;
use super::setting::{setting, text};
use super::words::{Word, escaped, path_and_words};
use super::{ConfigError, DeviceId, duration};

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device. Its format is never guessed from its content.
    pub path: PathBuf,
    /// The guest's access to it.
    pub access: DiskAccess,
    /// How requests are carried out.
    pub engine: DiskEngine,
    /// How long the disk's thread polls for the next request before it sleeps; zero for never, 1 ms at most.
    /// The thread polls less if polling finds nothing, and not at all while the CPUs are busy.
    pub poll: Duration,
    /// The number of request queues, from 1 to 16.
    pub queues: u16,
    /// The id; `None` for `disk0`, `disk1` and so on.
    pub id: Option<DeviceId>,
    /// The serial number that the guest sees; `None` for the id, if that is set and not too long.
    pub serial: Option<DiskSerial>,
    /// The action for requests that the host cannot carry out.
    pub on_error: DiskErrorPolicy,
}

/// A guest's access to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskAccess {
    /// Read and write; no other process may use the file meanwhile.
    #[default]
    ReadWrite,
    /// Read only.
    ReadOnly,
    /// Read and write, but writes go to a private overlay, and the file is not modified.
    Overlay {
        /// The maximum size of the overlay, in bytes.
        max_bytes: Option<u64>,
    },
}

/// The mechanism that carries out the requests of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskEngine {
    /// A single system call at a time, on a thread of the disk's own: for blocks in the host's page cache.
    #[default]
    Sync,
    /// Many requests at once, by io_uring: for disks whose blocks are not in the page cache, and guests that
    /// have many requests in flight. On a host that does not allow io_uring, `Sync` is used, and the log says
    /// so.
    IoUring,
}

/// The action for a request that the host cannot carry out, because it has run out of space or the disk is
/// broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskErrorPolicy {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The virtual machine pauses. When it resumes, the request is tried again.
    Pause,
}

/// A disk's serial number: 1 to 20 printable ASCII characters, without blanks and commas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskSerial(String);

impl DiskConfig {
    /// Creates the configuration of a raw image that is read and written.
    pub fn new(path: impl Into<PathBuf>) -> DiskConfig {
        DiskConfig {
            path: path.into(),
            access: DiskAccess::default(),
            engine: DiskEngine::default(),
            poll: Poll::DEFAULT,
            queues: 1,
            id: None,
            serial: None,
            on_error: DiskErrorPolicy::default(),
        }
    }
}

impl DiskConfig {
    /// Returns the serial number that the guest sees; empty for none.
    pub(crate) fn shown_serial(&self) -> &str {
        let id = self.id.as_ref().map(DeviceId::as_str).filter(|id| id.len() <= MAX_SERIAL);
        self.serial.as_ref().map(DiskSerial::as_str).or(id).unwrap_or_default()
    }
}

impl fmt::Display for DiskConfig {
    /// Writes the form that is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, access, engine, poll, queues, id, serial, on_error } = self;
        write!(f, "path={}", escaped(&path.to_string_lossy()))?;
        match access {
            DiskAccess::ReadWrite => {}
            DiskAccess::ReadOnly => f.write_str(",ro")?,
            DiskAccess::Overlay { max_bytes: None } => f.write_str(",cow")?,
            DiskAccess::Overlay { max_bytes: Some(bytes) } => {
                write!(f, ",cow-size={}K", bytes.div_ceil(1024))?;
            }
        }
        if *engine == DiskEngine::IoUring {
            f.write_str(",engine=io_uring")?;
        }
        duration::write_poll(*poll, f)?;
        if *queues != 1 {
            write!(f, ",queues={queues}")?;
        }
        if let Some(id) = id {
            write!(f, ",id={id}")?;
        }
        if let Some(serial) = serial {
            write!(f, ",serial={}", escaped(serial.as_str()))?;
        }
        if *on_error == DiskErrorPolicy::Pause { f.write_str(",on-error=pause") } else { Ok(()) }
    }
}

impl DiskSerial {
    /// Returns the serial number as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskSerial {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let is_good =
            (1..=MAX_SERIAL).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_good.then(|| DiskSerial(text.into())).ok_or_else(|| ConfigError::DiskSerial { text: text.into() })
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    /// Parses `PATH`, or `path=PATH` followed by a comma-separated list of the other keys. A comma in the
    /// path is doubled.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        // `file=` is QEMU's key for a path; a file whose name begins like that is written with `path=`.
        let split = path_and_words(text).filter(|_| !text.starts_with("file="));
        let split = split.ok_or_else(|| ConfigError::DiskPath { text: text.into() });
        let (path, words) = split?;
        with_words(DiskConfig::new(path), words)
    }
}

setting!(DiskConfig keyed DiskConfig, text(), |disk, change| change(&mut disk.path));

impl Keyed for DiskConfig {
    type Draft = DiskConfig;

    const KEYS: &'static [Key] = &[
        Key { name: "path", kind: Kind::Text, about: "Raw image or block device" },
        Key { name: "ro", kind: Kind::Flag, about: "Whether the disk is read-only" },
        Key { name: "readonly", kind: Kind::Flag, about: "Another name of `ro`" },
        Key {
            name: "cow",
            kind: Kind::Flag,
            about: "Whether writes go to a private overlay, so that the file is not modified",
        },
        Key {
            name: "cow-size",
            kind: Kind::Quantity,
            about: "Maximum size of the overlay; a number is in MiB",
        },
        Key {
            name: "engine",
            kind: Kind::Choice(&["sync", "io_uring"]),
            about: "Mechanism that carries out requests",
        },
        Key {
            name: "poll",
            kind: Kind::Quantity,
            about: "How long the disk's thread polls for the next request before it sleeps: off, or a time up to \
                1000us; \
                    a number is in microseconds",
        },
        Key { name: "queues", kind: Kind::Number, about: "Number of request queues, from 1 to 16" },
        ID,
        Key {
            name: "serial",
            kind: Kind::Text,
            about: "Serial number of the disk in the guest: 1 to 20 printable ASCII characters, without blanks; by \
                    default its `id`, if that is set and not longer",
        },
        Key {
            name: "on-error",
            kind: Kind::Choice(&["report", "pause"]),
            about: "What to do with a request that the host cannot carry out: report an error to the guest, or pause \
                the machine",
        },
    ];

    const NEEDS: &'static [&'static str] = &["path"];

    fn draft() -> DiskConfig {
        DiskConfig::new(PathBuf::new())
    }

    fn set(disk: &mut DiskConfig, word: &Word) -> Option<Result<(), ConfigError>> {
        match (word.key(), word.value()) {
            ("path", Some("")) if disk.path.as_os_str().is_empty() => {
                return Some(Err(ConfigError::DiskPath { text: String::new() }));
            }
            ("path", Some(path)) if disk.path.as_os_str().is_empty() => disk.path = path.into(),
            ("ro" | "readonly", None) if disk.access == DiskAccess::ReadWrite => {
                disk.access = DiskAccess::ReadOnly;
            }
            ("cow", None) => match disk.access {
                DiskAccess::ReadWrite => disk.access = DiskAccess::Overlay { max_bytes: None },
                DiskAccess::Overlay { .. } => {}
                DiskAccess::ReadOnly => return None,
            },
            ("cow-size", Some(size)) if disk.access != DiskAccess::ReadOnly => match size_in_bytes(size) {
                Ok(most) => disk.access = DiskAccess::Overlay { max_bytes: Some(most) },
                Err(error) => return Some(Err(error)),
            },
            ("engine", Some("sync")) => disk.engine = DiskEngine::Sync,
            ("engine", Some("io_uring")) => disk.engine = DiskEngine::IoUring,
            ("poll", Some(time)) => disk.poll = duration::poll(time)?,
            ("queues", Some(count)) => {
                disk.queues = count.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(count))?;
            }
            ("id", Some(id)) => return Some(id.parse().map(|id| disk.id = Some(id))),
            ("serial", Some(serial)) => {
                return Some(serial.parse().map(|serial| disk.serial = Some(serial)));
            }
            ("on-error", Some("report")) => disk.on_error = DiskErrorPolicy::Report,
            ("on-error", Some("pause")) => disk.on_error = DiskErrorPolicy::Pause,
            _ => return None,
        }
        Some(Ok(()))
    }

    fn refused(word: &str) -> ConfigError {
        ConfigError::DiskWord { word: word.into() }
    }

    fn finish(disk: DiskConfig) -> Result<DiskConfig, ConfigError> {
        Ok(disk)
    }
}

/// The maximum length of a device ID string (virtio 1.2, 5.2.6).
const MAX_SERIAL: usize = 20;
const MAX_QUEUES: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> Result<DiskConfig, ConfigError> {
        text.parse()
    }

    #[test]
    fn path_may_be_all_there_is() {
        for text in ["root.img", "path=root.img"] {
            assert_eq!(disk(text), Ok(DiskConfig::new("root.img")));
        }
        assert_eq!(disk("a=b").unwrap().path, PathBuf::from("a=b"));
        assert_eq!(disk("path=file=a").unwrap().path, PathBuf::from("file=a"));
        assert_eq!(
            disk("a,,b,ro").unwrap(),
            DiskConfig { access: DiskAccess::ReadOnly, ..DiskConfig::new("a,b") }
        );
    }

    #[test]
    fn every_word_is_read_in_any_order() {
        let config = disk("path=/a/b,id=data-1,serial=A.1,queues=4,engine=sync,on-error=pause,ro").unwrap();
        let expected = DiskConfig {
            access: DiskAccess::ReadOnly,
            engine: DiskEngine::Sync,
            queues: 4,
            id: Some("data-1".parse().unwrap()),
            serial: Some("A.1".parse().unwrap()),
            on_error: DiskErrorPolicy::Pause,
            ..DiskConfig::new("/a/b")
        };
        assert_eq!(config, expected);
        assert_eq!(disk("a,cow").unwrap().access, DiskAccess::Overlay { max_bytes: None });
        for text in ["a,cow,cow-size=64M", "a,cow-size=64,cow", "a,cow-size=65536K"] {
            assert_eq!(
                disk(text).unwrap().access,
                DiskAccess::Overlay { max_bytes: Some(64 << 20) },
                "{text}"
            );
        }
        assert_eq!(disk("a,engine=io_uring,on-error=report").unwrap().engine, DiskEngine::IoUring);
        assert_eq!(disk("a").unwrap().engine, DiskEngine::Sync);
        for (text, micros) in [("off", 0), ("50us", 50), ("1000", 1000)] {
            assert_eq!(
                disk(&format!("a,poll={text}")).unwrap().poll,
                Duration::from_micros(micros),
                "{text}"
            );
        }
    }

    #[test]
    fn configuration_is_written_as_it_is_read() {
        for text in [
            "path=a",
            "path=a,,b,ro,engine=io_uring",
            "path=a,cow,poll=off,id=x",
            "path=a,cow-size=65536K,poll=50us,queues=4,id=x,serial=a,,b,on-error=pause",
        ] {
            assert_eq!(disk(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_words_are_refused_and_named() {
        let words = [
            "rw",
            "ro=1",
            "cow=yes",
            "engine=aio",
            "engine",
            "poll=0",
            "poll=1001us",
            "poll=1ms",
            "poll=on",
            "poll",
            "queues=0",
            "queues=17",
            "queues=x",
            "on-error=stop",
            "size=1G",
            "path=b",
            "",
        ];
        for word in words {
            assert_eq!(disk(&format!("a,{word}")), Err(ConfigError::DiskWord { word: word.into() }));
        }
        for text in
            ["a,ro,cow", "a,cow,ro", "a,ro,cow-size=1M", "a,ro,ro", "a,id=x,id=y", "a,serial=x,serial=y"]
        {
            assert!(disk(text).is_err(), "{text}");
        }
        for text in ["", "path=", ",ro", "file=a.img", "file=a.img,ro"] {
            assert!(matches!(disk(text), Err(ConfigError::DiskPath { .. })), "{text}");
        }
        for id in ["", "a b", "123456789012345678901", "\u{e9}"] {
            let serial = disk(&format!("a,serial={id}"));
            assert!(matches!(serial, Err(ConfigError::DiskSerial { .. })), "{id:?}");
        }
        for id in ["", "A", "a b", "a.b"] {
            assert!(matches!(disk(&format!("a,id={id}")), Err(ConfigError::DeviceId { .. })), "{id:?}");
        }
        for size in ["0", "", "M", "-1M", "1X", "1.5G", "99999999999T"] {
            assert!(
                matches!(disk(&format!("a,cow-size={size}")), Err(ConfigError::SizeSyntax { .. })),
                "{size:?}"
            );
        }
    }
}

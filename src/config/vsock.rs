//! The vsock device of a guest: its address, and the socket at which programs of the host find it.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use coracle_devices::virtio::vsock::Vsock;

use super::keyed::{ID, Key, Keyed, Kind, with_words};
use super::setting::{pattern, setting};
use super::words::{Word, escaped, split};
use super::{ConfigError, DeviceId};

/// A vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's address (CID), from 3 to 4294967294. It is visible in this guest only, so that several
    /// guests can have the same.
    pub cid: u32,
    /// The Unix socket at which programs of the host reach the guest. The guest reaches programs at sockets
    /// with this name and `_PORT` appended. Without it, only this program can connect, by
    /// [`VmHandle::connect`](crate::VmHandle::connect) and [`VmHandle::listen`](crate::VmHandle::listen).
    pub uds: Option<PathBuf>,
    /// The id; `None` for `vsock0`.
    pub id: Option<DeviceId>,
}

impl Default for VsockConfig {
    fn default() -> Self {
        VsockConfig { cid: MIN_CID, uds: None, id: None }
    }
}

impl fmt::Display for VsockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={}", self.cid)?;
        self.uds.as_ref().map_or(Ok(()), |path| write!(f, ",uds={}", escaped(&path.to_string_lossy())))?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, ",id={id}"))
    }
}

impl FromStr for VsockConfig {
    type Err = ConfigError;

    /// Parses a comma-separated list of `uds=PATH`, `cid=NUMBER` and `id=ID`, each at most once. A comma in
    /// the path is doubled.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        with_words(VsockConfig::draft(), split(text))
    }
}

setting!(VsockConfig keyed VsockConfig, pattern(r"^((cid=[0-9]+|uds=[^,]+|id=[a-z0-9_-]+)(,|$))+$"), |vsock, change| {
    vsock.uds.iter_mut().for_each(change);
});

impl Keyed for VsockConfig {
    type Draft = VsockConfig;

    const KEYS: &'static [Key] = &[
        Key {
            name: "uds",
            kind: Kind::Text,
            about: "Unix socket at which programs of the host reach the guest",
        },
        Key {
            name: "cid",
            kind: Kind::Number,
            about: "The guest's address (CID), from 3 to 4294967294; 3 by default",
        },
        ID,
    ];

    const NEEDS: &'static [&'static str] = &[];

    fn draft() -> VsockConfig {
        VsockConfig::default()
    }

    fn set(vsock: &mut VsockConfig, word: &Word) -> Option<Result<(), ConfigError>> {
        let set = match (word.key(), word.value()?) {
            ("cid", text) => cid(text).map(|cid| vsock.cid = cid),
            ("id", text) => text.parse().map(|id| vsock.id = Some(id)),
            ("uds", text) if !text.is_empty() => path(text).map(|path| vsock.uds = Some(path)),
            _ => return None,
        };
        Some(set)
    }

    fn refused(word: &str) -> ConfigError {
        ConfigError::VsockWord { word: word.into() }
    }

    fn finish(vsock: VsockConfig) -> Result<VsockConfig, ConfigError> {
        Ok(vsock)
    }
}

fn cid(text: &str) -> Result<u32, ConfigError> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let number = number.filter(|number| (MIN_CID..u32::MAX).contains(number));
    number.ok_or_else(|| ConfigError::VsockCid { text: text.into() })
}

fn path(text: &str) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(text);
    let (len, most) = (path.as_os_str().as_bytes().len(), Vsock::LONGEST_PATH);
    if len > most { Err(ConfigError::VsockPath { text: text.into(), len, most }) } else { Ok(path) }
}

/// The smallest CID of a guest: those below belong to the hypervisor, loopback and the host (`vsock(7)`). The
/// largest CID means any.
const MIN_CID: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn vsock(text: &str) -> Result<VsockConfig, ConfigError> {
        text.parse()
    }

    #[test]
    fn words_are_read_in_any_order() {
        let expected = VsockConfig { cid: 9, uds: Some("/run/v.sock".into()), id: None };
        assert_eq!(vsock("cid=9,uds=/run/v.sock"), Ok(expected.clone()));
        assert_eq!(vsock("uds=/run/v.sock,cid=9"), Ok(expected));
        assert_eq!(vsock("uds=a=b"), Ok(VsockConfig { cid: 3, uds: Some("a=b".into()), id: None }));
        let named = vsock("id=talk,cid=5").unwrap();
        assert_eq!(named.id.as_ref().unwrap().as_str(), "talk");
        assert_eq!(vsock(&named.to_string()), Ok(named));
        assert_eq!(vsock("cid=4294967294").unwrap().cid, u32::MAX - 1);
    }

    #[test]
    fn other_words_are_refused_and_named() {
        for word in ["", "uds", "uds=", "port=5", "cid", "CID=3"] {
            assert_eq!(vsock(word), Err(ConfigError::VsockWord { word: word.into() }));
        }
        assert!(matches!(vsock("cid=3,cid=4"), Err(ConfigError::VsockWord { word }) if word == "cid=4"));
        assert!(matches!(vsock("uds=a,uds=a"), Err(ConfigError::VsockWord { .. })));
        for text in ["", "0", "1", "2", "-3", "+3", "x", "4294967295", "99999999999"] {
            assert_eq!(vsock(&format!("cid={text}")), Err(ConfigError::VsockCid { text: text.into() }));
        }
        assert!(vsock(&format!("uds={}", "x".repeat(96))).is_ok());
        let long = vsock(&format!("uds={}", "x".repeat(97)));
        assert!(matches!(long, Err(ConfigError::VsockPath { len: 97, most: 96, .. })));
    }
}

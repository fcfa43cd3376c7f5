//! The ids of the virtio devices of a machine.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The id of a virtio device, by which snapshots and forks find it: 1 to 32 characters out of `a` to `z`, `0`
/// to `9`, `_` and `-`, different for each device of a machine.
///
/// By default the disks are `disk0`, `disk1` and so on, the disk of the root is `root`, and the others are
/// `net0`, `vsock0`, `console0`, `rng0` and `balloon0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceId(String);

impl DeviceId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the default id of the device of its kind with this index.
    pub(crate) fn numbered(kind: &str, index: usize) -> DeviceId {
        DeviceId(format!("{kind}{index}"))
    }

    /// Returns the default id of the disk of a root.
    pub(crate) fn of_root() -> DeviceId {
        DeviceId("root".to_owned())
    }
}

impl FromStr for DeviceId {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let is_letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let is_good = (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(is_letter);
        is_good.then(|| DeviceId(text.to_owned())).ok_or_else(|| ConfigError::DeviceId { text: text.into() })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest id: enough for a word or two, and for a file name with something before it.
const MAX_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_few_characters_and_are_file_names() {
        for text in ["a", "disk0", "root", "my_data-2", "0", "-", &"x".repeat(32)] {
            assert_eq!(text.parse::<DeviceId>().unwrap().to_string(), text);
        }
        for text in ["", "A", "a b", "a/b", "..", "a.b", "\u{e9}", "a,b", "a\0", &"x".repeat(33)] {
            let error = text.parse::<DeviceId>().unwrap_err();
            assert_eq!(error, ConfigError::DeviceId { text: text.into() });
        }
        assert_eq!(DeviceId::numbered("net", 3).as_str(), "net3");
    }
}

//! The guest's console device on the streams of the program.

use std::str::FromStr;

use super::ConfigError;

/// The device to which a person, or a program's streams, are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The serial port COM1, `ttyS0`. It needs no driver module and shows a kernel's first messages.
    #[default]
    Serial,
    /// A virtio console, `hvc0`, on standard input and output, or on the streams that the builder is given.
    /// The serial port remains, connected as in [`VmConfig::serial`](super::VmConfig::serial). If that is
    /// standard input and output as well, both write to it, and input goes to `hvc0`.
    Virtio,
}

impl FromStr for ConsoleDevice {
    type Err = ConfigError;

    /// Parses `serial` or `virtio`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "serial" => Ok(ConsoleDevice::Serial),
            "virtio" => Ok(ConsoleDevice::Virtio),
            _ => Err(ConfigError::Choice { text: text.into(), words: ["serial", "virtio"] }),
        }
    }
}

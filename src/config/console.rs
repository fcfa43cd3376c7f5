//! Which device is the guest's console on the streams of the program.

use std::str::FromStr;

use super::ConfigError;

/// The device that a person, or a program's streams, are connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The serial port COM1, `ttyS0`. It needs no driver module and shows a kernel's first words.
    #[default]
    Serial,
    /// A virtio console, `hvc0`, on standard input and output, or on what the builder is given. The serial
    /// port stays, and has its own end in [`VmConfig::serial`](super::VmConfig::serial). Where that is
    /// standard input and output, too, both print there, and what is typed goes to `hvc0`.
    Virtio,
}

impl FromStr for ConsoleDevice {
    type Err = ConfigError;

    /// Reads `serial` or `virtio`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "serial" => Ok(ConsoleDevice::Serial),
            "virtio" => Ok(ConsoleDevice::Virtio),
            _ => Err(ConfigError::Choice { text: text.into(), words: ["serial", "virtio"] }),
        }
    }
}

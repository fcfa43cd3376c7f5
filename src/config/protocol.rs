//! How the first vCPU enters the kernel.

use std::fmt;
use std::str::FromStr;

use coracle_arch::x86_64::image::BootProtocol;

use super::ConfigError;

/// The boot protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelProtocol {
    /// For Linux its 64-bit entry point; for any other ELF image its PVH entry point, if it has one, or else
    /// its 64-bit entry point.
    #[default]
    Auto,
    /// The 64-bit entry point of the Linux boot protocol.
    Linux,
    /// The 32-bit entry point that a PVH note names.
    Pvh,
}

impl KernelProtocol {
    /// Returns the chosen protocol; `None` if the image decides.
    pub(crate) fn chosen(self) -> Option<BootProtocol> {
        match self {
            Self::Auto => None,
            Self::Linux => Some(BootProtocol::Linux64),
            Self::Pvh => Some(BootProtocol::Pvh),
        }
    }
}

impl FromStr for KernelProtocol {
    type Err = ConfigError;

    /// Parses `auto`, `linux` or `pvh`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(Self::Auto),
            "linux" => Ok(Self::Linux),
            "pvh" => Ok(Self::Pvh),
            _ => Err(ConfigError::Protocol { text: text.into() }),
        }
    }
}

impl fmt::Display for KernelProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Linux => "linux",
            Self::Pvh => "pvh",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_reads_back_and_others_are_refused() {
        for protocol in [KernelProtocol::Auto, KernelProtocol::Linux, KernelProtocol::Pvh] {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        for text in ["", "PVH", "multiboot"] {
            assert!(text.parse::<KernelProtocol>().is_err(), "{text}");
        }
    }
}

//! Where a guest may run.

use std::str::FromStr;

use super::ConfigError;

/// The user's choice of machine for the guest. Only the command follows it: the library uses the KVM of its
/// host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// Hardware KVM; else, for a Linux image, an emulated host, and say so.
    #[default]
    Auto,
    /// The KVM of this host, whatever kind it is.
    Kvm,
    /// An emulated host, also where there is KVM.
    Emulate,
}

impl FromStr for Accel {
    type Err = ConfigError;

    /// Reads `auto`, `kvm` or `emulate`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(Accel::Auto),
            "kvm" => Ok(Accel::Kvm),
            "emulate" => Ok(Accel::Emulate),
            _ => Err(ConfigError::Accel { text: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_read_and_others_are_refused() {
        assert_eq!("auto".parse(), Ok(Accel::Auto));
        assert_eq!("kvm".parse(), Ok(Accel::Kvm));
        assert_eq!("emulate".parse(), Ok(Accel::Emulate));
        for text in ["", "Auto", "tcg", "kvm "] {
            assert!(text.parse::<Accel>().is_err(), "{text}");
        }
    }
}

//! The choice of host for a guest.

use std::str::FromStr;

use super::ConfigError;

/// The user's choice of host for the guest. Only the command follows it: the library always uses the KVM of
/// its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// Hardware KVM; without it, for a Linux image, an emulated host, with a message.
    #[default]
    Auto,
    /// The KVM of this host, whatever its kind.
    Kvm,
    /// An emulated host, even if there is KVM.
    Emulate,
}

impl FromStr for Accel {
    type Err = ConfigError;

    /// Parses `auto`, `kvm` or `emulate`.
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

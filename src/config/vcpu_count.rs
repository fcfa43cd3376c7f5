//! The number of vCPUs.

use std::str::FromStr;

use super::ConfigError;

/// A number of vCPUs, from 1 to [`VcpuCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// The largest number.
    pub const MAX: u8 = 64;

    /// Creates a number of vCPUs, if it is in range.
    pub fn new(count: u8) -> Result<VcpuCount, ConfigError> {
        if (1..=Self::MAX).contains(&count) {
            Ok(VcpuCount(count))
        } else {
            Err(vcpu_range(&count.to_string()))
        }
    }

    /// Returns the number.
    pub fn value(self) -> u8 {
        self.0
    }
}

impl Default for VcpuCount {
    fn default() -> Self {
        VcpuCount(1)
    }
}

impl FromStr for VcpuCount {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        text.parse().map_err(|_| vcpu_range(text)).and_then(Self::new)
    }
}

fn vcpu_range(text: &str) -> ConfigError {
    ConfigError::VcpuRange { text: text.into(), most: VcpuCount::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_to_the_limit_are_possible() {
        assert_eq!("1".parse::<VcpuCount>().map(VcpuCount::value), Ok(1));
        assert_eq!("64".parse::<VcpuCount>().map(VcpuCount::value), Ok(64));
        for text in ["0", "65", "-1", "", "two", "4294967297"] {
            assert!(text.parse::<VcpuCount>().is_err(), "{text}");
        }
    }
}

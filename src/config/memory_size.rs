//! The size of a guest's RAM.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// RAM in whole MiB, from 2 MiB to 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize {
    mib: u64,
}

impl MemorySize {
    /// The smallest: the boot tables and a payload fit.
    pub const LEAST: MemorySize = MemorySize { mib: 2 };
    /// The largest: what 40-bit physical addresses, which every x86-64 host has, can hold.
    pub const MOST: MemorySize = MemorySize { mib: 1 << 20 };

    /// `mib` MiB.
    pub fn from_mib(mib: u64) -> Result<MemorySize, ConfigError> {
        let size = MemorySize { mib };
        if (Self::LEAST..=Self::MOST).contains(&size) {
            Ok(size)
        } else {
            Err(size_range(&format!("{mib}M")))
        }
    }

    /// In MiB.
    pub fn mib(self) -> u64 {
        self.mib
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.mib << 20
    }
}

impl Default for MemorySize {
    /// 256 MiB: enough for a stock kernel and a small user space.
    fn default() -> Self {
        MemorySize { mib: 256 }
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    /// Reads `512M`, `2G`, `2GiB`, `65536K` or a bare number of MiB.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let syntax = || ConfigError::SizeSyntax { text: text.into() };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(syntax());
        }
        let suffix = text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
        let unit = suffix.strip_suffix("IB").or(suffix.strip_suffix('B')).unwrap_or(&suffix);
        let bytes_each: u64 = match unit {
            "K" => 1 << 10,
            "" | "M" => 1 << 20,
            "G" => 1 << 30,
            "T" => 1 << 40,
            _ => return Err(syntax()),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(bytes_each));
        match bytes {
            Some(bytes) if bytes % (1 << 20) == 0 => {
                Self::from_mib(bytes >> 20).map_err(|_| size_range(text))
            }
            _ => Err(size_range(text)),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mib {
            mib if mib % (1 << 20) == 0 => write!(f, "{}T", mib >> 20),
            mib if mib % (1 << 10) == 0 => write!(f, "{}G", mib >> 10),
            mib => write!(f, "{mib}M"),
        }
    }
}

fn size_range(text: &str) -> ConfigError {
    ConfigError::SizeRange { text: text.into(), least: MemorySize::LEAST, most: MemorySize::MOST }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        let cases =
            [("512M", 512), ("512", 512), ("2G", 2048), ("2GiB", 2048), ("65536K", 64), ("512mb", 512)];
        for (text, mib) in cases {
            assert_eq!(text.parse::<MemorySize>().map(MemorySize::mib), Ok(mib), "{text}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_range() {
        for text in ["0", "1M", "2T", "1025K", "99999999999999999999", "18446744073709551615G"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ConfigError::SizeRange { .. })), "{text}");
        }
        let said = "1M".parse::<MemorySize>().unwrap_err().to_string();
        assert_eq!(said, "1M is not possible: from 2M to 1T can be had, in whole MiB");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "lots", "-5M", "1.5G", "5 M", "5X", "0x10M", "5MM"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ConfigError::SizeSyntax { .. })), "{text}");
        }
    }
}

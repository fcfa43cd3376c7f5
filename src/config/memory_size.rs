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
    /// The smallest size: the boot tables and a payload fit.
    pub const MIN: MemorySize = MemorySize { mib: 2 };
    /// The largest size: that of 40-bit physical addresses, which every x86-64 host supports.
    pub const MAX: MemorySize = MemorySize { mib: 1 << 20 };

    /// Creates a size of `mib` MiB, if it is in range.
    pub fn from_mib(mib: u64) -> Result<MemorySize, ConfigError> {
        let size = MemorySize { mib };
        if (Self::MIN..=Self::MAX).contains(&size) { Ok(size) } else { Err(size_range(&format!("{mib}M"))) }
    }

    /// Returns the size in MiB.
    pub fn mib(self) -> u64 {
        self.mib
    }

    /// Returns the size in bytes.
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

    /// Parses `512M`, `2G`, `2GiB`, `65536K` or a bare number of MiB.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match size_in_bytes(text) {
            Ok(bytes) if bytes % (1 << 20) == 0 => Self::from_mib(bytes >> 20).map_err(|_| size_range(text)),
            Err(error) if split(text).is_none() => Err(error),
            _ => Err(size_range(text)),
        }
    }
}

/// Parses a size of something else, as in `64M`, `2GiB` or a bare number of MiB, and returns it in bytes. It
/// is not zero.
pub(super) fn size_in_bytes(text: &str) -> Result<u64, ConfigError> {
    let bytes = split(text).and_then(|(number, unit)| number.parse::<u64>().ok()?.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| ConfigError::SizeSyntax { text: text.into() })
}

/// Splits a text into its digits and the number of bytes of their unit.
fn split(text: &str) -> Option<(&str, u64)> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((digits, unit(text.get(digits.len()..)?)?))
}

fn unit(suffix: &str) -> Option<u64> {
    match suffix.to_ascii_uppercase().as_str() {
        "K" | "KB" | "KIB" => Some(1 << 10),
        "" | "M" | "MB" | "MIB" => Some(1 << 20),
        "G" | "GB" | "GIB" => Some(1 << 30),
        "T" | "TB" | "TIB" => Some(1 << 40),
        _ => None,
    }
}

/// Explains what is wrong with a text that is not a size, and what to write instead.
pub(super) fn size_advice(text: &str) -> String {
    if text.starts_with('-') {
        return format!("`{text}` is negative: a size is a number and K, M or G, as in 512M");
    }
    if let Some((number, _)) = split(text) {
        return if number.bytes().all(|digit| digit == b'0') {
            format!("`{text}` is zero: write a size of at least 1K")
        } else {
            format!("`{text}` is too large: write at most {}T", u64::MAX >> 40)
        };
    }
    if let Some(whole) = whole_size(text) {
        return format!("`{text}` is not a whole number: write {whole}");
    }
    let lower = text.to_ascii_lowercase();
    if ["b", "byte", "bytes"]
        .iter()
        .any(|unit| lower.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ') == *unit)
    {
        return format!(
            "`{text}`: sizes are not in bytes; write a number and K, M or G, as in 512M (K is 1024 bytes)"
        );
    }
    if text.contains(' ') {
        return format!("`{text}` has a blank: write the number and K, M or G together, as in 512M");
    }
    format!("`{text}` is not a size: write a number and K, M or G, as in 512M (a bare number is MiB)")
}

/// Converts a size with a fraction, as in `1.5G`, to the next smaller unit in which it is a whole number.
fn whole_size(text: &str) -> Option<String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (whole, fraction) = number.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * unit(text.get(number.len()..)?)? as f64;
    [("G", 1u64 << 30), ("M", 1 << 20), ("K", 1 << 10)].into_iter().find_map(|(name, unit)| {
        let count = bytes / unit as f64;
        (count.fract() == 0.0 && (1.0..1e9).contains(&count)).then(|| format!("{count}{name}"))
    })
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
    ConfigError::SizeRange { text: text.into(), least: MemorySize::MIN, most: MemorySize::MAX }
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
        assert_eq!(said, "1M is not possible: write a size from 2M to 1T, in whole MiB");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "lots", "-5M", "1.5G", "5 M", "5X", "5B", "0x10M", "5MM"] {
            assert!(matches!(text.parse::<MemorySize>(), Err(ConfigError::SizeSyntax { .. })), "{text}");
        }
    }

    #[test]
    fn advice_says_what_to_write() {
        for (text, words) in [
            ("-1G", "`-1G` is negative"),
            ("1.5G", "`1.5G` is not a whole number: write 1536M"),
            ("0.5", "write 512K"),
            ("2.0T", "write 2048G"),
            ("1 bytes", "sizes are not in bytes"),
            ("512b", "sizes are not in bytes"),
            ("5 M", "has a blank"),
            ("1.3G", "`1.3G` is not a size"),
            ("1.5X", "`1.5X` is not a size"),
            ("0G", "`0G` is zero: write a size of at least 1K"),
            ("99999999T", "`99999999T` is too large: write at most 16777215T"),
            ("99999999999999999999K", "is too large: write at most 16777215T"),
        ] {
            let said = size_in_bytes(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn sizes_of_other_things_are_in_bytes() {
        for (text, bytes) in [("1K", 1 << 10), ("1", 1 << 20), ("3GiB", 3 << 30), ("1TB", 1 << 40)] {
            assert_eq!(size_in_bytes(text), Ok(bytes), "{text}");
        }
        assert!(size_in_bytes("0").is_err() && size_in_bytes("16777216T").is_err());
        assert_eq!(size_in_bytes("16777215T"), Ok(16_777_215 << 40));
    }
}

//! How much of the host's CPU time a guest may use.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The share of CPU time that all vCPUs of a machine may use together: from 1 % of one CPU to all of 64 CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    percent: u32,
}

impl CpuQuota {
    /// The largest share: more than the vCPUs of a machine can use.
    pub const MAX_PERCENT: u32 = 6400;

    /// Creates a share in percent of one CPU: 50 is half of one, 200 is two.
    ///
    /// # Errors
    /// The share is 0 or more than [`CpuQuota::MAX_PERCENT`].
    pub fn from_percent(percent: u32) -> Result<CpuQuota, ConfigError> {
        let quota = CpuQuota { percent };
        if (1..=Self::MAX_PERCENT).contains(&percent) {
            Ok(quota)
        } else {
            Err(quota_range(&quota.to_string()))
        }
    }

    /// Returns the share in percent of one CPU.
    pub fn percent(self) -> u32 {
        self.percent
    }

    /// Returns the share in CPUs.
    pub(crate) fn cpus(self) -> f64 {
        f64::from(self.percent) / 100.0
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent)
    }
}

impl FromStr for CpuQuota {
    type Err = ConfigError;

    /// Parses `50%`, or the bare number.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let number = text.strip_suffix('%').unwrap_or(text);
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        let percent = number.parse().ok().filter(|_| is_number);
        percent.and_then(|percent| Self::from_percent(percent).ok()).ok_or_else(|| quota_range(text))
    }
}

fn quota_range(text: &str) -> ConfigError {
    ConfigError::CpuQuota { text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_of_one_cpu_is_read_with_and_without_its_sign() {
        for (text, percent) in [("50%", 50), ("1", 1), ("250%", 250), ("6400", 6400)] {
            assert_eq!(text.parse(), CpuQuota::from_percent(percent), "{text}");
            assert_eq!(text.parse::<CpuQuota>().unwrap().percent(), percent);
        }
    }

    #[test]
    fn shares_that_cannot_be_had_are_refused_as_given() {
        for text in ["0", "0%", "6401%", "", "%", "+5", "-1", "5.5", "50 %", "99999999999"] {
            let error = text.parse::<CpuQuota>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` ")), "{error}");
        }
    }
}

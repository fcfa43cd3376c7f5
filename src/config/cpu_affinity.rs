//! The CPUs of the host on which the threads of the vCPUs run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The host's CPUs for vCPUs. Whether they exist and may be used is checked when the machine is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(try_from = "String", into = "String")]
pub enum CpuAffinity {
    /// Every vCPU runs on any of these CPUs, in ascending order: `0-3` or `0,2-3`.
    Any(Vec<u16>),
    /// Pairs of a vCPU and its CPU, in ascending order of vCPUs: `0=2,1=3`. vCPUs without a pair run on any
    /// CPU.
    Each(Vec<(u8, u16)>),
}

impl CpuAffinity {
    /// CPU numbers are below this: the size of the C library's CPU sets.
    pub const CPU_LIMIT: u16 = 1024;

    /// Returns the CPUs for the vCPU with this index; `None` if it runs on any CPU.
    pub fn cpus_of(&self, vcpu: u32) -> Option<Vec<u16>> {
        match self {
            CpuAffinity::Any(cpus) => Some(cpus.clone()),
            CpuAffinity::Each(pairs) => {
                pairs.iter().find(|(index, _)| u32::from(*index) == vcpu).map(|(_, cpu)| vec![*cpu])
            }
        }
    }

    /// Returns every CPU that it names.
    pub fn cpus(&self) -> Vec<u16> {
        match self {
            CpuAffinity::Any(cpus) => cpus.clone(),
            CpuAffinity::Each(pairs) => pairs.iter().map(|(_, cpu)| *cpu).collect(),
        }
    }
}

impl FromStr for CpuAffinity {
    type Err = ConfigError;

    /// Parses `0-3`, `0,2-3` or `0=2,1=3`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let syntax = || ConfigError::Affinity { text: text.into() };
        if text.contains('=') {
            let mut pairs = text.split(',').map(pair).collect::<Option<Vec<_>>>().ok_or_else(syntax)?;
            pairs.sort_unstable();
            if let Some([(vcpu, _), _]) = pairs.array_windows().find(|[(a, _), (b, _)]| a == b) {
                return Err(ConfigError::AffinityTwice { text: text.into(), vcpu: *vcpu });
            }
            return Ok(CpuAffinity::Each(pairs));
        }
        let mut cpus = Vec::new();
        for part in text.split(',') {
            cpus.extend(range(part).ok_or_else(syntax)?);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(CpuAffinity::Any(cpus))
    }
}

impl TryFrom<String> for CpuAffinity {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<CpuAffinity> for String {
    fn from(affinity: CpuAffinity) -> String {
        affinity.to_string()
    }
}

impl fmt::Display for CpuAffinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = match self {
            CpuAffinity::Any(cpus) => {
                cpus.chunk_by(|cpu, next| cpu.checked_add(1) == Some(*next)).map(shown).collect()
            }
            CpuAffinity::Each(pairs) => pairs.iter().map(|(vcpu, cpu)| format!("{vcpu}={cpu}")).collect(),
        };
        f.write_str(&words.join(","))
    }
}

/// Shows consecutive CPUs as a range.
fn shown(cpus: &[u16]) -> String {
    match cpus {
        [] => String::new(),
        [cpu] => cpu.to_string(),
        [first, .., last] => format!("{first}-{last}"),
    }
}

fn pair(text: &str) -> Option<(u8, u16)> {
    let (vcpu, cpu) = text.split_once('=')?;
    Some((u8::try_from(number(vcpu)?).ok()?, number(cpu)?))
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

/// Parses digits only: no sign, no space.
fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number < CpuAffinity::CPU_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_for_all_and_pairs_for_each() {
        let cases = [
            ("0-3", CpuAffinity::Any(vec![0, 1, 2, 3])),
            ("5", CpuAffinity::Any(vec![5])),
            ("3,0-1,1", CpuAffinity::Any(vec![0, 1, 3])),
            ("1=3,0=2", CpuAffinity::Each(vec![(0, 2), (1, 3)])),
            ("63=1023", CpuAffinity::Each(vec![(63, 1023)])),
        ];
        for (text, affinity) in cases {
            assert_eq!(text.parse(), Ok(affinity.clone()), "{text}");
            let json = serde_json::to_string(&affinity).unwrap();
            assert_eq!(serde_json::from_str::<CpuAffinity>(&json).unwrap(), affinity, "{json}");
        }
    }

    #[test]
    fn consecutive_cpus_are_shown_as_ranges() {
        for (text, shown) in
            [("0-99", "0-99"), ("5,7,3,0-1,1,6", "0-1,3,5-7"), ("0,1023", "0,1023"), ("1=3,0=2", "0=2,1=3")]
        {
            assert_eq!(text.parse::<CpuAffinity>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn each_vcpu_has_its_cpus() {
        let pairs = CpuAffinity::Each(vec![(1, 5)]);
        assert_eq!((pairs.cpus_of(0), pairs.cpus_of(1)), (None, Some(vec![5])));
        assert_eq!(CpuAffinity::Any(vec![2, 3]).cpus_of(9), Some(vec![2, 3]));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in
            ["", "a", "-1", "3-1", "0=", "=0", "0=1,2", "0-3,0=1", "0=1-2", "1024", "256=0", "+1", "0,,1"]
        {
            assert!(matches!(text.parse::<CpuAffinity>(), Err(ConfigError::Affinity { .. })), "{text}");
        }
        let twice = "0=1,0=2".parse::<CpuAffinity>().unwrap_err().to_string();
        assert!(twice.contains("vCPU 0"), "{twice}");
    }
}

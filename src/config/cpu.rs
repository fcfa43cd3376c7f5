//! The CPU that a guest sees.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The source of the vCPUs' features.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(from = "String", into = "String")]
pub enum CpuModel {
    /// Every feature that KVM supports on this host.
    #[default]
    Host,
    /// The instruction set x86-64-v2, which every host of the last decade has.
    Baseline,
    /// A JSON file with a template of CPUID leaves and MSRs, as written by `coracle cpu dump`.
    Template(PathBuf),
}

impl From<String> for CpuModel {
    /// Parses `host`, `baseline`, or the path of a template; `./host` is a path.
    fn from(text: String) -> Self {
        match text.as_str() {
            "host" => CpuModel::Host,
            "baseline" => CpuModel::Baseline,
            _ => CpuModel::Template(text.into()),
        }
    }
}

impl From<CpuModel> for String {
    fn from(model: CpuModel) -> String {
        model.to_string()
    }
}

impl FromStr for CpuModel {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuModel::Host => f.write_str("host"),
            CpuModel::Baseline => f.write_str("baseline"),
            CpuModel::Template(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_models_and_the_rest_is_a_path() {
        for (text, model) in [
            ("host", CpuModel::Host),
            ("baseline", CpuModel::Baseline),
            ("./host", CpuModel::Template("./host".into())),
            ("cpu.json", CpuModel::Template("cpu.json".into())),
        ] {
            assert_eq!(text.parse(), Ok(model.clone()));
            let json = serde_json::to_string(&model).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<CpuModel>(&json).unwrap(), model);
        }
    }
}

//! The text of a suite, as `coracle test --suite` reads it. The parser belongs to the command, which is not a
//! library: its source is compiled here once more, so that nothing of the command becomes public for the
//! fuzzer's sake.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../cli/src/commands/test/suite/mod.rs"]
mod suite;

#[allow(dead_code)]
#[path = "../../cli/src/arguments/guest_ip.rs"]
mod guest_ip;
#[allow(dead_code)]
#[path = "../../cli/src/arguments/variable.rs"]
mod variable;

use guest_ip::GuestIp;

/// Stands for the command's type, which is made by its options, too.
#[derive(Debug, Clone, Default)]
#[allow(dead_code)]
struct Surroundings {
    env: Vec<OsString>,
    user: Option<OsString>,
    workdir: Option<PathBuf>,
    ip: Option<GuestIp>,
}

/// Stands for the command's type, which its options have, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TapMode {
    #[default]
    Auto,
    Require,
    Ignore,
}

/// `data` is the file. Each case has a name of its own, and what is wrong is said in one line.
pub fn suite_toml(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match suite::parse(Path::new("/folder/suite.toml"), text) {
        Ok(cases) => {
            let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            assert!(!names.is_empty() && names.len() <= 10_000);
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
            let kernels = cases.iter().filter_map(|case| case.machine.kernel.as_ref());
            assert!(kernels.into_iter().all(|kernel| kernel.is_absolute()), "a path was left relative");
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                said.starts_with("--suite /folder/suite.toml") && !said.contains(char::is_control),
                "{said:?}"
            );
        }
    }
}

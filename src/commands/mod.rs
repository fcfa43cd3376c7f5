//! What each subcommand does. Every function here returns an exit code of `docs/outcomes.md`.

pub(crate) mod doctor;
pub(crate) mod host_emulate;
pub(crate) mod run;

use std::error::Error;
use std::io::Write;

/// Bad usage or configuration, or a host error before the guest ran.
pub(crate) const BAD_USAGE: u8 = 125;
/// No usable KVM, or no emulated host.
pub(crate) const NO_KVM: u8 = 115;

/// One line on stderr. A terminal in raw mode needs the carriage return; a closed stderr is nobody's loss.
pub(crate) fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("coracle: {line}\n").as_bytes());
}

/// An error and everything that led to it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

//! The number of system calls of a program.

use std::process::Command;

use anyhow::{Result, ensure};

/// Runs `command` to its end, and returns the number of system calls of all its threads. This process has no
/// other child.
pub(super) fn of(command: &mut Command) -> Result<u32> {
    let (calls, code) = tracer::of(command.stdout(std::process::Stdio::null()));
    ensure!(code == 0, "it ended with {code}");
    Ok(calls.by_number.values().sum())
}

#[expect(unreachable_pub, clippy::unwrap_used, reason = "the tests have more uses for it")]
#[path = "../../../../tests/common/calls.rs"]
mod tracer;

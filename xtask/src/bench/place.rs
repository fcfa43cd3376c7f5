//! Decides where a measurement of Linux guests runs: on this machine's KVM if that is hardware, otherwise
//! inside an emulated host.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::{capture, run};
use crate::workspace::Workspace;

/// Runs `part` where Linux boots, and says so if that is an emulated host.
///
/// # Errors
/// There is no such place, or `part` fails.
pub(super) fn run_where_linux_boots(workspace: &Workspace, coracle: &Path, part: Command) -> Result<()> {
    let (mut command, place) = where_linux_boots(workspace, coracle, part)?;
    print!("{place}");
    run(&mut command)
}

/// Returns what `part` prints where Linux boots, after a line that says so if that is an emulated host.
///
/// # Errors
/// There is no such place, or `part` fails.
pub(super) fn capture_where_linux_boots(
    workspace: &Workspace,
    coracle: &Path,
    part: Command,
) -> Result<String> {
    let (mut command, place) = where_linux_boots(workspace, coracle, part)?;
    Ok(format!("{place}{}", capture(&mut command)?))
}

fn where_linux_boots(
    workspace: &Workspace,
    coracle: &Path,
    part: Command,
) -> Result<(Command, &'static str)> {
    let kind = capture(Command::new(coracle).args(["doctor", "--kind"]))?;
    if kind.trim() == "hardware" {
        return Ok((part, ""));
    }
    let mut command = Command::new(coracle);
    // One CPU: QEMU's emulation of nested paging occasionally fails with more.
    command.args(["host-emulate", "--cpus", "1"]);
    for folder in [&workspace.root, &workspace.data, &workspace.target] {
        command.arg("--share").arg(folder);
    }
    command.arg("--").arg(part.get_program()).args(part.get_args());
    Ok((command, "inside an emulated host, because this machine has no hardware KVM (`coracle doctor`)\n"))
}

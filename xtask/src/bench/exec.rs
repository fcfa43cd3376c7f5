//! The work of a sandbox service: commands in a running guest, whole runs for one command, streams to a port
//! of the guest (measured by `bench vsock`: `VmHandle::connect` leads to the same connections), and machines
//! per second.
//!
//! Each is compared with a limit measured in the same run. Linux guests run on this host's hardware or else
//! inside an emulated host; bare guests run on this machine's KVM.

use std::process::Command;

use anyhow::Result;

use super::{life, place, vsock};
use crate::process::run as run_command;
use crate::workspace::Workspace;
use crate::{guest, static_build};

/// Measures and prints the tables.
///
/// # Errors
/// A guest cannot be started, or does not behave as expected.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    guest::make(workspace, false)?;
    let coracle = static_build::coracle(workspace)?;
    // The program that measures is built for release, as the library is.
    let tasks = static_build::tasks(workspace)?;
    let mut part = Command::new(&tasks);
    part.args(["bench", "part", "exec-guest", "--runs", &runs.to_string(), "--data"]).arg(&workspace.data);
    part.arg("--coracle").arg(&coracle);
    place::run_where_linux_boots(workspace, &coracle, part)?;

    println!("\nBare guests on this machine's KVM\n");
    let rounds = (runs / RUNS_PER_ROUND).max(1);
    vsock::run(workspace, rounds)?;
    let payload = life::write_payload(&workspace.target.join("payloads"), "halt")?;
    let mut part = Command::new(tasks);
    part.args(["bench", "part", "churn", "--rounds", &rounds.to_string()]).arg(payload);
    run_command(&mut part)
}

/// A round transfers a whole file, or creates some hundred machines.
const RUNS_PER_ROUND: u32 = 40;

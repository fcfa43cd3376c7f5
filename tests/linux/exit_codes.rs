//! Tests of the exit codes that need a Linux guest, once each: `tests/exit_codes.rs` has the others, and the
//! check that none is missing.

use std::path::Path;

use super::common::exit_codes::{Case, OF_LINUX, check};
use super::common::{self, Finished, coracle, finish};
use super::no_linux;

#[test]
fn endings_of_a_command_have_their_codes_and_outcomes() {
    needs_linux!();
    assert!(OF_LINUX.iter().all(|row| CASES.iter().any(|case| case.row == *row)), "a row has no case");
    check(CASES);
}

const CASES: &[Case] = &[
    Case {
        row: ("111", "command-failed"),
        code: 111,
        run: |outcome| run(outcome, &["sh", "-c", LOSE_THE_AGENT]),
    },
    Case {
        row: ("111", "command-failed"),
        code: 111,
        run: |outcome| run(outcome, &["sh", "-c", "poweroff; sleep 60"]),
    },
    Case { row: ("126, 127", "command-failed"), code: 126, run: |outcome| run(outcome, &["/etc"]) },
    Case { row: ("126, 127", "command-failed"), code: 127, run: |outcome| run(outcome, &["/no/such"]) },
    Case {
        row: ("128 + n", "command-killed"),
        code: 137,
        run: |outcome| run(outcome, &["sh", "-c", "kill -9 $$"]),
    },
];

fn run(outcome: &Path, command: &[&str]) -> Finished {
    let mut run = coracle();
    run.args(["run", "--accel", "kvm", "--timeout", "60s", "--outcome"]).arg(outcome).arg("--").args(command);
    finish(&mut run)
}

/// Unbinds the driver of the vsock device, through which the agent communicates.
const LOSE_THE_AGENT: &str =
    "cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport && echo virtio* > unbind; sleep 60";

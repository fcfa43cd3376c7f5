//! Tests that provoke every exit code in the table of `docs/outcomes.md`, once.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::exit_codes::{Case, OF_EMULATED_HOST, OF_LINUX, OF_SIGNALS, check, documented};
use common::{Finished, collect, coracle, finish, payload, pseudo_terminal, run_payload, signal};
use coracle::command::terminal_mode;

#[test]
fn each_row_of_the_table_is_provoked_and_there_are_no_others() {
    let here = CASES
        .iter()
        .map(|case| case.row)
        .chain(OF_LINUX.iter().copied())
        .chain([OF_EMULATED_HOST, OF_SIGNALS]);
    let provoked: BTreeSet<_> = here.map(|(code, ending)| (code.to_owned(), ending.to_owned())).collect();
    assert_eq!(provoked, documented());
}

#[test]
fn endings_that_take_no_linux_have_their_codes_and_outcomes() {
    if common::kvm_or_skip() {
        check(CASES);
    }
}

#[test]
fn guest_that_ends_before_its_command_never_ends_with_0() {
    if !common::kvm_or_skip() {
        return;
    }
    let path = common::scratch().join("before-command.json");
    // The system for the agent; these guests do not look at it.
    let initrd = common::file("empty.cpio", EMPTY_ARCHIVE.as_bytes());
    for (guest, options, code, ending, words) in [
        ("poweroff", &[][..], 111, "command-failed", "the guest powered off before the command had started"),
        ("hello-exit", &[], 111, "command-failed", "ended with code 0 before the command had started"),
        ("exit-7", &[], 7, "exited", "the guest's workload ended with code 7"),
        ("exit-200", &[], 100, "exited", "the guest's workload ended with code 200"),
        ("panic", &[], 110, "panicked", "the guest's kernel panicked"),
        ("triple-fault", &[], 111, "crashed", "triple fault"),
        ("reset-acpi", &[], 112, "reset", "asked for a reset"),
        ("jump-to-mmio", &[], 113, "cannot-run", "KVM cannot run this guest"),
        ("halt", &["--on-halt", "exit"], 116, "halted", "the guest halted"),
        ("spin", &["--boot-timeout", "300ms"], 124, "timed-out", "did not reach its init"),
    ] {
        let mut command = run_payload(guest);
        command.arg("-i").arg(&initrd).args(options).arg("--outcome").arg(&path).args(["--", "true"]);
        finish(&mut command).expect(code, words);
        common::exit_codes::expect_outcome(&path, ("", ending), code);
        // Nothing is known about the command.
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(report.get("command_code"), None, "{report}");
    }
    let mut command = run_payload("hello-halt");
    let mut child =
        printed_one_byte(command.arg("-i").arg(&initrd).args(["--serial", "stdio", "--", "true"]));
    signal(&child, libc::SIGTERM);
    assert_eq!(common::wait(&mut child).code(), Some(128 + libc::SIGTERM));
}

/// Returns a cpio archive with only its end.
const EMPTY_ARCHIVE: &str = concat!(
    "070701",
    "00000000000000000000000000000000000000010000000000000000",
    "000000000000000000000000000000000000000B00000000",
    "TRAILER!!!\0\0\0\0"
);

const CASES: &[Case] = &[
    Case { row: ("0", "powered-off"), code: 0, run: |outcome| run("poweroff", outcome, &[]) },
    Case { row: ("0 to 99", "exited"), code: 7, run: |outcome| run("exit-7", outcome, &[]) },
    Case { row: ("100", "exited"), code: 100, run: |outcome| run("exit-200", outcome, &[]) },
    Case { row: ("110", "panicked"), code: 110, run: |outcome| run("panic", outcome, &[]) },
    Case { row: ("111", "crashed"), code: 111, run: |outcome| run("triple-fault", outcome, &[]) },
    Case { row: ("112", "reset"), code: 112, run: |outcome| run("reset-acpi", outcome, &[]) },
    Case { row: ("113", "cannot-run"), code: 113, run: |outcome| run("jump-to-mmio", outcome, &[]) },
    Case { row: ("115", "not-run"), code: 115, run: without_qemu },
    Case { row: ("116", "halted"), code: 116, run: |outcome| run("halt", outcome, &["--on-halt", "exit"]) },
    Case { row: ("117", "host-failed"), code: 117, run: kernel_is_gone_at_the_reset },
    Case { row: ("118", "stopped"), code: 118, run: stopped_at_the_terminal },
    Case {
        row: ("124", "timed-out"),
        code: 124,
        run: |outcome| run("spin", outcome, &["--timeout", "100ms"]),
    },
    Case { row: ("125", "not-run"), code: 125, run: |outcome| run("poweroff", outcome, &["-i", "/no/such"]) },
    Case {
        row: ("128 + n", "powered-off"),
        code: 128 + libc::SIGTERM,
        run: |outcome| signalled("button", libc::SIGTERM, outcome),
    },
    Case {
        row: ("128 + n", "signalled"),
        code: 128 + libc::SIGQUIT,
        run: |outcome| signalled("hello-halt", libc::SIGQUIT, outcome),
    },
];

fn run(payload: &str, outcome: &Path, args: &[&str]) -> Finished {
    finish(run_payload(payload).args(args).arg("--outcome").arg(outcome))
}

fn without_qemu(outcome: &Path) -> Finished {
    let mut command = coracle();
    command.args(["run", "--accel", "emulate"]).arg(payload("poweroff")).arg("--outcome").arg(outcome);
    finish(
        command
            .env("PATH", "/nonexistent")
            .env_remove(coracle_agent::protocol::emulated_host::environment::MARK),
    )
}

/// The ingredients of the first guest are not available again.
fn kernel_is_gone_at_the_reset(outcome: &Path) -> Finished {
    let kernel = payload("hello-reset");
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--on-reset", "reboot", "--timeout", "60s", "--outcome"]);
    let child = printed_one_byte(command.arg(outcome).arg(&kernel));
    fs::File::options().write(true).open(&kernel).unwrap().set_len(64).unwrap();
    collect(child)
}

fn stopped_at_the_terminal(outcome: &Path) -> Finished {
    let (mut person, program) = pseudo_terminal();
    let mut command = run_payload("echo");
    command.arg("--outcome").arg(outcome);
    let stream = |terminal: &OwnedFd| Stdio::from(terminal.try_clone().unwrap());
    command.stdin(stream(&program)).stdout(stream(&program)).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let is_raw = || terminal_mode(program.as_fd()).unwrap().c_lflag & libc::ICANON == 0;
    common::eventually("the terminal is raw", is_raw);
    person.write_all(b"\x01x").unwrap();
    collect(child)
}

fn signalled(payload: &str, number: i32, outcome: &Path) -> Finished {
    let child = printed_one_byte(run_payload(payload).arg("--outcome").arg(outcome));
    signal(&child, number);
    collect(child)
}

/// Starts the command and waits until its guest has printed a byte.
fn printed_one_byte(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

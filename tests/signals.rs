//! Tests of signals while the main thread of the command is busy: while a root is prepared, and while the
//! outcome is written to a FIFO.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{
    Finished, collect, coracle, eventually, file, finish, kvm_or_skip, run_payload, scratch, signal, wait,
};
use coracle_devices::signals::FAULTS;
use coracle_payload::Payload;

/// The signals that people and supervisors send, and some rare ones.
const ENDING: [i32; 9] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGSYS,
    // The first real-time signal of the C library, and the last.
    34,
    64,
];

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A run that makes an image of a large directory, in a directory of its own.
fn preparing(outcome: &Path, change: impl FnOnce(&mut Command)) -> (Child, PathBuf) {
    let folder = scratch().join(format!("tmp-{}", outcome.display().to_string().replace('/', "_")));
    fs::create_dir_all(&folder).unwrap();
    let kernel = file("linux", &Payload::named("spin").unwrap().bzimage(b"BZh91AY"));
    let mut command = coracle();
    command.env("TMPDIR", &folder).args(["run", "--accel", "kvm"]).arg(kernel);
    command.args(["--root", "path=/usr,as=disk", "--outcome"]).arg(outcome);
    change(&mut command);
    let child = start(&mut command);
    let open = format!("/proc/{}/fd", child.id());
    let is_writing = || {
        let files = fs::read_dir(&open).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(&folder))
    };
    eventually("the image is written", is_writing);
    (child, folder)
}

#[track_caller]
fn expect_early_end(run: &Finished, number: i32, outcome: &Path, folder: &Path) {
    run.expect(128 + number, "before the guest ran");
    let report = fs::read_to_string(outcome).unwrap();
    assert!(report.contains(&format!("\"code\": {}", 128 + number)), "{report}");
    assert!(report.contains("\"ending\": \"not-run\""), "{report}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "files are left in {}", folder.display());
}

#[test]
fn signal_ends_the_preparation_of_a_root() {
    needs_kvm!();
    for number in ENDING {
        let outcome = scratch().join(format!("prepare-{number}.json"));
        let (child, folder) = preparing(&outcome, |_| {});
        signal(&child, number);
        expect_early_end(&collect(child), number, &outcome, &folder);
    }
}

#[test]
fn signal_ends_the_preparation_for_a_command() {
    needs_kvm!();
    let outcome = scratch().join("command.json");
    let (child, folder) = preparing(&outcome, |command| {
        command.args(["--", "true"]);
    });
    signal(&child, libc::SIGTERM);
    expect_early_end(&collect(child), libc::SIGTERM, &outcome, &folder);
}

#[test]
fn ignored_signal_does_not_end_the_preparation() {
    needs_kvm!();
    let outcome = scratch().join("ignored.json");
    // The harness sets the dispositions of a terminal session; this child ignores SIGHUP after that, as under
    // nohup.
    let ignore = || {
        // SAFETY: sets a disposition of the new process.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    let (child, folder) = preparing(&outcome, |command| {
        // SAFETY: the closure makes only a system call.
        unsafe { command.pre_exec(ignore) };
    });
    signal(&child, libc::SIGHUP);
    signal(&child, libc::SIGTERM);
    expect_early_end(&collect(child), libc::SIGTERM, &outcome, &folder);
}

fn fifo(name: &str) -> PathBuf {
    let path = scratch().join(name);
    let text = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the string is nul-terminated and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o600) }, 0);
    path
}

#[test]
fn signal_ends_an_outcome_that_nobody_reads() {
    needs_kvm!();
    for number in ENDING {
        let outcome = fifo(&format!("unread-{number}"));
        let mut child = start(run_payload("exit-7").arg("--outcome").arg(&outcome));
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("code 7"), "{line}");
        signal(&child, number);
        assert_eq!(wait(&mut child).code(), Some(128 + number));
    }
}

#[test]
fn end_that_the_user_asks_for_does_not_wait_for_the_reader_of_an_outcome() {
    needs_kvm!();
    let unread = |name, limit| {
        let outcome = fifo(name);
        start(run_payload("spin").arg("--outcome").arg(&outcome).args(["--timeout", limit]))
    };
    collect(unread("unread-timeout", "300ms")).expect(124, "its reader has not taken all of it within 1 s");
    let child = unread("unread-quit", "60s");
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, libc::SIGQUIT);
    collect(child).expect(131, "stopped by signal 3");
}

#[test]
fn outcome_goes_to_a_fifo_that_is_read() {
    needs_kvm!();
    let outcome = fifo("read");
    let reader = std::thread::spawn({
        let outcome = outcome.clone();
        move || fs::read_to_string(outcome).unwrap()
    });
    finish(run_payload("exit-7").arg("--outcome").arg(&outcome)).expect(7, "code 7");
    assert!(reader.join().unwrap().contains("\"workload_code\": 7"));
}

#[test]
fn file_limit_is_an_error_of_the_outcome() {
    needs_kvm!();
    let outcome = scratch().join("limited.json");
    let mut command = run_payload("poweroff");
    let limit = || {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads the structure that it is given.
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) };
        Ok(())
    };
    // SAFETY: the closure makes only a system call.
    unsafe { command.pre_exec(limit) };
    finish(command.arg("--outcome").arg(outcome)).expect(125, "it cannot be written: File too large");
}

/// Starts a guest that ignores its power button, with two sockets, which exist when this returns.
fn with_sockets(name: &str) -> (Child, [PathBuf; 2]) {
    let sockets = ["vsock", "console"].map(|what| scratch().join(format!("{name}-{what}.sock")));
    let [vsock, console] = &sockets;
    let mut command = run_payload("spin");
    command.args(["--acpi", "off", "--vsock"]).arg(format!("uds={}", vsock.display()));
    let child = start(command.arg("--serial").arg(format!("socket={}", console.display())));
    eventually("the sockets are made", || sockets.iter().all(|socket| socket.exists()));
    (child, sockets)
}

#[test]
fn every_signal_that_ends_a_process_ends_the_machine_in_order() {
    needs_kvm!();
    // Excludes signals that stop a process, have no effect on it, are ignored by this program, or belong to a
    // fault. The C library keeps 32 and 33 for itself.
    let others = [
        [libc::SIGKILL, libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].as_slice(),
        &[libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGPIPE, libc::SIGXFSZ],
        &FAULTS,
        &[32, 33],
    ]
    .concat();
    for number in (1..=64).filter(|signal| !others.contains(signal)) {
        let (child, sockets) = with_sockets(&format!("every-{number}"));
        signal(&child, number);
        collect(child).expect(128 + number, &format!("stopped by signal {number}"));
        assert!(sockets.iter().all(|socket| !socket.exists()), "signal {number} leaves sockets");
    }
}

#[test]
fn fault_leaves_no_sockets() {
    needs_kvm!();
    for number in FAULTS {
        let (child, sockets) = with_sockets(&format!("fault-{number}"));
        signal(&child, number);
        assert_eq!(collect(child).status.signal(), Some(number));
        assert!(sockets.iter().all(|socket| !socket.exists()), "signal {number} leaves sockets");
    }
}

#[test]
fn signal_that_ends_tests_leaves_no_sockets() {
    needs_kvm!();
    let socket = scratch().join("tests.sock");
    for number in ENDING {
        let mut command = coracle();
        command.args(["test", "--accel", "kvm", "--vsock"]).arg(format!("uds={}", socket.display()));
        let child = start(command.arg(common::payload("spin")));
        eventually("the socket is made", || socket.exists());
        signal(&child, number);
        collect(child).expect(128 + number, "stopped by signal");
        assert!(!socket.exists(), "signal {number} leaves the socket");
    }
}

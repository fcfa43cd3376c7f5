//! Tests with a stderr that nobody reads: every run still ends in time, with its own exit code, and a reader
//! that comes later gets the reason.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{coracle, kvm_or_skip, run_payload, scratch, signal, wait};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

/// Creates a full pipe, and returns both its ends.
fn full_pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    let [reader, mut writer] = ends.map(|fd| {
        // SAFETY: the descriptor is new and nobody else's.
        File::from(unsafe { OwnedFd::from_raw_fd(fd) })
    });
    // SAFETY: the call only asks for the smallest pipe size.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    writer.write_all(&vec![b'.'; usize::try_from(size).unwrap()]).unwrap();
    (reader, writer)
}

/// Starts `command` with a full stderr, calls `during`, and waits for the end. Returns the exit code, and the
/// time since then.
fn run_unread(command: &mut Command, during: impl FnOnce(&std::process::Child)) -> (Option<i32>, Duration) {
    let (reader, writer) = full_pipe();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    during(&child);
    let start = Instant::now();
    let status = wait(&mut child);
    drop(reader);
    (status.code(), start.elapsed())
}

fn flood() -> Command {
    let disk = scratch().join(format!("{:?}.img", thread::current().id()));
    File::create(&disk).unwrap().set_len(64 << 10).unwrap();
    let mut command = run_payload("log-flood");
    command.arg("--disk").arg(disk);
    command
}

#[test]
fn time_limit_ends_a_guest_that_floods_the_log() {
    needs_kvm!();
    assert_eq!(run_unread(flood().args(["--timeout", "1s"]), |_| {}).0, Some(124));
}

#[test]
fn signal_ends_a_guest_that_floods_the_log() {
    needs_kvm!();
    for (number, code) in [(libc::SIGTERM, 143), (libc::SIGQUIT, 131)] {
        let mut command = flood();
        // Without a power button the first signal stops the guest.
        let ended = run_unread(command.args(["--acpi", "off"]), |child| {
            thread::sleep(Duration::from_millis(500));
            signal(child, number);
        });
        assert_eq!(ended.0, Some(code));
    }
}

#[test]
fn guest_that_powers_off_has_its_own_code() {
    needs_kvm!();
    assert_eq!(run_unread(&mut run_payload("poweroff"), |_| {}).0, Some(0));
    assert_eq!(run_unread(run_payload("exit-7").arg("-vv"), |_| {}).0, Some(7));
}

#[test]
fn usage_errors_end_too() {
    assert_eq!(run_unread(coracle().args(["run", "--no-such-option"]), |_| {}).0, Some(125));
    assert_eq!(run_unread(coracle().args(["run", "/no/such/kernel"]), |_| {}).0, Some(125));
}

#[test]
fn reason_comes_last_whoever_is_slow_to_read() {
    needs_kvm!();
    let (mut reader, writer) = full_pipe();
    let mut command = flood();
    command.args(["--timeout", "3s", "-vv"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut child = command.spawn().unwrap();
    // The command's own copy of the writing end.
    drop(command);
    thread::sleep(Duration::from_secs(3));
    let read = thread::spawn(move || {
        let mut text = Vec::new();
        let mut piece = [0; 512];
        while let Ok(count @ 1..) = reader.read(&mut piece) {
            text.extend_from_slice(&piece[..count]);
            thread::sleep(Duration::from_millis(50));
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    assert_eq!(wait(&mut child).code(), Some(124));
    let text = read.join().unwrap();
    let has_reason = |line: &str| line.starts_with("coracle: ") && line.contains("timed out after 3 s");
    assert!(text.lines().any(has_reason), "{text}");
}

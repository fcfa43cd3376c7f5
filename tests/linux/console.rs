//! Tests of kernels whose console is a virtio console, `hvc0`.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};

use coracle::guest_data::{self, GuestData};

use super::common::{collect, coracle, pseudo_terminal, scratch, signal};
use super::{Transcript, common, linux, no_linux, run};

#[test]
fn hvc0_is_the_console_and_the_serial_port_keeps_the_kernels_words() {
    needs_linux!();
    let log = scratch().join("kernel.log");
    let serial = format!("file={}", log.display());
    let run = run("report", &["--console", "virtio", "--serial", &serial, "-a", "loglevel=5"]);
    run.expect(0, "the guest powered off");
    let text = run.text();
    assert!(text.contains("console  ttyS0 hvc0") || text.contains("console  hvc0 ttyS0"), "{text}");
    assert!(text.contains("virtio0 (virtio_console)"), "{text}");
    let serial = fs::read_to_string(log).unwrap();
    assert!(!serial.contains("coracle guest"), "the report is on hvc0 alone: {serial}");
}

#[test]
fn shell_on_hvc0_reads_what_was_typed_before_the_boot_and_a_flood_arrives_whole() {
    needs_linux!();
    type_early(GuestData::GuestVmlinux);
}

#[test]
fn tuned_kernel_reads_what_was_typed_before_the_boot_too() {
    needs_linux!();
    match guest_data::find(GuestData::TunedVmlinux) {
        Ok(_) => type_early(GuestData::TunedVmlinux),
        Err(error) => common::skip(&error.to_string()),
    }
}

fn type_early(kernel: GuestData) {
    let mut command = linux(kernel, "shell");
    command.args(["--console", "virtio", "--cpus", "2"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let typed = "stty -echo -opost; echo st''art; head -c 300000 /dev/zero | tr '\\0' x; echo e''nd; exit\n";
    stdin.write_all(typed.as_bytes()).unwrap();
    let run = collect(child);
    run.expect(0, "the guest powered off");
    let text = run.text();
    let flood = text.rsplit_once("start").and_then(|(_, rest)| rest.split_once("end"));
    let (flood, _) = flood.unwrap_or_else(|| panic!("{} bytes", text.len()));
    assert_eq!(flood.bytes().filter(|byte| *byte == b'x').count(), 300_000, "{}", run.stderr);
    assert!(!run.stderr.contains("were lost"), "{}", run.stderr);
}

#[test]
fn shell_of_the_default_guest_has_the_size_of_the_callers_terminal_and_its_ctrl_c() {
    needs_linux!();
    // The kernel's messages come through the serial port.
    let mut seen = shell_at_a_terminal(&["-a", "loglevel=5"]);
    assert!(seen.before.contains("System does not support PCI"), "{}", seen.before);
    seen.typed("tty; echo console $(cat /sys/class/tty/console/active)", "console ttyS0\r");
    assert!(seen.before.contains("/dev/hvc0"), "{}", seen.before);
    // Apart from what the shell writes, because both consoles write to one terminal in pieces.
    seen.typed("sleep 1; echo '<0>from the kernel' > /dev/kmsg; sleep 1", "] from the kernel");
    seen.typed("poweroff", "the guest powered off");
    assert_eq!(common::wait(&mut seen.child).code(), Some(0));
}

#[test]
fn console_on_hvc0_has_the_size_of_the_callers_terminal_too() {
    needs_linux!();
    let mut seen = shell_at_a_terminal(&["--console", "virtio"]);
    seen.typed("cat /sys/class/tty/console/active", "hvc0");
    seen.typed("exit", "the guest powered off");
    assert_eq!(common::wait(&mut seen.child).code(), Some(0));
}

/// A guest with a shell on a terminal.
struct Session {
    child: Child,
    terminal: File,
    transcript: Transcript,
    /// The text before the awaited words.
    before: String,
}

impl Session {
    /// Types a line and waits for these words.
    #[track_caller]
    fn typed(&mut self, line: &str, words: &str) {
        self.terminal.write_all(format!("{line}\r").as_bytes()).unwrap();
        self.before = self.transcript.until(&mut self.terminal, words);
    }
}

/// Tests the default guest on a terminal: it follows the size, and Ctrl-C works.
fn shell_at_a_terminal(args: &[&str]) -> Session {
    let (mut terminal, inside) = pseudo_terminal();
    resize(&terminal, 132, 43);
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).args(args);
    let stream = || Stdio::from(inside.try_clone().unwrap());
    let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    drop(inside);
    let mut transcript = Transcript::default();
    let before = transcript.until(&mut terminal, "# ");
    let mut session = Session { child, terminal, transcript, before: String::new() };
    session.typed("stty size", "43 132");
    resize(&session.terminal, 77, 20);
    signal(&session.child, libc::SIGWINCH);
    session.typed("until stty size | grep '20 77'; do sleep 0.1; done", "\n20 77");
    // A single process group prints and sleeps: a shell that has yet to start `sleep` would get the ^C
    // itself.
    session.typed("sh -c \"echo sl''eeps; exec sleep 1000\"", "sleeps");
    session.terminal.write_all(b"\x03").unwrap();
    session.transcript.until(&mut session.terminal, "# ");
    Session { before, ..session }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = libc::winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize at the given address.
    assert_eq!(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
}

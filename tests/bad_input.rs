//! Bad input: one sentence that names the thing, what it is and what would work, and code 125, before a guest runs.

mod common;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use common::{Finished, coracle, file, finish, payload, scratch};

fn run(kernel: &Path, args: &[&str]) -> Finished {
    finish(coracle().args(["run", "--accel", "kvm"]).arg(kernel).args(args))
}

#[track_caller]
fn refused(run: &Finished, words: &[&str]) {
    assert_eq!(run.code(), 125, "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stdout.is_empty(), "{run:?}");
    for words in words {
        assert!(run.stderr.contains(words), "{words:?} is not in {:?}", run.stderr);
    }
}

fn elf(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(payload("poweroff")).unwrap();
    change(&mut bytes);
    file(name, &bytes)
}

#[test]
fn kernels_that_are_no_files_are_refused() {
    refused(&run(Path::new("/no/such/kernel"), &[]), &["/no/such/kernel"]);
    refused(&run(Path::new("/"), &[]), &["directory"]);
    refused(&run(Path::new("/dev/null"), &[]), &["/dev/null"]);
    refused(&run(&fifo("kernel-fifo"), &[]), &["FIFO"]);
}

fn fifo(name: &str) -> PathBuf {
    let fifo = scratch().join(name);
    let path = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a valid string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    fifo
}

#[test]
fn kernels_of_the_wrong_kind_say_what_they_are() {
    refused(&run(&file("empty", b""), &[]), &["empty"]);
    refused(&run(&file("text", b"#!/bin/sh\necho no kernel\n"), &[]), &["script"]);
    refused(&run(&elf("elf32", |bytes| bytes[4] = 1), &[]), &["32-bit"]);
    refused(&run(&elf("elf-arm", |bytes| bytes[18] = 183), &[]), &["x86-64"]);
    refused(&run(&elf("short", |bytes| bytes.truncate(30_000)), &[]), &["short"]);
    let mut image = vec![0u8; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    refused(&run(&file("arm64-Image", &image), &[]), &["arm64"]);
    refused(&run(&file("packed.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03not really"), &[]), &["gzip", "gunzip"]);
}

#[test]
fn initrds_that_cannot_be_read_are_refused() {
    let kernel = payload("poweroff");
    refused(&run(&kernel, &["-i", "/no/such/initrd"]), &["/no/such/initrd"]);
    refused(&run(&kernel, &["-i", "/"]), &["directory"]);
    let empty = file("empty-initrd", b"");
    refused(&run(&kernel, &["-i", empty.to_str().unwrap()]), &["empty"]);
}

#[test]
fn command_line_that_is_too_long_names_both_lengths() {
    let run = run(&payload("poweroff"), &["-a", &"x".repeat(70_000)]);
    refused(&run, &["command line", "70"]);
}

#[test]
fn values_out_of_range_are_bad_usage() {
    let kernel = payload("poweroff");
    let cases: &[(&[&str], &str)] = &[
        (&["--cpus", "0"], "from 1 to 64"),
        (&["--cpus", "65"], "from 1 to 64"),
        (&["--cpus", "-1"], "from 1 to 64"),
        (&["--memory", "1M"], "from 2M to 1T"),
        (&["--memory", "lots"], "not a size"),
        (&["--memory", "size=3M,hugepages=2M"], "give a multiple of 2M"),
        (&["--memory", "size=1G,hugepages=4K"], "hugepages=2M, hugepages=1G or memfd"),
        (&["--timeout", "soon"], "not a time"),
        (&["--timeout", "0"], "no time"),
        (&["--serial", "tty"], "stdio, pty, file=PATH, socket=PATH or null"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (args, words) in cases {
        let run = run(&kernel, args);
        assert_eq!(run.code(), 125, "{args:?}: {run:?}");
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn command_for_the_guest_is_refused_clearly() {
    refused(&run(&payload("poweroff"), &["--", "true"]), &["after `--`"]);
}

#[test]
fn serial_file_that_cannot_be_made_is_refused() {
    refused(&run(&payload("poweroff"), &["--serial", "file=/no/such/folder/log"]), &["/no/such/folder/log"]);
}

#[test]
fn serial_fifo_without_a_reader_is_refused() {
    let fifo = fifo("serial-fifo");
    refused(&run(&payload("poweroff"), &["--serial", &format!("file={}", fifo.display())]), &["serial-fifo"]);
}

#[test]
fn help_and_version_are_answers() {
    let help = finish(coracle().args(["run", "--help"]));
    assert_eq!(help.code(), 0);
    assert!(help.text().contains("console=ttyS0"), "the default command line is not in the help");
    assert_eq!(finish(coracle().arg("--version")).code(), 0);
    assert_eq!(finish(&mut coracle()).code(), 125);
}

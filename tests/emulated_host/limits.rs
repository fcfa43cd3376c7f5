//! Tests of what a command on the emulated host cannot change for its caller, and how long that host may
//! take.

use std::ffi::OsStr;
use std::fs;

use coracle::command::emulated_host::{self, EmulatedExit, EmulatedHostArgs};

use super::{Run, Scratch, common, emulate_with_options, has_qemu, shown};

#[test]
fn files_of_the_caller_are_read_only_where_that_is_wanted() {
    needs_qemu!();
    let scratch = Scratch::new("read-only");
    fs::write(scratch.0.join("file"), "old").unwrap();
    let script = "cat file; for try in 'echo x > file' ': > new' 'chmod 777 file' 'rm file' 'mv file g' ': > /coracle-x'; do
            (eval \"$try\") 2>/dev/null && echo \"done: $try\"
        done; echo own > /tmp/own; cat /tmp/own";
    let mut command =
        emulate_with_options(["--read-only", "/"].map(OsStr::new), ["sh", "-c", script].map(OsStr::new));
    command.current_dir(&scratch.0);
    let output = Run::start(command).finish();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "oldown\n", "{}", shown(&output));
    assert_eq!(fs::read_to_string(scratch.0.join("file")).unwrap(), "old");
}

/// The same options as a run that writes an outcome and artifacts.
#[test]
fn only_the_files_that_are_named_can_be_changed() {
    needs_qemu!();
    if !common::is_alone("limits::only_the_files_that_are_named_can_be_changed") {
        return;
    }
    let scratch = Scratch::new("writable");
    let at = |name: &str| scratch.0.join(name);
    for name in ["open", "closed"] {
        fs::write(at(name), "old").unwrap();
    }
    fs::create_dir(at("folder")).unwrap();
    let script =
        "cd \"$0\" && truncate -s 1 open && printf new > open && printf made > folder/made && cat closed >/dev/null || exit 1
        for try in 'printf x > closed' ': > other' 'rm closed' ': > /coracle-x'; do
            (eval \"$try\") 2>/dev/null && exit 2
        done; chmod 777 closed; exit 0";
    let command = ["sh", "-c", script].map(Into::into).into_iter().chain([scratch.0.clone().into()]);
    let exit = emulated_host::run(&EmulatedHostArgs {
        command: command.collect(),
        shares: vec![scratch.0.clone()],
        writable: Some(vec![at("open"), at("folder")]),
        ..EmulatedHostArgs::default()
    });
    assert_eq!(exit.unwrap(), EmulatedExit::Code(0));
    let read = |name: &str| fs::read_to_string(at(name)).unwrap();
    assert_eq!([read("open"), read("closed"), read("folder/made")], ["new", "old", "made"]);
    assert!(!at("other").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(at("closed")).unwrap().permissions());
    assert_ne!(mode & 0o777, 0o777);
}

#[test]
fn signal_from_inside_is_told_apart_from_one_of_the_caller() {
    needs_qemu!();
    if !common::is_alone("limits::signal_from_inside_is_told_apart_from_one_of_the_caller") {
        return;
    }
    let run = |script: &str| {
        let command = ["sh", "-c", script].map(Into::into).to_vec();
        emulated_host::run(&EmulatedHostArgs { command, ..EmulatedHostArgs::default() }).unwrap()
    };
    assert_eq!(run("kill -KILL $$"), EmulatedExit::Killed(9));
    // The signal is for the thread that waits for the command; the test harness has others.
    // SAFETY: gettid has no arguments and always succeeds.
    let (process, thread) = (std::process::id(), unsafe { libc::gettid() });
    let scratch = Scratch::new("passed-on");
    let ready = scratch.0.join("ready");
    fs::write(&ready, "").unwrap();
    let sender = std::thread::spawn({
        let ready = ready.clone();
        move || {
            common::eventually("the command runs", || !fs::read(&ready).unwrap().is_empty());
            // SAFETY: sends a signal to a thread of this process that waits for this one.
            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGTERM) }, 0);
        }
    });
    let command = ["sh", "-c", "echo > $0; while :; do sleep 0.05; done"].map(Into::into).into_iter();
    let exit = emulated_host::run(&EmulatedHostArgs {
        command: command.chain([ready.clone().into()]).collect(),
        shares: vec![ready],
        ..EmulatedHostArgs::default()
    });
    sender.join().unwrap();
    assert_eq!(exit.unwrap(), EmulatedExit::Signal(15));
}

#[test]
fn limit_of_the_boot_is_an_option_and_is_named_when_it_is_over() {
    needs_qemu!();
    let command = emulate_with_options(["--host-timeout", "50ms"].map(OsStr::new), [OsStr::new("true")]);
    let output = Run::start(command).finish();
    assert_eq!(output.status.code(), Some(115), "{}", shown(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("did not come up within 0.05 s; --host-timeout gives it more"), "{said}");
}

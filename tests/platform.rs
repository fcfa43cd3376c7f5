//! Tests of the machine's own devices and policies, with bare payloads on `/dev/kvm` of any kind: the power
//! button and the signals that press it, panics, resets, halts.

mod common;

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{collect, eventually, finish, kvm_or_skip, run_payload, scratch, signal};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn panic_ends_with_110_by_device_by_silence_and_by_reset() {
    needs_kvm!();
    for (name, evidence) in
        [("pvpanic", "device"), ("panic-silence", "silence"), ("panic", "reset"), ("crash-kernel", "reset")]
    {
        let path = scratch().join(format!("{name}.json"));
        let mut command = run_payload(name);
        command.args(["--timeout", "40s", "--outcome"]).arg(&path);
        finish(&mut command).expect(110, "kernel panicked");
        assert_eq!(json(&path)["panic_evidence"], evidence, "{name}");
    }
}

#[test]
fn mere_words_of_a_panic_end_nothing() {
    needs_kvm!();
    finish(run_payload("panic-words").args(["--timeout", "3s"])).expect(124, "timed out");
    finish(&mut run_payload("panic-restart")).expect(112, "reset (keyboard controller)");
}

#[test]
fn output_that_was_taken_reaches_a_slow_reader_before_the_end() {
    needs_kvm!();
    let mut command = run_payload("pvpanic");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // SAFETY: the pipe is open. It holds half of the output; the rest is in Coracle when the guest has ended.
    unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    let has_ended = || {
        fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().all(|task| {
            let name = fs::read_to_string(task.unwrap().path().join("comm"));
            !name.is_ok_and(|name| name.starts_with("vcpu"))
        })
    };
    eventually("the guest runs", || !has_ended());
    eventually("the guest has ended", has_ended);
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    let run = collect(child);
    run.expect(110, "kernel panicked");
    assert_eq!(bytes.len(), 8193, "{}", run.stderr);
    assert!(!run.stderr.contains("lost"), "{}", run.stderr);
}

#[test]
fn reset_restarts_the_guest_if_the_policy_says_so() {
    needs_kvm!();
    let path = scratch().join("lives.json");
    let mut command = run_payload("hundred-lives");
    command.args(["--on-reset", "reboot", "--cpus", "2", "--memory", "16M", "--outcome"]).arg(&path);
    finish(&mut command).expect(0, "code 0");
    assert_eq!(json(&path)["resets"], 99);
    // In each life: two accesses to COM1, three to the clock, and one reset; at the end, the exit code.
    assert!(json(&path)["exits"]["port_out"].as_u64().unwrap() >= 500, "{}", json(&path)["exits"]);
    assert_eq!(json(&path)["later_events"], 0);
}

#[test]
fn panic_and_crash_end_a_machine_that_outlives_resets() {
    needs_kvm!();
    finish(run_payload("panic").args(["--on-reset", "reboot"])).expect(110, "kernel panicked");
    finish(run_payload("triple-fault").args(["--on-reset", "reboot"])).expect(111, "triple fault");
}

#[test]
fn time_limit_spans_all_lives() {
    needs_kvm!();
    let mut command = run_payload("hello-reset");
    command.args(["--on-reset", "reboot", "--timeout", "500ms"]);
    let run = finish(&mut command);
    run.expect(124, "timed out after 0.5 s");
    assert!(run.stdout.len() > 1, "{run:?}");
}

#[test]
fn halt_for_good_ends_with_116_where_that_is_wanted() {
    needs_kvm!();
    for cpus in ["1", "4"] {
        let run = finish(run_payload("halt").args(["--on-halt", "exit", "--timeout", "40s", "--cpus", cpus]));
        run.expect(116, "halted");
    }
}

#[test]
fn guest_that_idles_or_spins_has_not_halted_for_good() {
    needs_kvm!();
    for name in ["idle", "spin", "spin-ring3"] {
        let run = finish(run_payload(name).args(["--on-halt", "exit", "--timeout", "2500ms"]));
        run.expect(124, "timed out");
    }
}

#[test]
fn first_signal_presses_the_power_button_and_a_guest_that_heeds_it_powers_off() {
    needs_kvm!();
    for (number, name) in [(libc::SIGTERM, "TERM"), (libc::SIGINT, "INT"), (libc::SIGHUP, "HUP")] {
        let path = scratch().join(format!("button-{number}.json"));
        let child = printed_one_byte(run_payload("button").arg("--outcome").arg(&path));
        signal(&child, number);
        let run = collect(child);
        run.expect(128 + number, &format!("the guest powered off, asked to by signal {number} (SIG{name})"));
        assert_eq!(json(&path)["ending"], "powered-off");
        assert_eq!(json(&path)["signal"], number);
        assert_eq!(json(&path)["code"], 128 + number);
    }
}

#[test]
fn guest_that_ignores_the_button_is_stopped_after_the_grace() {
    needs_kvm!();
    let path = scratch().join("grace.json");
    let child = printed_one_byte(run_payload("hello-halt").arg("--outcome").arg(&path));
    let start = Instant::now();
    signal(&child, libc::SIGTERM);
    collect(child).expect(143, "stopped by signal 15 (SIGTERM)");
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(json(&path)["ending"], "signalled");
}

#[test]
fn second_signal_and_a_machine_without_a_button_leave_no_grace() {
    needs_kvm!();
    let path = scratch().join("second.json");
    let child = printed_one_byte(run_payload("hello-halt").arg("--outcome").arg(&path));
    signal(&child, libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, libc::SIGINT);
    // After the grace period it would be the first signal's code.
    collect(child).expect(130, "SIGINT");

    common::unless_spoilt(|| {
        let child = printed_one_byte(run_payload("button").args(["--acpi", "off", "--outcome"]).arg(&path));
        signal(&child, libc::SIGTERM);
        collect(child).expect(143, "stopped by signal 15");
        let duration = json(&path)["duration_ms"].as_f64().unwrap();
        if duration < 5000.0 { Ok(()) } else { Err(format!("{duration} ms")) }
    });
}

#[test]
fn signal_that_the_caller_ignores_stays_ignored() {
    needs_kvm!();
    let mut command = run_payload("button");
    let ignore = || {
        // SAFETY: the call only sets a disposition of the new process, as nohup does.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure makes only a system call.
    unsafe { command.pre_exec(ignore) };
    let child = printed_one_byte(&mut command);
    signal(&child, libc::SIGHUP);
    signal(&child, libc::SIGTERM);
    collect(child).expect(143, "asked to by signal 15 (SIGTERM)");
}

/// Starts a payload and waits until it has printed a byte.
fn printed_one_byte(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

//! Tests that memory given back by a bare payload returns to the host.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

use common::{collect, finish, kvm_or_skip, payload, run_payload};
use coracle::config::VmConfig;
use coracle::{Grace, VmBuilder};

/// Returns the memory that a process has in use, in KiB.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_that_the_guest_gives_returns_to_the_host() {
    if !kvm_or_skip() {
        return;
    }
    for memory in ["128M", "size=128M,memfd"] {
        let mut command = run_payload("virtio-balloon");
        command.args(["--balloon", "--timeout", "50s", "--memory", memory]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut keyboard = child.stdin.take().unwrap();
        let mut after = |letter: u8| {
            let mut said = [0];
            child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            assert_eq!(said[0], letter);
            let resident = resident(child.id());
            keyboard.write_all(b"x").unwrap();
            resident
        };
        let (touched, reported) = (after(b't'), after(b'r'));
        assert!(touched >= reported + (60 << 10), "{memory}: {touched} KiB, {reported} KiB after the report");
        let (touched, inflated) = (after(b't'), after(b'i'));
        assert!(touched >= inflated + (60 << 10), "{memory}: {touched} KiB, {inflated} KiB with the balloon");
        collect(child).expect(0, "code 0");
    }
}

#[test]
fn target_is_for_machines_with_a_balloon() {
    if !kvm_or_skip() {
        return;
    }
    for has_balloon in [true, false] {
        let mut config = VmConfig::new(payload("idle"));
        config.balloon = has_balloon;
        let vm = VmBuilder::new(config).start().unwrap();
        assert_eq!(vm.handle().set_balloon(64 << 20), has_balloon);
        assert_eq!(vm.handle().balloon().map(|status| status.target_bytes), has_balloon.then_some(64 << 20));
        vm.stop(Grace::NONE);
    }
}

#[test]
fn machine_without_a_balloon_has_no_window_for_it() {
    if !kvm_or_skip() {
        return;
    }
    finish(run_payload("virtio-balloon").args(["--timeout", "20s"])).expect(1, "code 1");
}

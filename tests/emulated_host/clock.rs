//! Tests of time in the guests of an emulated host.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Run, Scratch, common, coracle, emulate, has_qemu, shown};

/// On a busy machine, the kernel's early measurement of the TSC is occasionally wrong. Here it is wrong by
/// 0.1 % for certain, because a wrapper of QEMU sets the frequency.
#[test]
fn timers_of_guests_end_where_the_first_measurement_of_the_tsc_was_wrong() {
    needs_qemu!();
    let scratch = Scratch::new("tsc");
    let qemu = scratch.0.join("qemu-system-x86_64");
    let script = r#"#!/bin/bash
words=("$@")
for at in "${!words[@]}"; do
    [ "${words[at]}" = -append ] && words[at + 1]+=" tsc_early_khz=$EARLY_KHZ"
done
PATH=${PATH#*:} exec qemu-system-x86_64 "${words[@]}""#;
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();

    let early = tsc_khz() * 999 / 1000;
    let detected = format!("{}.{:03}", early / 1000, early % 1000);
    // The early frequency is used first, and another is measured later.
    let inside = format!(
        "dmesg | grep -o 'Detected {detected} MHz' || exit 1
        for i in $(seq 60); do dmesg | grep -q 'Refined TSC' && break; sleep 1; done
        dmesg | grep -q 'Refined TSC' || exit {NOT_MEASURED}
        exec {coracle} run --accel kvm --timeout 60s -- sh -c 'for i in 0 1 2 3 4 5 6 7 8 9; do sleep 1; done; echo awake'",
        coracle = coracle().to_str().unwrap()
    );
    let mut command = emulate(&inside);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", scratch.0.display())).env("EARLY_KHZ", early.to_string());
    let output = Run::start(command).finish();
    if output.status.code() == Some(NOT_MEASURED) {
        return common::skip("the emulated host's kernel has not measured its TSC again within 60 s");
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("awake\n"), "{}", shown(&output));
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}

/// The exit code of a script whose host does not come so far: a kernel whose measurements differ from each
/// other takes none.
const NOT_MEASURED: i32 = 9;

/// Returns the frequency known to this machine's kernel (`proc(5)`: BogoMIPS are twice the TSC's MHz).
fn tsc_khz() -> u64 {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = cpus.lines().find(|line| line.starts_with("bogomips")).unwrap();
    let mips: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    (mips * 500.0) as u64
}

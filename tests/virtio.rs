//! Tests of virtio devices, driven by bare payloads on `/dev/kvm` of any kind: doorbells and interrupts
//! through KVM.

mod common;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Finished, finish, kvm_or_skip, payload, run_payload, scratch, signal};
use coracle::VmBuilder;
use coracle::config::{DiskConfig, VmConfig};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

/// Creates a disk with this many sectors, all zero.
fn disk(name: &str, sectors: u64) -> PathBuf {
    let path = scratch().join(name);
    fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
    path
}

fn with_disk(name: &str, disk: &str) -> Command {
    let mut command = run_payload(name);
    command.args(["--timeout", "30s", "--disk", disk]);
    command
}

#[track_caller]
fn refused(disk: &str, words: &str) {
    let run: Finished = finish(&mut with_disk("poweroff", disk));
    run.expect(125, words);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}

#[test]
fn entropy_comes_with_an_interrupt_in_every_life_of_the_device() {
    needs_kvm!();
    finish(run_payload("virtio-rng").args(["--rng", "--timeout", "20s"])).expect(0, "code 0");
}

/// A driver that has started its device rings it without an exit; KVM takes these writes by itself.
#[test]
fn doorbells_of_a_started_device_cause_no_exit() {
    needs_kvm!();
    let (image, outcome) = (disk("doorbells.img", 64 << 11), scratch().join("doorbells.json"));
    let disk = format!("path={},poll=off", image.display());
    let mut command = with_disk("block-read-1", &disk);
    finish(command.arg("--outcome").arg(&outcome)).expect(0, "");
    let outcome: serde_json::Value = serde_json::from_slice(&fs::read(outcome).unwrap()).unwrap();
    let writes = outcome["exits"]["mmio_write"].as_u64().unwrap();
    // 18 set the device up. The doorbells, of which the driver rings hundreds, would come on top.
    assert!((1..=30).contains(&writes), "{outcome}");
}

#[test]
fn machine_without_devices_has_no_register_window() {
    needs_kvm!();
    finish(run_payload("virtio-rng").args(["--timeout", "20s"])).expect(1, "code 1");
}

#[test]
fn disk_outlives_damaged_rings_and_resets_of_the_machine() {
    needs_kvm!();
    let path = disk("lives.img", 64);
    for words in ["", ",engine=io_uring,queues=3,id=lives"] {
        fs::write(&path, [0; 64 * 512]).unwrap();
        let mut command = with_disk("virtio-block", &format!("path={}{words}", path.display()));
        finish(command.args(["--on-reset", "reboot"])).expect(0, "code 0");
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 64 * 512);
        assert!(content[5 * 512..6 * 512].iter().all(|byte| *byte == 3));
        assert!(content[..5 * 512].iter().chain(&content[6 * 512..]).all(|byte| *byte == 0));
    }
}

#[test]
fn overlay_lives_as_long_as_the_machine() {
    needs_kvm!();
    if common::is_nearly_full("/var/tmp") {
        return common::skip("overlays leave the last 5 % of a file system free, and /var/tmp has no more");
    }
    let path = disk("overlaid.img", 64);
    let mut command = with_disk("virtio-block", &format!("{},cow", path.display()));
    finish(command.env("TMPDIR", "/var/tmp").args(["--on-reset", "reboot"])).expect(0, "code 0");
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_no_disk_is_refused_before_the_guest_runs() {
    needs_kvm!();
    refused("/no/such/disk", "--disk /no/such/disk: it cannot be opened: No such file");
    refused("/tmp", "--disk /tmp: a disk has to be a regular file or a block device");
    refused(disk("empty.img", 0).to_str().unwrap(), "and this has 0 bytes");
    let odd = scratch().join("odd.img");
    fs::write(&odd, [0; 700]).unwrap();
    refused(odd.to_str().unwrap(), "and this has 700 bytes");
    let path = disk("twice.img", 8);
    let mut command = with_disk("poweroff", &format!("{},id=a", path.display()));
    command.args(["--disk", &format!("{},id=a", disk("other.img", 8).display())]);
    finish(&mut command).expect(125, "it has the id a, which another device (--disk");
    let mut command = with_disk("poweroff", path.to_str().unwrap());
    finish(command.arg("--disk").arg(&path)).expect(125, "twice.img: another program, or another disk");
}

#[test]
fn disk_of_a_running_machine_is_not_given_to_another() {
    needs_kvm!();
    let path = disk("held.img", 64);
    let mut running = with_disk("hello-halt", path.to_str().unwrap());
    let mut child = running.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Its first byte comes once it has the disk.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    for access in ["", ",ro"] {
        refused(
            &format!("{}{access}", path.display()),
            "held.img: another program, or another disk of this one, has it open",
        );
    }
    signal(&child, libc::SIGQUIT);
    common::wait(&mut child);
    finish(&mut with_disk("poweroff", path.to_str().unwrap())).expect(0, "powered off");
}

/// A truncated file simulates a host that has run out of space.
#[test]
fn request_that_the_host_refuses_pauses_the_machine_until_it_is_resumed() {
    needs_kvm!();
    let path = scratch().join("full.img");
    fs::write(&path, [0; 64 * 512]).unwrap();
    let mut config = VmConfig::new(payload("virtio-block"));
    config.disks.push(DiskConfig {
        on_error: "path=x,on-error=pause".parse::<DiskConfig>().unwrap().on_error,
        ..DiskConfig::new(&path)
    });
    config.timeout = Some(std::time::Duration::from_secs(30));
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let vm = VmBuilder::new(config).build().unwrap();
    // The file is truncated before the guest reaches that part, and repaired while it waits.
    file.set_len(512).unwrap();
    vm.handle().resume();
    assert!(vm.handle().wait_for(std::time::Duration::from_millis(500)).is_none(), "it waits");
    file.set_len(64 * 512).unwrap();
    vm.handle().resume();
    let outcome = vm.wait();
    // The payload's first life resets the machine.
    assert_eq!(outcome.exit_code(), 112, "{}", outcome.reason());
    assert!(outcome.disk_errors >= 1);
}

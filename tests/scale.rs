//! Tests of large machines and of many at once: what one more costs does not depend on how many there are.

mod common;

use std::fs::{self, File};
use std::path::PathBuf;

use common::{finish, finish_with_input, is_alone, kvm_or_skip, payload, run_payload, scratch, skip};
use coracle::config::{MemorySize, SerialConfig, VmConfig};
use coracle::outcome::Ending;
use coracle::{Grace, Vm, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn machine_takes_a_device_for_each_interrupt_and_refuses_one_more_by_its_name() {
    needs_kvm!();
    let disks: Vec<PathBuf> = (1..=18).map(|number| scratch().join(format!("many-{number}.img"))).collect();
    disks.iter().for_each(|disk| File::create(disk).unwrap().set_len(8 << 10).unwrap());
    let run = |count: usize, more: &[&str]| {
        let mut command = run_payload("backlog-write");
        command.args(["--memory", "128M", "--timeout", "60s"]).args(more);
        disks.iter().take(count).for_each(|disk| _ = command.arg("--disk").arg(disk));
        command
    };
    // The guest checks the completions of 256 writes to each.
    finish_with_input(&mut run(17, &[]), b"w").expect(0, "code 0");
    let numbers = |disk: &PathBuf| [0, 4096].map(|page| fs::read(disk).unwrap()[page]);
    assert!(disks[..17].iter().all(|disk| numbers(disk) == [1, 2]), "a disk was not written");
    assert_eq!(numbers(&disks[17]), [0, 0]);
    let refused = "a machine has interrupts for 17 virtio devices, and 18 are configured; leave some out";
    let last = format!("--disk {}: {refused}", disks[17].display());
    finish(&mut run(18, &[])).expect(125, &last);
    finish(&mut run(17, &["--rng"])).expect(125, &format!("--rng: {refused}"));
}

#[test]
fn machine_with_the_most_memory_runs() {
    needs_kvm!();
    // A KVM that runs guests in software keeps 2 bytes for each KiB of a guest's RAM.
    if available_gib() < 4 {
        return skip(
            "KVM needs up to 2 GiB of its own for a machine of 1 TiB, and this host has less than 4",
        );
    }
    finish(run_payload("hello-exit").args(["--memory", "1T"])).expect(0, "code 0");
}

/// Descriptors, threads and memory grow by the same amount with each machine of a process, and all of it
/// goes back.
#[test]
fn each_machine_of_a_process_costs_what_the_one_before_it_did() {
    needs_kvm!();
    if !is_alone("each_machine_of_a_process_costs_what_the_one_before_it_did") {
        return;
    }
    let vms = |count: usize| -> Vec<Vm> { (0..count).map(|_| start()).collect() };
    // What the process keeps after its first machines is not the cost of one more.
    vms(8).iter().for_each(stop);
    let before = Held::of_this_process();
    let mut running = Vec::new();
    let held: Vec<Held> = (0..3)
        .map(|_| {
            running.extend(vms(16));
            Held::of_this_process()
        })
        .collect();
    let first = held[0].beyond(&before);
    for pair in held.windows(2) {
        let more = pair[1].beyond(&pair[0]);
        assert_eq!(
            (more.descriptors, more.threads),
            (first.descriptors, first.threads),
            "{before:?} {held:?}"
        );
        assert!(more.dirty_kib <= first.dirty_kib * 5 / 4 + 256, "{before:?} {held:?}");
    }
    assert!(first.threads >= 16 && first.descriptors >= 16 && first.dirty_kib >= 16, "{before:?} {held:?}");
    running.iter().for_each(stop);
    drop(running);
    common::eventually("all threads and descriptors are gone", || {
        let after = Held::of_this_process();
        after.threads <= before.threads && after.descriptors <= before.descriptors
    });
}

fn start() -> Vm {
    let mut config = VmConfig::new(payload("halt"));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config.serial = SerialConfig::Null;
    VmBuilder::new(config).start().unwrap()
}

fn stop(vm: &Vm) {
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
}

/// The memory, descriptors and threads of a process.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    /// Without those that KVM runs in this process, whose number is KVM's.
    threads: usize,
    dirty_kib: usize,
}

impl Held {
    fn of_this_process() -> Held {
        let threads = fs::read_dir("/proc/self/task").unwrap().filter(|thread| {
            let name = fs::read_to_string(thread.as_ref().unwrap().path().join("comm"));
            name.is_ok_and(|name| !name.starts_with("kvm-"))
        });
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let dirty = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        Held {
            descriptors: common::count("/proc/self/fd"),
            threads: threads.count(),
            dirty_kib: dirty.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    fn beyond(&self, before: &Held) -> Held {
        Held {
            descriptors: self.descriptors - before.descriptors,
            threads: self.threads - before.threads,
            dirty_kib: self.dirty_kib - before.dirty_kib,
        }
    }
}

fn available_gib() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 20
}

//! Tests of the random numbers of Linux guests that go on from one snapshot: those that an agent renews, and
//! those that the kernel renews by the generation id.

use std::io::{BufRead, Write};
use std::thread;

use coracle::config::{AcpiMode, AgentConfig, MemorySize, VmConfig, default_cmdline_with};
use coracle::guest_data::{self, GuestData};
use coracle::{Vm, VmBuilder};

use super::common::forks::Piped;
use super::forks::{LIMIT, sh};
use super::{common, data, no_linux};

fn guest(kernel: GuestData, words: &str) -> VmConfig {
    let memory = if kernel == GuestData::HostVmlinux { 512 } else { 256 };
    VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet", words]),
        memory: MemorySize::from_mib(memory).unwrap().into(),
        timeout: Some(LIMIT),
        ..VmConfig::new(data(kernel))
    }
}

/// Debian's cloud kernel has no driver of the generation id, as the tuned kernel without its driver, and any
/// kernel without ACPI.
#[test]
fn agent_renews_random_numbers_where_the_kernel_does_not() {
    needs_linux!();
    let mut guests = vec![guest(GuestData::GuestVmlinux, "")];
    match guest_data::find(GuestData::TunedVmlinux) {
        Ok(_) => {
            guests.push(guest(GuestData::TunedVmlinux, "initcall_blacklist=vmgenid_driver_init"));
            guests.push(VmConfig { acpi: AcpiMode::Off, ..guest(GuestData::TunedVmlinux, "") });
        }
        Err(error) => common::skip(&error.to_string()),
    }
    let start = |config: VmConfig| {
        let config = VmConfig { agent: Some(AgentConfig::default()), ..config };
        thread::spawn(move || VmBuilder::new(config).start().unwrap())
    };
    let guests: Vec<_> = guests.into_iter().map(start).collect();
    for vm in guests {
        let vm = vm.join().unwrap();
        // The later it is, the more seldom the kernel renews them by itself: now every six seconds.
        sh(
            &vm,
            "while [ $(cut -d. -f1 /proc/uptime) -lt 12 ]; do sleep 0.5; done; head -c 16 /dev/urandom > /tmp/drawn",
        );
        let forks = vm.freeze().unwrap().fork(2, |_, fork| fork).unwrap();
        let [first, second] = forks.as_slice() else { panic!("two") };
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| draw(first));
            (draw(second), first.join().unwrap())
        });
        let differ = first.iter().zip(&second).all(|(first, second)| first != second);
        assert!(differ && first.len() == 3, "{first:?}, {second:?}");
    }
}

/// Draws from each of the kernel's interfaces. None of them was renewed by the kernel itself.
fn draw(vm: &Vm) -> Vec<String> {
    let drawn = sh(
        vm,
        "for i in urandom random; do head -c 16 /dev/$i | od -An -tx1; done; cat /proc/sys/kernel/random/uuid",
    );
    assert_eq!(sh(vm, "dmesg | grep 'virtual machine fork'; true"), "");
    drawn.lines().map(str::to_owned).collect()
}

/// The guests have no agent. Debian's kernel is the full one.
#[test]
fn kernel_renews_random_numbers_by_the_generation_id() {
    needs_linux!();
    let mut kernels = vec![GuestData::HostVmlinux];
    match guest_data::find(GuestData::TunedVmlinux) {
        Ok(_) => kernels.push(GuestData::TunedVmlinux),
        Err(error) => common::skip(&error.to_string()),
    }
    for kernel in kernels {
        let mut guest = Piped::start(VmBuilder::new(guest(kernel, "coracle.init=shell")));
        writeln!(guest.input, "stty -echo; {DRAW_WHEN_RENEWED}").unwrap();
        line_with(&mut guest, "ready");
        let template = guest.freeze();
        let mut forks = Piped::forks(&template, 2);
        forks.iter_mut().for_each(|fork| fork.send(b"\n"));
        let [first, second] = forks.as_mut_slice() else { panic!("two") };
        assert_ne!(line_with(first, "renewed once"), line_with(second, "renewed once"), "{kernel}");
    }
}

/// Waits for a line, and then for the message of the kernel that its numbers are new.
const DRAW_WHEN_RENEWED: &str = "echo rea''dy; read line; i=0; \
    until dmesg | grep -q 'virtual machine fork' || [ $i = 100 ]; do sleep 0.1; i=$((i+1)); done; \
    [ $(dmesg | grep -c 'virtual machine fork') = 1 ] && \
    echo renew''ed once $(head -c 16 /dev/urandom | od -An -tx1) || echo not renew''ed";

/// Reads up to a line that has these words, and returns it.
#[track_caller]
fn line_with(guest: &mut Piped, words: &str) -> String {
    let mut seen = String::new();
    loop {
        let start = seen.len();
        assert_ne!(guest.output.read_line(&mut seen).unwrap(), 0, "{words:?} is not in {seen}");
        assert!(!seen[start..].contains("not renewed"), "{seen}");
        if seen[start..].contains(words) {
            return seen.split_off(start);
        }
    }
}

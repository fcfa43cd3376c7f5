//! Tests of machines that the calling thread takes care of (`VmBuilder::run_with`).

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use coracle::VmBuilder;
use coracle::config::{MemorySize, VmConfig};
use coracle::outcome::Ending;

fn config(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config
}

/// The closure's handle works from another thread while the calling thread takes care of the machine. Once
/// the call returns, the machine has ended for every handle, and holds nothing.
#[test]
fn machine_that_the_calling_thread_takes_care_of_obeys_its_handle() {
    if !common::kvm_or_skip() {
        return;
    }
    if !common::is_alone("machine_that_the_calling_thread_takes_care_of_obeys_its_handle") {
        return;
    }
    let mut kept = None;
    let outcome = VmBuilder::new(config("spin")).run_with(|vm| {
        let handle = vm.handle();
        kept = Some(vm.handle());
        handle.resume();
        thread::spawn(move || {
            assert!(handle.pause());
            handle.resume();
            handle.stop_by_signal(libc::SIGTERM);
        });
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.ending, Ending::Signalled { signal: libc::SIGTERM });
    let handle = kept.unwrap();
    assert_eq!(handle.wait_for(Duration::ZERO), Some(outcome));
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let machines: Vec<_> = open.filter(|file| file.to_string_lossy().contains("kvm-vm")).collect();
    assert!(machines.is_empty(), "{machines:?}");
}

#[test]
fn machine_that_is_not_started_ends_by_its_handle() {
    if !common::kvm_or_skip() {
        return;
    }
    let outcome = VmBuilder::new(config("exit-7")).run_with(|vm| vm.handle().stop()).unwrap();
    assert_eq!((outcome.ending, outcome.exits.port_out), (Ending::Stopped, 0));
}

//! Tests of reading the registers of paused machines.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use coracle::config::{MemorySize, ResetPolicy, VcpuCount, VmConfig};
use coracle::outcome::Ending;
use coracle::{Grace, RegistersError, Vm, VmBuilder};

fn machine(payload: &str, vcpus: u8, change: impl FnOnce(&mut VmConfig)) -> Vm {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config.vcpus = VcpuCount::new(vcpus).unwrap();
    change(&mut config);
    VmBuilder::new(config).build().unwrap()
}

/// A guest that never exits by itself: it jumps to its own address, in ring 0 and in ring 3.
#[test]
fn guest_that_spins_is_seen_where_it_spins() {
    if !common::kvm_or_skip() {
        return;
    }
    for (payload, ring) in [("spin", 0), ("spin-ring3", 3)] {
        let vm = machine(payload, 1, |_| ());
        let handle = vm.handle();
        let entry = handle.registers().unwrap().remove(0).unwrap();
        assert_eq!(entry.ring, 0, "{payload}: a machine that was built stands at the kernel's entry");
        handle.resume();
        assert_eq!(handle.registers(), Err(RegistersError::NotPaused));
        let mut seen = Vec::new();
        common::eventually("the guest reaches its loop", || {
            assert!(handle.pause());
            let registers = handle.registers().unwrap().remove(0).unwrap();
            assert_eq!(handle.registers().unwrap(), [Some(registers.clone())], "a paused guest stands still");
            handle.resume();
            let is_there = registers.ring == ring && seen.last() == Some(&registers.rip);
            seen.push(registers.rip);
            is_there
        });
        assert_eq!(handle.registers(), Err(RegistersError::NotPaused));
        assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
        assert_eq!(handle.registers(), Err(RegistersError::Ended));
    }
}

#[test]
fn vcpu_that_the_guest_has_not_started_has_none() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = machine("spin", 3, |_| ());
    vm.handle().resume();
    assert!(vm.handle().pause());
    let started: Vec<bool> = vm.handle().registers().unwrap().iter().map(Option::is_some).collect();
    assert_eq!(started, [true, false, false]);
}

/// Whatever else is requested of the machine at the same time, every request is answered and the stop
/// succeeds.
#[test]
fn questions_do_not_hold_up_pauses_resets_and_the_stop() {
    if !common::kvm_or_skip() {
        return;
    }
    for payload in ["spin", "hello-reset"] {
        let vm = machine(payload, 2, |config| config.on_reset = ResetPolicy::Reboot);
        let is_over = AtomicBool::new(false);
        let handle = vm.handle();
        handle.resume();
        thread::scope(|scope| {
            let askers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut answers = 0;
                        while !is_over.load(Ordering::Acquire) {
                            match handle.registers() {
                                Ok(registers) => answers += usize::from(registers.len() == 2),
                                Err(RegistersError::NotPaused | RegistersError::Ended) => (),
                                Err(error) => panic!("{error}"),
                            }
                        }
                        answers
                    })
                })
                .collect();
            for _ in 0..20 {
                assert!(handle.pause(), "{payload}");
                assert!(handle.registers().is_ok(), "{payload}");
                handle.resume();
            }
            assert!(handle.pause());
            common::eventually("the machine ends", || {
                handle.stop();
                handle.wait_for(std::time::Duration::ZERO).is_some()
            });
            is_over.store(true, Ordering::Release);
            let answers: usize = askers.into_iter().map(|asker| asker.join().unwrap()).sum();
            assert!(answers > 0, "{payload}");
        });
        assert_eq!(handle.registers(), Err(RegistersError::Ended), "{payload}");
        assert_eq!(vm.wait().ending, Ending::Stopped);
    }
}

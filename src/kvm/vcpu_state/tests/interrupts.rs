//! Timers and events that are pending: each comes once, in the machine that goes on.

use coracle_arch::x86_64::vcpu_state::{ExceptionEvent, MpState};

use super::*;

const VECTOR: u8 = 0x40;
const HANDLER: u64 = 0x1_4000;
/// Registers of the local APIC's page (Intel SDM volume 3A, table 11-1).
const IRR: usize = 0x200;
const CURRENT_COUNT: usize = 0x390;

fn machine(code: &[u8]) -> Machine {
    let machine = Machine::with_code(1, code, Ring::Zero);
    machine.write(HANDLER, handler());
    machine.set_gate(VECTOR, HANDLER);
    machine
}

fn register(state: &coracle_arch::x86_64::vcpu_state::VcpuState, offset: usize) -> u32 {
    u32::from_le_bytes(state.local_apic[offset..offset + 4].try_into().unwrap())
}

#[test]
fn one_shot_timer_goes_on_with_its_current_count() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = machine(one_shot());
    // Four seconds, which no run reaches; the count is in nanoseconds.
    machine.write_u64(MORE_DATA, 4_000_000_000);
    stop(&mut machine);
    let first = machine.fork();
    let second = first.fork();
    let counts = [&machine, &first, &second].map(|machine| register(&machine.save()[0], CURRENT_COUNT));
    assert!(counts.iter().all(|count| (1..4_000_000_000).contains(count)), "{counts:?}");
    // The count stood still between saving and restoring, so each copy is a little behind.
    assert!(counts[0] <= counts[1] && counts[1] <= counts[2], "{counts:?}");
}

#[test]
fn timers_fire_once_in_each_copy() {
    if !kvm_or_skip() {
        return;
    }
    for (code, ticks) in [(one_shot(), 200_000_000), (deadline(), 500_000_000)] {
        let mut machine = machine(code);
        machine.write_u64(MORE_DATA, ticks);
        stop(&mut machine);
        let mut copy = machine.fork().fork();
        for machine in [&mut machine, &mut copy] {
            finish(machine);
            assert_eq!(machine.read_u64(DATA), 1);
        }
    }
}

/// The copy halts, and its timer ends that.
#[test]
fn halted_vcpu_is_woken_by_its_timer() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = machine(deadline());
    machine.write_u64(MORE_DATA, 2_000_000_000);
    stop(&mut machine);
    // A kick may come before the vCPU halts. The timer ends the loop in any case.
    while machine.run_for(0, std::time::Duration::from_millis(20), until(END)) == RunEnd::Kick {
        if machine.save()[0].mp_state == MpState::Halted {
            break;
        }
    }
    if machine.vcpus[0].has_access_pending() {
        skip("the host is too busy: the timer came before the kick");
        return;
    }
    let mut copy = machine.fork();
    assert_eq!(copy.save()[0].mp_state, MpState::Halted);
    finish(&mut copy);
    assert_eq!(copy.read_u64(DATA), 1);
}

#[test]
fn pending_interrupt_comes_once_in_each_copy() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = machine(pending());
    stop(&mut machine);
    let state = machine.save().remove(0);
    assert_eq!(register(&state, IRR + usize::from(VECTOR / 32) * 16), 1 << (VECTOR % 32));
    let mut copy = machine.fork().fork();
    for machine in [&mut machine, &mut copy] {
        finish(machine);
        assert_eq!(machine.read_u64(DATA), 1);
    }
}

#[test]
fn pending_nmi_comes_once_in_each_copy() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = machine(pass());
    machine.set_gate(2, HANDLER);
    stop(&mut machine);
    machine.vcpus[0].fd.nmi().unwrap();
    assert_eq!(machine.save()[0].events.nmi.pending, Some(1));
    let mut copy = machine.fork().fork();
    assert_eq!(copy.save()[0].events.nmi.pending, Some(1));
    for machine in [&mut machine, &mut copy] {
        finish(machine);
        assert_eq!(machine.read_u64(DATA), 1);
    }
}

/// The address of a page fault is not in CR2 before the fault is delivered.
#[test]
fn pending_exception_is_delivered_with_its_payload() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = machine(pass());
    machine.write(HANDLER, fault());
    machine.set_gate(14, HANDLER);
    stop(&mut machine);
    let clock = machine.vm.clock().unwrap();
    let mut states = machine.save();
    assert_eq!(states[0].events.exception.pending, Some(false), "KVM reports pending exceptions");
    let exception = ExceptionEvent {
        injected: false,
        pending: Some(true),
        vector: 14,
        error_code: Some(4),
        payload: Some(0x1234_5000),
    };
    states[0].events.exception = exception;
    let copy = machine.restored(&states, &clock).unwrap();
    let mut copy = copy.fork();
    let state = copy.save().remove(0);
    assert_eq!(state.events.exception, exception);
    assert_eq!(state.special_registers.cr2, 0);
    finish(&mut copy);
    assert_eq!((copy.read_u64(DATA), copy.read_u64(DATA + 8)), (0x1234_5000, 4));
}

//! The states in which a vCPU waits to be started, or for an interrupt.

use coracle_arch::x86_64::vcpu_state::MpState;
use kvm_bindings::kvm_mp_state;

use super::convert::kvm_mp_state_of;
use super::*;

#[test]
fn four_vcpus_keep_their_mp_states() {
    if !kvm_or_skip() {
        return;
    }
    let states = [MpState::Runnable, MpState::Halted, MpState::Uninitialized, MpState::InitReceived];
    let machine = Machine::new(4, TestCpuid::Guest);
    let of = |machine: &Machine| machine.save().iter().map(|state| state.mp_state).collect::<Vec<_>>();
    let after_reset =
        [MpState::Runnable, MpState::Uninitialized, MpState::Uninitialized, MpState::Uninitialized];
    assert_eq!(of(&machine), after_reset);
    for (vcpu, state) in machine.vcpus.iter().zip(states) {
        vcpu.fd.set_mp_state(kvm_mp_state { mp_state: kvm_mp_state_of(state) }).unwrap();
    }
    assert_eq!(of(&machine), states);
    let copy = machine.fork();
    assert_eq!(of(&copy), states);
    for (index, (before, after)) in machine.save().iter().zip(copy.save()).enumerate() {
        assert_eq!(before.local_apic, after.local_apic, "vCPU {index}");
    }
}

/// A start-up interrupt starts only the vCPU that has had its INIT, in the copy as in the first machine.
#[test]
fn vcpu_that_waits_for_its_start_is_started_in_the_copy() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(3, start_others(), Ring::Zero);
    machine.write(0xb000, real_mode());
    stop(&mut machine);
    let mut copy = machine.fork();
    for machine in [&mut machine, &mut copy] {
        assert_eq!(machine.save()[2].mp_state, MpState::InitReceived);
        finish(machine);
        let states = machine.save();
        assert_eq!(states[1].mp_state, MpState::Uninitialized);
        assert_eq!(states[2].mp_state, MpState::Runnable);
        assert_eq!((states[2].special_registers.cs.base, states[2].registers.rip), (0xb000, 0));
        machine.run(2, until(END));
    }
}

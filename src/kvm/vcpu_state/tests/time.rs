//! The time-stamp counter and the clock go on, and no time passes between saving and restoring.

use std::arch::x86_64::_rdtsc;
use std::time::Duration;

use coracle_arch::x86_64::vcpu_state::VmClockState;

use super::*;

/// Longer than saving and restoring take, so that it can be seen.
const BETWEEN: Duration = Duration::from_millis(1500);

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

/// Returns whether this KVM can move the time-stamp counter of a vCPU. `kvm_pvm` accepts it, and does
/// nothing.
fn moves_tsc(machine: &Machine) -> bool {
    let vcpu = &machine.vcpus[0];
    let before = vcpu.tsc_state().unwrap();
    vcpu.start_tsc(&before, TscStart::Shift(1 << 45)).unwrap();
    vcpu.tsc_state().unwrap().value.wrapping_sub(before.value) >= 1 << 45
}

#[test]
fn tsc_goes_on_in_the_copy_and_the_time_between_does_not_pass() {
    if !kvm_or_skip() {
        return;
    }
    for reports_offset in [true, false] {
        let mut machine = Machine::with_code(1, tsc(), Ring::Zero);
        stop(&mut machine);
        let clock = machine.vm.clock().unwrap();
        let mut states = machine.save();
        if !reports_offset {
            states[0].tsc.offset = None;
        }
        let saved = host_tsc();
        let second = u64::from(machine.vcpus[0].tsc_khz().unwrap()) * 1000;
        std::thread::sleep(BETWEEN);
        let mut copy = machine.restored(&states, &clock).unwrap();
        finish(&mut copy);
        let (before, after) = (copy.read_u64(DATA), copy.read_u64(DATA + 8));
        assert!(before <= states[0].tsc.value && states[0].tsc.value < after, "{before} to {after}");
        if moves_tsc(&Machine::new(1, TestCpuid::Guest)) {
            let passed = host_tsc() - saved;
            assert!(after - states[0].tsc.value + second <= passed, "{} of {passed}", after - before);
        }
    }
}

/// A counter that is ahead of all that this host can give: after a restart of the host, for example.
#[test]
fn tsc_that_would_go_back_is_refused_where_kvm_cannot_move_it() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let clock = machine.vm.clock().unwrap();
    let mut states = machine.save();
    states[0].tsc.value += 1 << 50;
    let saved = states[0].tsc.value;
    match machine.restored(&states, &clock) {
        Ok(copy) => {
            assert!(moves_tsc(&machine));
            assert!(copy.save()[0].tsc.value >= saved);
        }
        Err(error) => {
            assert!(!moves_tsc(&machine));
            assert!(matches!(error, StateError::TscBehind { vcpu: 0, now, .. } if now < saved), "{error}");
        }
    }
}

/// All vCPUs keep their differences, and none goes back behind what it was saved with.
#[test]
fn tsc_of_all_vcpus_moves_by_the_same_number_of_ticks() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(3, TestCpuid::Guest);
    let mut states = machine.save();
    if states.iter().any(|state| state.tsc.offset.is_none()) || !moves_tsc(&machine) {
        skip("this KVM does not move the time-stamp counter of a vCPU");
        return;
    }
    // One of them was set to another value by the guest.
    states[1].tsc.offset = states[1].tsc.offset.map(|offset| offset + 12_345);
    states[1].tsc.value += 12_345;
    let clock = machine.vm.clock().unwrap();
    let copy = machine.restored(&states, &clock).unwrap();
    let offsets: Vec<i64> = copy.save().iter().map(|state| state.tsc.offset.unwrap()).collect();
    assert_eq!(offsets[1] - offsets[0], 12_345);
    assert_eq!(offsets[2], offsets[0]);
    for (before, after) in states.iter().zip(copy.save()) {
        assert!(after.tsc.value >= before.tsc.value);
    }
}

#[test]
fn clock_goes_on_and_the_time_between_does_not_pass() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    // The clock of a new machine is far from that.
    let hour = VmClockState { nanoseconds: 3_600_000_000_000, ..VmClockState::default() };
    machine.vm.set_clock(&hour).unwrap();
    let clock = machine.vm.clock().unwrap();
    assert!(clock.nanoseconds >= hour.nanoseconds);
    let saved = std::time::Instant::now();
    std::thread::sleep(BETWEEN);
    let copy = machine.restored(&machine.save(), &clock).unwrap();
    let after = copy.vm.clock().unwrap();
    assert!(after.nanoseconds >= clock.nanoseconds);
    let passed = Duration::from_nanos(after.nanoseconds - clock.nanoseconds);
    assert!(passed + BETWEEN * 2 / 3 <= saved.elapsed(), "{passed:?}");
}

/// A guest with kvm-clock is told that it stood still, and its page follows the clock of the copy.
#[test]
fn kvm_clock_of_the_copy_reports_the_pause() {
    const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    /// The flags of the page (Documentation/virt/kvm/x86/msr.rst).
    const FLAGS: u64 = MORE_DATA + 29;
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, pass(), Ring::Three);
    machine.vcpus[0].write_msrs(&[(MSR_KVM_SYSTEM_TIME_NEW, MORE_DATA | 1)]).unwrap();
    stop(&mut machine);
    let version = machine.read(MORE_DATA, 4);
    assert_ne!(version, [0; 4], "KVM has filled the page");
    assert_eq!(machine.read(FLAGS, 1)[0] & 2, 0);
    let mut copy = machine.fork();
    finish(&mut copy);
    assert_eq!(copy.read(FLAGS, 1)[0] & 2, 2);
    assert_ne!(copy.read(MORE_DATA, 4), version);
}

/// The time between passes for the counter and for each timer, as far as the copy is told.
#[test]
fn time_that_passes_is_seen_by_the_counter_and_by_timers() {
    const HOUR: u64 = 3_600_000_000_000;
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let clock = machine.vm.clock().unwrap();
    for reports_offset in [true, false] {
        let mut states = machine.save();
        if !reports_offset {
            states[0].tsc.offset = None;
        }
        let copy = machine.restored_after(&states, &clock, HOUR).unwrap();
        if moves_tsc(&machine) {
            let ticks = u128::from(HOUR) * u128::from(machine.vcpus[0].tsc_khz().unwrap()) / 1_000_000;
            let passed = copy.save()[0].tsc.value.wrapping_sub(states[0].tsc.value);
            assert!(u128::from(passed) >= ticks && u128::from(passed) < ticks * 2, "{passed} of {ticks}");
        }
    }
}

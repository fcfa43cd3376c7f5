//! Registers that only their instructions show: x87, SSE, AVX, breakpoints.

use super::*;
use crate::kvm::hides_xsave;

/// Runs code that loads registers from [`DATA`], and in a copy stores them at [`MORE_DATA`].
fn store_in_a_copy(mut machine: Machine, code: &[u8], bytes: usize) {
    let pattern: Vec<u8> = (0..bytes).map(|at| (at * 5 + 1) as u8).collect();
    machine.start(code, Ring::Three);
    machine.write(DATA, &pattern);
    let (one, other) = (1.5_f64.to_le_bytes(), (-0.25_f64).to_le_bytes());
    machine.write(DATA + 0x100 + bytes as u64, &[0; 8]);
    if bytes == 256 {
        machine.write(DATA + 0x100, &[&one[..], &other, &0x3f80_u32.to_le_bytes()].concat());
    }
    stop(&mut machine);
    let mut copy = machine.fork();
    assert_eq!(copy.save()[0].xcrs, machine.save()[0].xcrs);
    // Whatever the first does, the registers of the copy are its own.
    finish(&mut machine);
    copy.write(DATA, &vec![0; bytes]);
    finish(&mut copy);
    for machine in [&machine, &copy] {
        assert_eq!(machine.read(MORE_DATA, bytes), pattern);
        if bytes == 256 {
            let control = 0x3f80_u32.to_le_bytes();
            assert_eq!(machine.read(MORE_DATA + 0x100, 20), [&one[..], &other, &control].concat());
        }
    }
}

#[test]
fn x87_and_sse_registers_are_kept() {
    if kvm_or_skip() {
        store_in_a_copy(Machine::new(1, TestCpuid::Guest), sse(), 16 * 16);
    }
}

#[test]
fn avx_registers_are_kept() {
    if !kvm_or_skip() {
        return;
    }
    if !std::is_x86_feature_detected!("avx") || hides_xsave() {
        skip("the host has no AVX that guests can rely on");
        return;
    }
    let machine = Machine::new(1, TestCpuid::Kvm);
    machine.start(avx(), Ring::Three);
    let vcpu = &machine.vcpus[0];
    let mut sregs = vcpu.fd.get_sregs().unwrap();
    sregs.cr4 |= 1 << 18;
    let has_xsave = vcpu.fd.set_sregs(&sregs).is_ok();
    let mut xcrs = vcpu.fd.get_xcrs().unwrap();
    xcrs.xcrs[0].value = 7;
    let has_avx = vcpu.fd.set_xcrs(&xcrs).is_ok();
    if !has_avx {
        skip(&format!("this KVM offers no AVX (XSAVE {has_xsave})"));
        return;
    }
    store_in_a_copy(machine, avx(), 16 * 32);
}

#[test]
fn breakpoints_are_kept() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, debug(), Ring::Zero);
    stop(&mut machine);
    let mut copy = machine.fork();
    finish(&mut copy);
    let read: Vec<u64> = (0..5).map(|index| copy.read_u64(DATA + index * 8)).collect();
    assert_eq!(read, [0x11_1000, 0x11_2000, 0x11_3000, 0x11_4000, 0x4aa]);
}

/// Reading the registers does not end in the values of the moment: a second state has the values that were
/// set in between.
#[test]
fn state_follows_what_the_guest_does() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, pass(), Ring::Three);
    let before = machine.save().remove(0);
    stop(&mut machine);
    let after = machine.save().remove(0);
    assert_eq!(before.registers.rip, CODE);
    assert_eq!(after.registers.rip, CODE + 3, "after `nop` and `out`");
    assert_eq!(before.special_registers.cs.dpl, 3);
}

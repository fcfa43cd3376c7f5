//! A state that was restored and saved again is the same, except for the time that has passed.

use coracle_arch::x86_64::vcpu_state::{VcpuState, Xcr};

use super::*;

/// Registers that the guest's kernel sets, with values that a new vCPU does not have.
const SET: &[(u32, u64)] = &[
    (0x174, 0x10),                               // IA32_SYSENTER_CS
    (0x175, 0x1234_5000),                        // IA32_SYSENTER_ESP
    (0x176, 0x1234_6000),                        // IA32_SYSENTER_EIP
    (0x277, 0x0007_0106_0007_0106),              // IA32_PAT
    (0x200, 0x8000_0000),                        // IA32_MTRR_PHYSBASE0
    (0x201, 0x000f_8000_0800 | 1 << 39),         // IA32_MTRR_PHYSMASK0
    (0x258, 0x0606_0606_0606_0606),              // IA32_MTRR_FIX16K_80000
    (0x2ff, 0xc06),                              // IA32_MTRR_DEF_TYPE
    (0x400, u64::MAX),                           // IA32_MC0_CTL
    (0x47d, 0x5555),                             // IA32_MC31_STATUS
    (0xc000_0081, 0x0023_0010_0000_0000),        // IA32_STAR
    (0xc000_0082, 0xffff_8000_0000_1000),        // IA32_LSTAR
    (0xc000_0084, 0x4_7700),                     // IA32_FMASK
    (0xc000_0102, 0x7fff_0000_0000),             // IA32_KERNEL_GS_BASE
    (0x4b56_4d00, MORE_DATA + 0x100),            // MSR_KVM_WALL_CLOCK_NEW
    (0x4b56_4d01, MORE_DATA | 1),                // MSR_KVM_SYSTEM_TIME_NEW
    (0x4b56_4d06, 0x50),                         // MSR_KVM_ASYNC_PF_INT
    (0x4b56_4d02, (MORE_DATA + 0x200) | 0b1001), // MSR_KVM_ASYNC_PF_EN, by interrupt
    (0x4b56_4d03, (MORE_DATA + 0x300) | 1),      // MSR_KVM_STEAL_TIME
    (0x4b56_4d04, (MORE_DATA + 0x400) | 1),      // MSR_KVM_PV_EOI_EN
    (0x4b56_4d05, 0),                            // MSR_KVM_POLL_CONTROL
];

/// Makes the parts that follow the time equal, after checking that they have not gone back.
fn without_time(mut state: VcpuState, earlier: &VcpuState) -> VcpuState {
    assert!(state.tsc.value >= earlier.tsc.value);
    state.tsc = earlier.tsc;
    state
}

fn assert_equal(before: &[VcpuState], after: Vec<VcpuState>) {
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let VcpuState {
            mp_state,
            registers,
            special_registers,
            shadow_stack_pointer,
            xsave,
            xcrs,
            debug_registers,
            local_apic,
            events,
            msrs,
            tsc: _,
        } = without_time(after, before);
        assert_eq!(mp_state, before.mp_state, "vCPU {index}");
        assert_eq!(registers, before.registers, "vCPU {index}");
        assert_eq!(special_registers, before.special_registers, "vCPU {index}");
        assert_eq!(shadow_stack_pointer, before.shadow_stack_pointer, "vCPU {index}");
        assert_eq!(xsave, before.xsave, "vCPU {index}");
        assert_eq!(xcrs, before.xcrs, "vCPU {index}");
        assert_eq!(debug_registers, before.debug_registers, "vCPU {index}");
        assert_eq!(local_apic, before.local_apic, "vCPU {index}");
        assert_eq!(events, before.events, "vCPU {index}");
        let differ: Vec<_> = msrs.iter().zip(&before.msrs).filter(|(one, other)| one != other).collect();
        assert_eq!((differ, msrs.len()), (vec![], before.msrs.len()), "vCPU {index}");
    }
}

#[test]
fn state_after_a_restore_is_the_saved_one() {
    if !kvm_or_skip() {
        return;
    }
    // Not every KVM interprets SSE in ring 0.
    for (code, ring) in [(pass(), Ring::Zero), (sse(), Ring::Three)] {
        let mut machine = Machine::with_code(2, code, ring);
        machine.write(DATA, &[0x3c; 0x110]);
        machine.write(DATA + 0x110, &0x1f80_u32.to_le_bytes());
        stop(&mut machine);
        let msrs: Vec<(u32, u64)> = SET.iter().copied().filter(|(msr, _)| exists(&machine, *msr)).collect();
        for vcpu in &machine.vcpus {
            vcpu.write_msrs(&msrs).unwrap();
        }
        let before = machine.save();
        for (msr, value) in &msrs {
            let saved = before[0].msrs.iter().find(|(number, _)| number == msr);
            assert_eq!(saved, Some(&(*msr, *value)), "{msr:#x}");
        }
        let copy = machine.fork();
        assert_equal(&before, copy.save());
        assert_equal(&before, copy.fork().save());
        // Saving has changed nothing.
        assert_equal(&before, machine.save());
    }
}

/// Returns whether this KVM has the register: some came with later kernels, or follow the CPU.
fn exists(machine: &Machine, msr: u32) -> bool {
    !machine.vcpus[0].read_msrs(&[msr]).unwrap().is_empty()
}

#[test]
fn every_register_of_kvm_s_list_is_saved() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let state = machine.save().remove(0);
    let saved: Vec<u32> = state.msrs.iter().map(|(msr, _)| *msr).collect();
    let hyper_v = 0x4000_0000..0x4000_0200;
    for msr in machine.kvm.msr_index_list().unwrap() {
        let is_expected = *msr != 0x10 && !hyper_v.contains(msr) && exists(&machine, *msr);
        assert_eq!(saved.contains(msr), is_expected, "{msr:#x}");
    }
    assert!(saved.contains(&0x4b56_4d03) && saved.contains(&0x2ff));
    assert_eq!(state.check(), Ok(()));
    assert_eq!(state.xcrs, [Xcr { number: 0, value: 1 }]);
}

/// KVM stops reading at a register that the vCPU does not have; those after it are read all the same.
#[test]
fn registers_after_one_that_is_missing_are_read() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let vcpu = &machine.vcpus[0];
    let values: Vec<(u32, u64)> = (0..150).map(|bank| (0x400 + bank % 128, 0)).collect();
    let wanted: Vec<u32> = values.iter().map(|(msr, _)| *msr).collect();
    assert_eq!(vcpu.read_msrs(&wanted).unwrap(), values, "two calls");
    let read = vcpu.read_msrs(&[0xdead_0000, 0x174, 0xdead_0001, 0xdead_0002, 0x175, 0xdead_0003]).unwrap();
    assert_eq!(read, [(0x174, 0), (0x175, 0)]);
}

/// A register that KVM does not take back is fine if it has its value already, and else an error that names
/// it.
#[test]
fn register_that_kvm_refuses_is_named() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let clock = machine.vm.clock().unwrap();
    let mut states = machine.save();
    // MCG_CAP can only be read.
    let cap = machine.vcpus[0].msr(0x179).unwrap();
    states[0].msrs.insert(3, (0x179, cap));
    machine.restored(&states, &clock).unwrap();
    states[0].msrs[3].1 = cap + 1;
    let error = machine.restored(&states, &clock).err().unwrap();
    assert!(matches!(error, StateError::Msr { vcpu: 0, msr: 0x179, value } if value == cap + 1), "{error}");
    assert!(error.to_string().contains("0x179"), "{error}");
    states[0].msrs[3] = (0xdead_0000, 0);
    let error = machine.restored(&states, &clock).err().unwrap();
    assert!(matches!(error, StateError::Msr { msr: 0xdead_0000, .. }), "{error}");
}

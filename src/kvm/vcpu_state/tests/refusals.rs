//! States that this host cannot have, and states that no vCPU has.

use coracle_arch::x86_64::vcpu_state::{VcpuState, VcpuStateError};
use kvm_bindings::kvm_sregs;

use super::*;

/// Restores a machine of one vCPU after this change of its state.
fn restore(change: impl FnOnce(&mut VcpuState)) -> StateError {
    let mut machine = Machine::with_code(1, pass(), Ring::Three);
    stop(&mut machine);
    let clock = machine.vm.clock().unwrap();
    let mut states = machine.save();
    change(&mut states[0]);
    machine.restored(&states, &clock).err().unwrap()
}

#[test]
fn damaged_state_is_refused_before_kvm_gets_any_of_it() {
    if !kvm_or_skip() {
        return;
    }
    let error = restore(|state| state.xsave.truncate(64));
    assert!(
        matches!(
            error,
            StateError::Damaged {
                vcpu: 0,
                source: VcpuStateError::Length { field: "xsave", length: 64, .. }
            }
        ),
        "{error}"
    );
    let error = restore(|state| state.special_registers.fs.dpl = 7);
    assert!(error.to_string().starts_with("vCPU 0: dpl of a segment: 0x7"), "{error}");
    let error = restore(|state| state.xsave.resize(8192, 0));
    assert!(matches!(error, StateError::XsaveSize { saved: 8192, expected: 4096, .. }), "{error}");
}

#[test]
fn state_that_kvm_refuses_names_its_part() {
    if !kvm_or_skip() {
        return;
    }
    // Paging without protection; a state of XSAVE that does not exist; a reserved bit of MXCSR; XCR0 without
    // x87.
    let refused = |call: &str, change: fn(&mut VcpuState)| {
        let error = restore(change).to_string();
        assert!(error.contains(&format!("vCPU 0: KVM refused {call}: ")), "{call}: {error}");
    };
    refused("KVM_SET_SREGS", |state| state.special_registers.cr0 &= !1);
    refused("KVM_SET_XSAVE", |state| state.xsave[512 + 7] = 0x10);
    refused("KVM_SET_XSAVE", |state| (state.xsave[512], state.xsave[27]) = (3, 0xff));
    refused("KVM_SET_XCRS", |state| state.xcrs[0].value = 0);
}

#[test]
fn another_frequency_of_the_tsc_is_refused_where_kvm_cannot_scale_it() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(1, TestCpuid::Guest);
    let format = machine.format();
    let host = machine.vcpus[0].tsc_khz().unwrap();
    let clock = machine.vm.clock().unwrap();
    let restored = |khz| {
        let mut states = machine.save();
        states[0].tsc.khz = Some(khz);
        machine.restored(&states, &clock)
    };
    assert!(restored(host + host / 5000).is_ok(), "KVM tolerates 200 ppm");
    let result = restored(host / 2);
    if format.scales_tsc {
        let khz = result.unwrap().vcpus[0].tsc_khz().unwrap();
        assert_eq!(khz, host / 2);
        return;
    }
    let error = result.err().unwrap();
    let wanted = StateError::TscFrequency { vcpu: 0, saved: host / 2, host: Some(host) }.to_string();
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn number_of_vcpus_has_to_be_the_saved_one() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::new(2, TestCpuid::Guest);
    let clock = machine.vm.clock().unwrap();
    let mut states = machine.save();
    states.pop();
    let error = machine.restored(&states, &clock).err().unwrap();
    assert!(matches!(error, StateError::Count { saved: 1, vcpus: 2 }), "{error}");
}

/// A hypervisor in the guest cannot be saved while it is about to enter its guest.
#[test]
fn nested_virtualization_is_refused_by_name() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, nested(), Ring::Zero);
    let leaves = machine.kvm.supported_cpuid().unwrap();
    let has_svm = leaves.iter().any(|leaf| leaf.function == 0x8000_0001 && leaf.ecx & 1 << 2 != 0);
    if !has_svm || !machine.format().reports_nesting {
        skip("this KVM offers no SVM to guests");
        return;
    }
    stop(&mut machine);
    let error = machine.vcpus[0].save(machine.format()).unwrap_err();
    assert!(matches!(error, StateError::NestedVirtualization { vcpu: 0 }), "{error}");
    // A hypervisor that is loaded and has no guest is part of the registers.
    finish(&mut machine);
    let copy = machine.fork();
    assert_ne!(copy.save()[0].special_registers.efer & 1 << 12, 0);
}

#[test]
fn virtualization_that_kvm_does_not_report_is_seen_in_the_control_registers() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Machine::with_code(1, pass(), Ring::Zero);
    let vcpu = &machine.vcpus[0];
    let format =
        StateFormat { msrs: Vec::new(), xsave_bytes: 4096, scales_tsc: false, reports_nesting: false };
    let plain = vcpu.fd.get_sregs().unwrap();
    assert!(vcpu.refuse_nesting(&plain, &format).is_ok());
    for sregs in
        [kvm_sregs { cr4: plain.cr4 | 1 << 13, ..plain }, kvm_sregs { efer: plain.efer | 1 << 12, ..plain }]
    {
        let error = vcpu.refuse_nesting(&sregs, &format).unwrap_err();
        assert!(matches!(error, StateError::NestedVirtualization { vcpu: 0 }), "{error}");
    }
}

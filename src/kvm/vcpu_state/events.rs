//! Events, from KVM's structure to plain data and back.
//!
//! KVM leaves the details of events that have passed in its structure. They are dropped, so that equal states
//! are equal.

use coracle_arch::x86_64::vcpu_state::{ExceptionEvent, InterruptEvent, NmiEvent, SmmState, VcpuEvents};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1, kvm_vcpu_events__bindgen_ty_2,
    kvm_vcpu_events__bindgen_ty_3, kvm_vcpu_events__bindgen_ty_4, kvm_vcpu_events__bindgen_ty_5,
};

pub(super) fn events(events: &kvm_vcpu_events) -> VcpuEvents {
    let &kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        sipi_vector,
        flags,
        smi,
        triple_fault,
        reserved: _,
        exception_has_payload,
        exception_payload,
    } = events;
    let has = |flag: u32| flags & flag != 0;
    let has_payload = has(KVM_VCPUEVENT_VALID_PAYLOAD);
    let is_pending = has_payload && exception.pending != 0;
    let is_exception = exception.injected != 0 || is_pending;
    let is_interrupt = interrupt.injected != 0;
    VcpuEvents {
        exception: ExceptionEvent {
            injected: exception.injected != 0,
            pending: has_payload.then_some(is_pending),
            vector: if is_exception { exception.nr } else { 0 },
            error_code: (is_exception && exception.has_error_code != 0).then_some(exception.error_code),
            payload: (is_pending && exception_has_payload != 0).then_some(exception_payload),
        },
        interrupt: InterruptEvent {
            injected: is_interrupt,
            vector: if is_interrupt { interrupt.nr } else { 0 },
            soft: is_interrupt && interrupt.soft != 0,
            shadow: has(KVM_VCPUEVENT_VALID_SHADOW).then_some(interrupt.shadow),
        },
        nmi: NmiEvent {
            injected: nmi.injected != 0,
            pending: has(KVM_VCPUEVENT_VALID_NMI_PENDING).then_some(nmi.pending),
            masked: nmi.masked != 0,
        },
        sipi_vector: has(KVM_VCPUEVENT_VALID_SIPI_VECTOR).then_some(sipi_vector),
        smm: has(KVM_VCPUEVENT_VALID_SMM).then_some(SmmState {
            active: smi.smm != 0,
            pending: smi.pending != 0,
            inside_nmi: smi.smm_inside_nmi != 0,
            latched_init: smi.latched_init != 0,
        }),
        triple_fault: has(KVM_VCPUEVENT_VALID_TRIPLE_FAULT).then_some(triple_fault.pending != 0),
    }
}

pub(super) fn kvm_events(events: &VcpuEvents) -> kvm_vcpu_events {
    let VcpuEvents { exception, interrupt, nmi, sipi_vector, smm, triple_fault } = *events;
    let ExceptionEvent { injected, pending, vector, error_code, payload } = exception;
    let flag = |is_valid: bool, flag: u32| if is_valid { flag } else { 0 };
    let SmmState { active, pending: smi_pending, inside_nmi, latched_init } = smm.unwrap_or_default();
    kvm_vcpu_events {
        exception: kvm_vcpu_events__bindgen_ty_1 {
            injected: injected.into(),
            nr: vector,
            has_error_code: error_code.is_some().into(),
            pending: pending.unwrap_or(false).into(),
            error_code: error_code.unwrap_or(0),
        },
        interrupt: kvm_interrupt(interrupt),
        nmi: kvm_nmi(nmi),
        sipi_vector: sipi_vector.unwrap_or(0),
        flags: flag(pending.is_some(), KVM_VCPUEVENT_VALID_PAYLOAD)
            | flag(interrupt.shadow.is_some(), KVM_VCPUEVENT_VALID_SHADOW)
            | flag(nmi.pending.is_some(), KVM_VCPUEVENT_VALID_NMI_PENDING)
            | flag(sipi_vector.is_some(), KVM_VCPUEVENT_VALID_SIPI_VECTOR)
            | flag(smm.is_some(), KVM_VCPUEVENT_VALID_SMM)
            | flag(triple_fault.is_some(), KVM_VCPUEVENT_VALID_TRIPLE_FAULT),
        smi: kvm_vcpu_events__bindgen_ty_4 {
            smm: active.into(),
            pending: smi_pending.into(),
            smm_inside_nmi: inside_nmi.into(),
            latched_init: latched_init.into(),
        },
        triple_fault: kvm_vcpu_events__bindgen_ty_5 { pending: triple_fault.unwrap_or(false).into() },
        reserved: [0; 26],
        exception_has_payload: payload.is_some().into(),
        exception_payload: payload.unwrap_or(0),
    }
}

fn kvm_interrupt(event: InterruptEvent) -> kvm_vcpu_events__bindgen_ty_2 {
    let InterruptEvent { injected, vector, soft, shadow } = event;
    kvm_vcpu_events__bindgen_ty_2 {
        injected: injected.into(),
        nr: vector,
        soft: soft.into(),
        shadow: shadow.unwrap_or(0),
    }
}

fn kvm_nmi(event: NmiEvent) -> kvm_vcpu_events__bindgen_ty_3 {
    let NmiEvent { injected, pending, masked } = event;
    kvm_vcpu_events__bindgen_ty_3 {
        injected: injected.into(),
        pending: pending.unwrap_or(0),
        masked: masked.into(),
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_comes_back_with_the_flags_of_what_is_reported() {
        let all = VcpuEvents {
            exception: ExceptionEvent {
                injected: false,
                pending: Some(true),
                vector: 1,
                error_code: Some(0),
                payload: Some(0xffff_4ff0),
            },
            interrupt: InterruptEvent { injected: true, vector: 0x80, soft: true, shadow: Some(2) },
            nmi: NmiEvent { injected: true, pending: Some(1), masked: true },
            sipi_vector: Some(0x12),
            smm: Some(SmmState { active: true, pending: false, inside_nmi: true, latched_init: false }),
            triple_fault: Some(true),
        };
        let kvm = kvm_events(&all);
        assert_eq!((kvm.flags, events(&kvm)), (0x3f, all));
        let none = VcpuEvents::default();
        let kvm = kvm_events(&none);
        assert_eq!((kvm.flags, events(&kvm)), (0, none));
        let injected = ExceptionEvent { injected: true, pending: Some(false), vector: 13, ..none.exception };
        let some = VcpuEvents { exception: injected, ..none };
        assert_eq!((kvm_events(&some).flags, events(&kvm_events(&some))), (0x10, some));
    }

    #[test]
    fn remains_of_events_that_have_passed_are_dropped() {
        let mut kvm = kvm_events(&VcpuEvents::default());
        kvm.flags = 0x3f;
        (kvm.exception.nr, kvm.exception.has_error_code, kvm.exception.error_code) = (14, 1, 2);
        (kvm.exception_has_payload, kvm.exception_payload) = (1, 3);
        (kvm.interrupt.nr, kvm.interrupt.soft) = (0x40, 1);
        let passed = events(&kvm);
        assert_eq!(passed.exception, ExceptionEvent { pending: Some(false), ..ExceptionEvent::default() });
        assert_eq!(passed.interrupt, InterruptEvent { shadow: Some(0), ..InterruptEvent::default() });
    }
}

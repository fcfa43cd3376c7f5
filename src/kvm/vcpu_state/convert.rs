//! Registers and the MP state, from KVM's structures to plain data and back. Each function names every field,
//! so that none is forgotten.

use coracle_arch::x86_64::vcpu_state::{
    DebugRegisters, DescriptorTableRegister, GeneralRegisters, MpState, SegmentRegister, SpecialRegisters,
};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
};

use super::StateError;

/// Returns the MP state of vCPU `vcpu`. KVM has others for other architectures and for encrypted guests.
pub(super) fn mp_state(value: u32, vcpu: u32) -> Result<MpState, StateError> {
    match value {
        KVM_MP_STATE_RUNNABLE => Ok(MpState::Runnable),
        KVM_MP_STATE_UNINITIALIZED => Ok(MpState::Uninitialized),
        KVM_MP_STATE_INIT_RECEIVED => Ok(MpState::InitReceived),
        KVM_MP_STATE_HALTED => Ok(MpState::Halted),
        KVM_MP_STATE_SIPI_RECEIVED => Ok(MpState::SipiReceived),
        value => Err(StateError::Unknown { vcpu, field: "mp_state", value }),
    }
}

pub(super) fn kvm_mp_state_of(state: MpState) -> u32 {
    match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
    }
}

pub(super) fn general_registers(regs: &kvm_regs) -> GeneralRegisters {
    let &kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = regs;
    GeneralRegisters {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(super) fn kvm_registers(registers: &GeneralRegisters) -> kvm_regs {
    let &GeneralRegisters {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = registers;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

pub(super) fn special_registers(sregs: &kvm_sregs) -> SpecialRegisters {
    let &kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    } = sregs;
    SpecialRegisters {
        cs: segment(&cs),
        ds: segment(&ds),
        es: segment(&es),
        fs: segment(&fs),
        gs: segment(&gs),
        ss: segment(&ss),
        tr: segment(&tr),
        ldtr: segment(&ldt),
        gdtr: table(&gdt),
        idtr: table(&idt),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    }
}

pub(super) fn kvm_special_registers(registers: &SpecialRegisters) -> kvm_sregs {
    let &SpecialRegisters {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldtr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    } = registers;
    kvm_sregs {
        cs: kvm_segment_of(&cs),
        ds: kvm_segment_of(&ds),
        es: kvm_segment_of(&es),
        fs: kvm_segment_of(&fs),
        gs: kvm_segment_of(&gs),
        ss: kvm_segment_of(&ss),
        tr: kvm_segment_of(&tr),
        ldt: kvm_segment_of(&ldtr),
        gdt: kvm_table(gdtr),
        idt: kvm_table(idtr),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    }
}

fn segment(segment: &kvm_segment) -> SegmentRegister {
    let &kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: _ } =
        segment;
    SegmentRegister {
        base,
        limit,
        selector,
        type_,
        present: present != 0,
        dpl,
        db: db != 0,
        s: s != 0,
        l: l != 0,
        g: g != 0,
        avl: avl != 0,
        unusable: unusable != 0,
    }
}

fn kvm_segment_of(segment: &SegmentRegister) -> kvm_segment {
    let &SegmentRegister { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable } = segment;
    kvm_segment {
        base,
        limit,
        selector,
        type_,
        present: present.into(),
        dpl,
        db: db.into(),
        s: s.into(),
        l: l.into(),
        g: g.into(),
        avl: avl.into(),
        unusable: unusable.into(),
        padding: 0,
    }
}

fn table(table: &kvm_dtable) -> DescriptorTableRegister {
    let &kvm_dtable { base, limit, padding: _ } = table;
    DescriptorTableRegister { base, limit }
}

fn kvm_table(table: DescriptorTableRegister) -> kvm_dtable {
    let DescriptorTableRegister { base, limit } = table;
    kvm_dtable { base, limit, padding: [0; 3] }
}

pub(super) fn debug_registers(registers: &kvm_debugregs) -> DebugRegisters {
    // No flag is defined.
    let &kvm_debugregs { db, dr6, dr7, flags: _, reserved: _ } = registers;
    DebugRegisters { addresses: db, status: dr6, control: dr7 }
}

pub(super) fn kvm_debug_registers(registers: &DebugRegisters) -> kvm_debugregs {
    let &DebugRegisters { addresses, status, control } = registers;
    kvm_debugregs { db: addresses, dr6: status, dr7: control, flags: 0, reserved: [0; 9] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mp_states_come_back_and_others_are_refused() {
        let states = [
            MpState::Runnable,
            MpState::Uninitialized,
            MpState::InitReceived,
            MpState::Halted,
            MpState::SipiReceived,
        ];
        for state in states {
            assert_eq!(mp_state(kvm_mp_state_of(state), 0).unwrap(), state);
        }
        // KVM_MP_STATE_AP_RESET_HOLD, which only an encrypted guest has.
        let error = mp_state(9, 3).unwrap_err().to_string();
        assert!(error.starts_with("vCPU 3: KVM reports 9 as mp_state"), "{error}");
    }

    #[test]
    fn every_flag_of_a_segment_comes_back() {
        for bit in 0..7 {
            let is = |of: u32| bit == of;
            let register = SegmentRegister {
                base: 1 << 40,
                limit: 0xffff,
                selector: 0x2b,
                type_: 3,
                present: is(0),
                dpl: 2,
                db: is(1),
                s: is(2),
                l: is(3),
                g: is(4),
                avl: is(5),
                unusable: is(6),
            };
            assert_eq!(segment(&kvm_segment_of(&register)), register);
        }
    }
}

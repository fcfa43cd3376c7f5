//! Tests of the round trip through postcard, and of what is refused.

use proptest::prelude::*;

use super::*;

/// A state with a different value in each field.
fn state() -> VcpuState {
    let segment = |base| SegmentRegister {
        base,
        limit: 0xf_ffff,
        selector: 0x10,
        type_: 0xb,
        present: true,
        dpl: 3,
        db: false,
        s: true,
        l: true,
        g: true,
        avl: false,
        unusable: base == 8,
    };
    let table = |base| DescriptorTableRegister { base, limit: 0x7f };
    VcpuState {
        mp_state: MpState::Halted,
        registers: GeneralRegisters { rax: 1, r15: u64::MAX, rip: 0x1000, rflags: 2, ..Default::default() },
        special_registers: SpecialRegisters {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldtr: segment(8),
            gdtr: table(9),
            idtr: table(10),
            cr0: 11,
            cr2: 12,
            cr3: 13,
            cr4: 14,
            cr8: 15,
            efer: 16,
            apic_base: 17,
            interrupt_bitmap: [0, 1 << 63, 0, 0],
        },
        shadow_stack_pointer: Some(0x7fff_0000),
        xsave: (0..4096).map(|index| index as u8).collect(),
        xcrs: vec![Xcr { number: 0, value: 7 }],
        debug_registers: DebugRegisters { addresses: [1, 2, 3, 4], status: 0xffff_0ff0, control: 0x400 },
        local_apic: (0..1024).map(|index| (index / 4) as u8).collect(),
        events: VcpuEvents {
            exception: ExceptionEvent {
                injected: false,
                pending: Some(true),
                vector: 14,
                error_code: Some(2),
                payload: Some(0x1234),
            },
            interrupt: InterruptEvent { injected: true, vector: 0x7f, soft: false, shadow: Some(1) },
            nmi: NmiEvent { injected: false, pending: Some(1), masked: true },
            sipi_vector: None,
            smm: Some(SmmState { latched_init: true, ..SmmState::default() }),
            triple_fault: Some(false),
        },
        msrs: vec![(0x174, 8), (0xc000_0082, u64::MAX)],
        tsc: TscState { khz: Some(2_600_000), value: 1 << 40, offset: Some(-5) },
    }
}

fn refusal(change: impl FnOnce(&mut VcpuState)) -> String {
    let mut state = state();
    change(&mut state);
    state.check().unwrap_err().to_string()
}

#[test]
fn state_survives_postcard() {
    let state = state();
    assert_eq!(state.check(), Ok(()));
    let bytes = postcard::to_allocvec(&state).unwrap();
    let (back, rest) = postcard::take_from_bytes::<VcpuState>(&bytes).unwrap();
    assert_eq!((back, rest.len()), (state, 0));
    let clock =
        VmClockState { nanoseconds: 1, is_stable: true, realtime_nanoseconds: Some(2), host_tsc: Some(3) };
    let bytes = postcard::to_allocvec(&clock).unwrap();
    assert_eq!(postcard::from_bytes::<VmClockState>(&bytes), Ok(clock));
}

/// A file of version 1 has these bytes. A change of a field, of its order or of its type needs a new version.
#[test]
fn encoding_of_the_clock_and_of_a_register_is_fixed() {
    let clock =
        VmClockState { nanoseconds: 5, is_stable: true, realtime_nanoseconds: None, host_tsc: Some(300) };
    assert_eq!(postcard::to_allocvec(&clock).unwrap(), [5, 1, 0, 1, 0xac, 2]);
    assert_eq!(postcard::to_allocvec(&Xcr { number: 0, value: 7 }).unwrap(), [0, 7]);
    assert_eq!(postcard::to_allocvec(&MpState::Halted).unwrap(), [3]);
    let bytes = postcard::to_allocvec(&state()).unwrap();
    let sum = bytes.iter().fold(0u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
    assert_eq!((bytes.len(), sum), (5367, 2730259997));
}

#[test]
fn lists_above_their_limits_are_not_decoded() {
    let too_long: [fn(&mut VcpuState); 4] = [
        |state| state.xsave = vec![0; VcpuState::MAX_XSAVE_BYTES + 1],
        |state| state.xcrs = vec![Xcr { number: 0, value: 1 }; VcpuState::MAX_XCRS + 1],
        |state| state.local_apic.push(0),
        |state| state.msrs = vec![(1, 2); VcpuState::MAX_MSRS + 1],
    ];
    for change in too_long {
        let mut state = state();
        change(&mut state);
        let bytes = postcard::to_allocvec(&state).unwrap();
        assert!(postcard::from_bytes::<VcpuState>(&bytes).is_err());
    }
}

#[test]
fn lengths_that_kvm_does_not_give_are_refused() {
    assert_eq!(
        refusal(|state| state.xsave.truncate(100)),
        "xsave: 100 elements are not possible, only 4096 to 65536; the state is damaged"
    );
    assert!(refusal(|state| state.local_apic.truncate(1023)).starts_with("local_apic: 1023"));
    let xcr = |number| Xcr { number, value: 1 };
    assert!(refusal(|state| state.xcrs = (0..17).map(xcr).collect()).starts_with("xcrs: 17"));
    assert!(refusal(|state| state.msrs = vec![(1, 0); 1025]).starts_with("msrs: 1025"));
}

#[test]
fn values_that_no_cpu_has_are_refused_by_name() {
    assert!(refusal(|state| state.special_registers.gs.type_ = 16).starts_with("type of a segment: 0x10"));
    assert!(refusal(|state| state.special_registers.ldtr.dpl = 4).starts_with("dpl of a segment: 0x4"));
    assert!(refusal(|state| state.special_registers.cr8 = 16).starts_with("cr8: 0x10"));
    assert!(refusal(|state| state.special_registers.interrupt_bitmap[3] = 1).starts_with("interrupt_bitmap"));
    assert!(refusal(|state| state.debug_registers.status = 1 << 32).starts_with("dr6: 0x100000000"));
    assert!(refusal(|state| state.debug_registers.control = 1 << 40).starts_with("dr7"));
    assert!(refusal(|state| state.events.exception.vector = 32).starts_with("exception.vector: 0x20"));
    assert!(refusal(|state| state.events.exception.vector = 2).starts_with("exception.vector: 0x2"));
    assert!(refusal(|state| state.events.exception.injected = true).starts_with("exception.pending"));
    assert!(refusal(|state| state.events.exception.pending = None).starts_with("exception.payload: 0x1234"));
    assert!(refusal(|state| state.events.interrupt.shadow = Some(4)).starts_with("interrupt.shadow"));
    assert!(refusal(|state| state.events.nmi.pending = Some(3)).starts_with("nmi.pending"));
    assert!(refusal(|state| state.events.sipi_vector = Some(256)).starts_with("sipi_vector"));
    assert!(refusal(|state| state.msrs[1].0 = 0x174).starts_with("msrs: register 0x174 occurs twice"));
    assert!(refusal(|state| state.xcrs = vec![state.xcrs[0]; 2]).starts_with("xcrs: register 0x0"));
    assert!(refusal(|state| state.tsc.khz = Some(0)).starts_with("tsc.khz: 0x0"));
}

proptest! {
    /// Any bytes are decoded or refused, and what was decoded is checked, without a panic.
    #[test]
    fn damaged_bytes_never_panic(at in 0..5000usize, bytes: [u8; 8], cut in 0..6000usize) {
        let mut encoded = postcard::to_allocvec(&state()).unwrap();
        for (to, from) in encoded.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        encoded.truncate(cut);
        if let Ok(state) = postcard::from_bytes::<VcpuState>(&encoded) {
            let _ = state.check();
        }
    }
}

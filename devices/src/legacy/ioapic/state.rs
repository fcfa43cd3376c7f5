//! The saved state of the I/O APIC: its registers. Inputs have no level, so there is neither a pending
//! interrupt (IRR) nor one that waits for an EOI (remote IRR).

use serde::{Deserialize, Serialize};

use super::{ID_MASK, MASKED, PIN_COUNT, WRITABLE};
use crate::state::{SavedState, StateError, at_most, exactly, only_bits};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct IoApicState {
    /// The last input that the machine has.
    pub(super) last: u8,
    /// The redirection table. Entries after the last input are as after a reset.
    pub(super) entries: [u64; PIN_COUNT],
    /// IOREGSEL, which keeps any index.
    pub(super) selected: u8,
    /// Bits 27:24 of the ID register.
    pub(super) id: u8,
}

impl IoApicState {
    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the state after a check of its values, for an I/O APIC whose last input is `own_last`.
    pub(super) fn decode(saved: &SavedState, own_last: u8) -> Result<Self, StateError> {
        let state: Self = saved.decode(VERSION)?;
        let Self { last, entries, selected: _, id } = &state;
        exactly("last", *last, own_last)?;
        for (pin, entry) in (0..=u8::MAX).zip(entries) {
            let is_there = pin <= own_last;
            let checked = if is_there {
                only_bits("entries", *entry, WRITABLE)
            } else {
                exactly("entries", *entry, MASKED)
            };
            checked.map_err(|error| error.of_entry(pin))?;
        }
        at_most("id", *id, ID_MASK)?;
        Ok(state)
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::*;
    use super::*;
    use crate::testing::{MsiLog, refuses_damaged_states, saved, survives_any_state};

    fn machine(last: u8) -> (IoApic, Arc<MsiLog>) {
        let log = Arc::new(MsiLog::default());
        (IoApic::new(log.clone(), last), log)
    }

    fn write(apic: &IoApic, index: u8, value: u32) {
        apic.write(SELECT, &u32::from(index).to_le_bytes());
        apic.write(WINDOW, &value.to_le_bytes());
    }

    fn read(apic: &IoApic, offset: u64) -> u32 {
        let mut data = [0; 4];
        apic.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Returns every register, beginning with the selected one.
    fn registers(apic: &IoApic) -> Vec<u32> {
        let first = [read(apic, SELECT), read(apic, WINDOW)];
        let all = (0..=u8::MAX).map(|index| {
            apic.write(SELECT, &u32::from(index).to_le_bytes());
            read(apic, WINDOW)
        });
        first.into_iter().chain(all).collect()
    }

    fn routes(log: &MsiLog) -> Vec<(u8, Option<MsiMessage>)> {
        std::mem::take(&mut log.routes.lock().unwrap())
    }

    /// An I/O APIC with two inputs in use, an ID, and the register of an entry selected.
    fn used() -> (IoApic, Arc<MsiLog>) {
        let (apic, log) = machine(23);
        write(&apic, 0, 0x0500_0000);
        write(&apic, 0x11 + 2 * 4, 0x0300_0000);
        write(&apic, 0x10 + 2 * 4, 0x24);
        write(&apic, 0x10 + 2 * 23, 0xa040);
        write(&apic, 0x10 + 2 * 9, 0x1_0031);
        apic.write(SELECT, &0x13_u32.to_le_bytes());
        (apic, log)
    }

    fn state_of(apic: &IoApic) -> IoApicState {
        IoApicState::decode(&apic.save(), apic.pins.last).unwrap()
    }

    #[test]
    fn restored_io_apic_has_the_same_registers_and_announces_its_routes() {
        let (source, source_log) = used();
        let (target, log) = machine(23);
        assert_eq!(target.restore(&source.save()), Ok(()));
        let expected = [
            (4, Some(MsiMessage { address: 0xfee0_3000, data: 0x24 })),
            (23, Some(MsiMessage { address: 0xfee0_0000, data: 0xc040 })),
        ];
        assert_eq!(routes(&log), expected);
        assert_eq!(read(&target, SELECT), 0x13);
        for pin in 0..24 {
            source.line(pin).unwrap().pulse();
            target.line(pin).unwrap().pulse();
        }
        assert_eq!(log.sent.lock().unwrap().len(), 2);
        assert_eq!(*log.sent.lock().unwrap(), *source_log.sent.lock().unwrap());
        assert_eq!(registers(&target), registers(&source));
    }

    #[test]
    fn lines_that_were_made_before_use_the_restored_entries() {
        let (target, log) = machine(23);
        let line = target.line(4).unwrap();
        assert_eq!(target.restore(&used().0.save()), Ok(()));
        line.pulse();
        assert_eq!(*log.sent.lock().unwrap(), [MsiMessage { address: 0xfee0_3000, data: 0x24 }]);
    }

    #[test]
    fn sink_learns_of_routes_that_end_and_again_of_those_that_stay() {
        let (target, log) = used();
        write(&target, 0x10 + 2 * 7, 0x77);
        let earlier = used().0.save();
        routes(&log);
        assert_eq!(target.restore(&earlier), Ok(()));
        let pins: Vec<_> = routes(&log).into_iter().map(|(pin, message)| (pin, message.is_some())).collect();
        assert_eq!(pins, [(4, true), (7, false), (23, true)]);
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let (apic, _) = machine(9);
        write(&apic, 0, 0x0500_0000);
        write(&apic, 0x10, 0x30);
        let masked = [0x80, 0x80, 0x04];
        let bytes = [&[9, 0x30][..], &masked.repeat(23), &[0x10, 5]].concat();
        assert_eq!(apic.save(), saved(1, &bytes));
    }

    #[test]
    fn each_field_out_of_range_is_refused_by_name() {
        let refused = |change: fn(&mut IoApicState)| {
            let mut state = state_of(&machine(9).0);
            change(&mut state);
            let (target, log) = machine(9);
            let before = target.save();
            let error = target.restore(&state.encode()).unwrap_err();
            assert_eq!((target.save(), routes(&log)), (before, vec![]));
            error.to_string()
        };
        assert_eq!(refused(|state| state.last = 23), "field `last` is 0x17: always 0x9 here");
        assert_eq!(refused(|state| state.id = 0x10), "field `id` is 0x10: at most 0xf");
        let missing = "field `entries[10]` is 0x30: always 0x10000 here";
        assert_eq!(refused(|state| state.entries[10] = 0x30), missing);
        let remote_irr = "field `entries[9]` is 0x4030: only the bits of 0xff0000000001afff can be set";
        assert_eq!(refused(|state| state.entries[9] = 0x4030), remote_irr);
    }

    #[test]
    fn exactly_the_writable_bits_of_an_entry_are_accepted() {
        let (target, _) = machine(23);
        for pin in 0..PIN_COUNT {
            for bit in 0..64 {
                let mut state = state_of(&target);
                state.entries[pin] = 1 << bit;
                let accepted = IoApicState::decode(&state.encode(), 23).is_ok();
                assert_eq!(accepted, WRITABLE & (1 << bit) != 0, "entry {pin}, bit {bit}");
            }
        }
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        let (apic, _) = used();
        refuses_damaged_states(&apic);
        survives_any_state(&apic, 0x60);
    }

    proptest! {
        /// Every state that an I/O APIC can reach is accepted, and the restored one goes on alike.
        #[test]
        fn restored_io_apic_goes_on_alike(
            last in 0..30_u8,
            before in proptest::collection::vec((0..0x45_u8, any::<u32>()), 0..40),
            after in proptest::collection::vec((0..0x45_u8, any::<u32>()), 0..10),
        ) {
            let (source, source_log) = machine(last);
            before.iter().for_each(|(index, value)| write(&source, *index, *value));
            let (target, log) = machine(last);
            prop_assert_eq!(target.restore(&source.save()), Ok(()));
            prop_assert_eq!(target.save(), source.save());
            routes(&log);
            routes(&source_log);
            for (index, value) in after {
                write(&source, index, value);
                write(&target, index, value);
            }
            prop_assert_eq!(routes(&log), routes(&source_log));
            for line in (0..24).filter_map(|pin| Some([source.line(pin)?, target.line(pin)?])) {
                line.iter().for_each(|line| line.pulse());
            }
            prop_assert_eq!(&*log.sent.lock().unwrap(), &*source_log.sent.lock().unwrap());
            prop_assert_eq!(registers(&target), registers(&source));
        }
    }
}

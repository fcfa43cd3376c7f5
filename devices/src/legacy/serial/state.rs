//! The saved state of a serial port: its registers, and the received bytes that the guest has not read.
//!
//! Two registers follow from the rest and are not saved: the line status, in which only the bit for received
//! data changes, and the modem status, which is constant. A transmitted byte is in the console's buffer
//! before the guest can be stopped, and the transmitter is always empty.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState;

use crate::state::{SavedState, StateError, at_most};

/// Version 1 of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PortState {
    divisor_low: u8,
    divisor_high: u8,
    interrupt_enable: u8,
    /// The interrupts that the guest has not acknowledged, without the FIFO bits of the register.
    interrupt_identification: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// The received bytes, the oldest first.
    fifo: Vec<u8>,
}

impl PortState {
    pub(super) fn of(registers: SerialState) -> Self {
        let SerialState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status: _,
            modem_control,
            modem_status: _,
            scratch,
            in_buffer: fifo,
        } = registers;
        Self {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            modem_control,
            scratch,
            fifo,
        }
    }

    pub(super) fn encode(&self) -> SavedState {
        SavedState::encode(VERSION, self)
    }

    /// Returns the registers after a check of their values.
    pub(super) fn decode(saved: &SavedState) -> Result<SerialState, StateError> {
        let state: Self = saved.decode(VERSION)?;
        state.check()?;
        let Self {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            modem_control,
            scratch,
            fifo,
        } = state;
        let SerialState { line_status, modem_status, .. } = SerialState::default();
        Ok(SerialState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status: if fifo.is_empty() { line_status } else { line_status | DATA_READY },
            modem_control,
            modem_status,
            scratch,
            in_buffer: fifo,
        })
    }

    /// Checks what the guest or the input could not have caused. The registers without a line here keep
    /// whatever the guest writes.
    fn check(&self) -> Result<(), StateError> {
        let Self {
            divisor_low: _,
            divisor_high: _,
            interrupt_enable,
            interrupt_identification,
            line_control: _,
            modem_control: _,
            scratch: _,
            fifo,
        } = self;
        at_most("interrupt_enable", *interrupt_enable, INTERRUPT_ENABLE_BITS)?;
        if fifo.len() > FIFO_LEN {
            let allowed = format!("at most {FIFO_LEN}").into();
            return Err(StateError::Length { field: "fifo", len: fifo.len(), allowed });
        }
        let refused =
            |allowed| StateError::field("interrupt_identification", *interrupt_identification, allowed);
        match *interrupt_identification {
            NO_INTERRUPT | TRANSMITTER_EMPTY => Ok(()),
            RECEIVED_DATA | BOTH if !fifo.is_empty() => Ok(()),
            RECEIVED_DATA | BOTH => Err(refused("0x1 or 0x2 while `fifo` is empty")),
            _ => Err(refused("0x1, 0x2, 0x4 or 0x6")),
        }
    }
}

const VERSION: u16 = 1;
/// The receive FIFO of vm-superio's `Serial`.
const FIFO_LEN: usize = 64;
/// The four interrupts of a 16550A (PC16550D data sheet, table II).
const INTERRUPT_ENABLE_BITS: u8 = 0x0f;
/// Interrupt identification. vm-superio sets a bit for each cause, where a 16550A has the number of the most
/// urgent one.
const NO_INTERRUPT: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const RECEIVED_DATA: u8 = 1 << 2;
const BOTH: u8 = TRANSMITTER_EMPTY | RECEIVED_DATA;
/// Line status: the FIFO is not empty.
const DATA_READY: u8 = 1 << 0;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::*;
    use super::*;
    use crate::testing::{PulseCount, refuses_damaged_states, saved, survives_any_state};

    const DATA: u64 = 0;
    const ENABLE: u64 = 1;
    const IDENTIFICATION: u64 = 2;
    const LINE: u64 = 3;
    const MODEM: u64 = 4;

    struct Machine {
        port: SerialPort,
        console: Arc<ConsoleBuffer>,
        irq: Arc<PulseCount>,
    }

    fn machine() -> Machine {
        let console = Arc::new(ConsoleBuffer::new(1024).unwrap());
        let irq = Arc::new(PulseCount::default());
        let port = SerialPort::new(console.clone(), irq.clone()).unwrap();
        Machine { port, console, irq }
    }

    impl Machine {
        fn writes(self, writes: &[(u64, u8)]) -> Machine {
            writes.iter().for_each(|(offset, value)| self.port.write_byte(*offset, *value));
            self
        }

        fn gets(self, input: &[u8]) -> Machine {
            assert_eq!(self.port.enqueue_input(input), input.len());
            self
        }

        /// Returns a new machine with the state of this one's port.
        fn copy(&self) -> Machine {
            let copy = machine();
            assert_eq!(copy.port.restore(&self.port.save()), Ok(()));
            assert_eq!(copy.port.save(), self.port.save());
            copy
        }

        /// Reads every register, with and without the divisor's, until the FIFO is empty.
        fn registers(&self) -> Vec<u8> {
            let line = self.port.read_byte(LINE);
            self.port.write_byte(LINE, line | 0x80);
            let divisor: Vec<u8> = [DATA, ENABLE].map(|offset| self.port.read_byte(offset)).into();
            self.port.write_byte(LINE, line & 0x7f);
            let rounds = (0..FIFO_LEN).flat_map(|_| 0..SerialPort::WINDOW_LEN);
            divisor
                .into_iter()
                .chain([line])
                .chain(rounds.map(|offset| self.port.read_byte(offset)))
                .collect()
        }
    }

    #[test]
    fn restored_port_has_the_same_registers_and_received_bytes() {
        let divisor = [(LINE, 0x80), (DATA, 0x12), (ENABLE, 0x34), (LINE, 0x1b)];
        let others = [(ENABLE, 0x0d), (MODEM, 0xeb), (7, 0x5a)];
        let source = machine().writes(&divisor).gets(b"typed").writes(&others);
        let copy = source.copy();
        let registers = source.registers();
        assert_eq!(copy.registers(), registers);
        assert_ne!(machine().registers(), registers);
        let received = registers.iter().filter(|byte| b"typed".contains(byte)).count();
        assert_eq!(received, 5, "{registers:x?}");
    }

    #[test]
    fn port_in_its_first_state_is_restored_without_an_interrupt() {
        let copy = machine().copy();
        assert_eq!(copy.irq.take(), 0);
        assert_eq!(copy.registers(), machine().registers());
    }

    #[test]
    fn interrupt_that_was_not_acknowledged_comes_again_once() {
        let received = machine().gets(b"a").writes(&[(ENABLE, 0x01)]);
        let transmitted = machine().writes(&[(ENABLE, 0x02)]);
        let both = machine().gets(b"a").writes(&[(ENABLE, 0x03)]);
        for (source, cause) in [(received, 0x04), (transmitted, 0x02), (both, 0x06)] {
            let copy = source.copy();
            assert_eq!(copy.irq.take(), 1, "{cause:#x}");
            assert_eq!(copy.port.read_byte(IDENTIFICATION), 0xc0 | cause);
            assert_eq!(copy.irq.take(), 0);
        }
    }

    #[test]
    fn interrupt_that_was_acknowledged_or_disabled_does_not_come_again() {
        let acknowledged = machine().gets(b"a").writes(&[(ENABLE, 0x01)]);
        acknowledged.port.read_byte(IDENTIFICATION);
        let disabled = machine().gets(b"a").writes(&[(ENABLE, 0x01), (ENABLE, 0x00)]);
        for source in [acknowledged, disabled] {
            let copy = source.copy();
            assert_eq!(copy.irq.take(), 0);
            source.irq.take();
            for machine in [source, copy] {
                machine.port.write_byte(ENABLE, 0x03);
                machine.port.enqueue_input(b"b");
                assert_eq!((machine.irq.take(), machine.port.read_byte(DATA)), (1, b'a'));
            }
        }
    }

    #[test]
    fn output_and_waiting_input_stay_with_their_machine() {
        let source = machine().writes(&[(DATA, b'x')]);
        assert_eq!(source.port.enqueue_input(&[b'i'; 100]), 64, "36 bytes wait on the host's side");
        let copy = source.copy();
        assert!(copy.console.is_empty());
        assert!(!copy.port.has_input_room(), "the FIFO came along");
        (0..32).for_each(|_| assert_eq!(copy.port.read_byte(DATA), b'i'));
        assert!(copy.port.room_event().read().is_ok());
        assert!(source.port.room_event().read().is_err());
    }

    #[test]
    fn thread_that_waits_for_room_learns_of_a_restored_empty_fifo() {
        let target = machine();
        assert_eq!(target.port.enqueue_input(&[b'i'; 65]), 64);
        assert_eq!(target.port.restore(&machine().port.save()), Ok(()));
        assert!(target.port.room_event().read().is_ok());
        assert_eq!(target.port.enqueue_input(b"b"), 1);
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let source = machine().gets(b"ab").writes(&[(ENABLE, 0x01), (7, 0x5a)]);
        let bytes = [0x0c, 0x00, 0x01, 0x04, 0x03, 0x08, 0x5a, 2, b'a', b'b'];
        assert_eq!(source.port.save(), saved(1, &bytes));
    }

    #[test]
    fn each_field_out_of_range_is_refused_by_name() {
        let refused = |change: fn(&mut PortState)| {
            let mut state = PortState::of(SerialState::default());
            change(&mut state);
            let target = machine().gets(b"own").writes(&[(7, 1)]);
            let before = target.port.save();
            let error = target.port.restore(&state.encode()).unwrap_err();
            assert_eq!((target.port.save(), target.irq.take()), (before, 0));
            error.to_string()
        };
        let enable = "field `interrupt_enable` is 0x10: at most 0xf";
        assert_eq!(refused(|state| state.interrupt_enable = 0x10), enable);
        assert_eq!(refused(|state| state.fifo = vec![0; 65]), "field `fifo` has 65 entries: at most 64");
        let empty = "field `interrupt_identification` is 0x4: 0x1 or 0x2 while `fifo` is empty";
        assert_eq!(refused(|state| state.interrupt_identification = 0x04), empty);
        let unknown = "field `interrupt_identification` is 0xc1: 0x1, 0x2, 0x4 or 0x6";
        assert_eq!(refused(|state| state.interrupt_identification = 0xc1), unknown);
        for value in (0..=u8::MAX).filter(|value| ![1, 2, 4, 6].contains(value)) {
            let mut state = PortState::of(SerialState::default());
            state.fifo.push(0);
            state.interrupt_identification = value;
            assert!(PortState::decode(&state.encode()).is_err(), "{value:#x}");
        }
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        let own = machine().gets(b"own").writes(&[(ENABLE, 0x03)]);
        refuses_damaged_states(&own.port);
        survives_any_state(&own.port, SerialPort::WINDOW_LEN);
    }

    /// An access of the guest, or input of so many bytes.
    #[derive(Clone, Debug)]
    enum Step {
        Read(u64),
        Write(u64, u8),
        Input(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Modem control without most of its bits, so that loopback is not on half of the time.
        let write = (0..8_u64, any::<u8>()).prop_map(|(offset, value)| {
            Step::Write(offset, if offset == MODEM { value & 0x1f } else { value })
        });
        let enable = any::<u8>().prop_map(|value| Step::Write(ENABLE, value));
        prop_oneof![(0..8_u64).prop_map(Step::Read), write, enable, (0..40_usize).prop_map(Step::Input)]
    }

    fn run(machine: &Machine, step: &Step) -> (usize, usize) {
        let result = match *step {
            Step::Read(offset) => usize::from(machine.port.read_byte(offset)),
            Step::Input(count) => machine.port.enqueue_input(&[b'i'; 40][..count]),
            Step::Write(offset, value) => {
                machine.port.write_byte(offset, value);
                0
            }
        };
        (result, machine.irq.take())
    }

    proptest! {
        /// Every state that a port can reach is accepted, and the restored port goes on like the first.
        #[test]
        fn restored_port_goes_on_alike(
            before in proptest::collection::vec(step(), 0..40),
            after in proptest::collection::vec(step(), 0..40),
        ) {
            let source = machine();
            for step in &before {
                run(&source, step);
            }
            let copy = source.copy();
            copy.irq.take();
            for step in &after {
                prop_assert_eq!(run(&copy, step), run(&source, step), "{:?}", step);
            }
            prop_assert_eq!(copy.registers(), source.registers());
        }
    }
}

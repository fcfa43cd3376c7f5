//! COM1: a 16550 UART between a guest and the console of the host.
//!
//! vCPU threads reach its registers through the bus, and an I/O thread feeds it input. Output goes into a
//! [`ConsoleBuffer`], so that a vCPU never waits for the console's reader. The registers are those of
//! vm-superio's `Serial`. This file makes them safe to share and keeps system calls out of its lock.

mod state;

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::state::PortState;
use super::LegacyDevice;
use crate::backend::console_buffer::ConsoleBuffer;
use crate::backend::console_input::ConsoleInput;
use crate::bus::ByteRegisters;
use crate::irq::IrqLine;
use crate::lock;
use crate::state::{Restoration, SavedState, StateError};

/// A serial port: eight byte registers and a receive FIFO of 64 bytes.
pub struct SerialPort {
    uart: Mutex<Uart>,
    console: Arc<ConsoleBuffer>,
    irq: Arc<dyn IrqLine>,
    room: EventFd,
}

impl SerialPort {
    /// Length of the window in ports.
    pub const WINDOW_LEN: u64 = 8;

    /// Creates a port that prints into `console` and interrupts through `irq`.
    ///
    /// # Errors
    /// The host cannot make an eventfd.
    pub fn new(console: Arc<ConsoleBuffer>, irq: Arc<dyn IrqLine>) -> io::Result<Self> {
        let room = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self { uart: Mutex::new(Uart { serial: fresh_uart(), wants_room: false }), console, irq, room })
    }

    /// Puts bytes of `input` into the receive FIFO and returns how many it took: 0 while the FIFO is full or
    /// the guest has the UART in loopback. After it has taken fewer than offered, [`Self::room_event`] fires
    /// later.
    pub fn enqueue_input(&self, input: &[u8]) -> usize {
        self.access(|uart| {
            // The error means that the FIFO is full and took nothing.
            let taken = uart.serial.enqueue_raw_bytes(input).unwrap_or(0);
            uart.wants_room |= taken < input.len();
            taken
        })
    }

    /// Returns whether [`Self::enqueue_input`] would take a byte now. After the result `false`,
    /// [`Self::room_event`] fires once that changes. The caller stops reading its input until then.
    pub fn has_input_room(&self) -> bool {
        self.access(|uart| {
            let has_room = uart.input_room() > 0;
            uart.wants_room |= !has_room;
            has_room
        })
    }

    /// Returns the event that fires when input was held back and the guest has since freed a good part of a
    /// FIFO. The reader clears it by reading it, before it asks for space again.
    pub fn room_event(&self) -> &EventFd {
        &self.room
    }

    /// Runs one step on the UART, and then, without the lock, the actions that the step requested.
    fn access<R>(&self, step: impl FnOnce(&mut Uart) -> R) -> R {
        let mut uart = lock(&self.uart);
        let result = step(&mut uart);
        let output = uart.serial.writer_mut().0.take();
        let pulse = uart.serial.interrupt_evt().0.take();
        let room = uart.takes_room_notice();
        drop(uart);

        if let Some(byte) = output {
            self.console.push(&[byte]);
        }
        if pulse {
            self.irq.pulse();
        }
        if room {
            // The only failure is a counter at its maximum, and then the event is already readable.
            let _ = self.room.write(1);
        }
        result
    }
}

impl LegacyDevice for SerialPort {
    /// Clears the registers and the receive FIFO, and reports space to a thread that waits for it.
    fn reset(&self) {
        self.access(|uart| uart.serial = fresh_uart());
    }

    /// The ends of the host keep what has not come in and what has gone out: input that the FIFO has not
    /// taken, and the output in the console's buffer. They belong to the machine in which they arose.
    fn save(&self) -> SavedState {
        let Self { uart, console: _, irq: _, room: _ } = self;
        // Whether the I/O thread waits for room is a question of this machine's thread. Another one asks by
        // itself.
        let Uart { serial, wants_room: _ } = &*lock(uart);
        PortState::of(serial.state()).encode()
    }

    /// An interrupt that the guest has enabled and not acknowledged comes again. A thread that waits for room
    /// learns of it.
    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let registers = PortState::decode(state)?;
        // Its only error is a FIFO that is too long, which the check has refused.
        let serial = Serial::from_state(&registers, PulseRequest::default(), NoEvents, Outbox::default());
        let serial = serial.map_err(|_| StateError::Length {
            field: "fifo",
            len: registers.in_buffer.len(),
            allowed: "what the UART takes".into(),
        })?;
        Ok(Restoration::new(move || self.access(|uart| uart.serial = serial)))
    }
}

impl ByteRegisters for SerialPort {
    fn read_byte(&self, offset: u64) -> u8 {
        match register(offset) {
            Some(register) => self.access(|uart| uart.serial.read(register)),
            None => 0xff,
        }
    }

    fn write_byte(&self, offset: u64, value: u8) {
        if let Some(register) = register(offset) {
            // Neither the outbox nor the pulse request can fail.
            self.access(|uart| uart.serial.write(register, value).unwrap_or_default());
        }
    }
}

fn fresh_uart() -> Serial<PulseRequest, NoEvents, Outbox> {
    Serial::new(PulseRequest::default(), Outbox::default())
}

struct Uart {
    serial: Serial<PulseRequest, NoEvents, Outbox>,
    /// Whether input was refused, so that the I/O thread waits for `room`.
    wants_room: bool,
}

impl Uart {
    /// Returns the bytes that input may fill. There are none in loopback, which cuts the receiver off from
    /// the line.
    fn input_room(&mut self) -> usize {
        if self.serial.read(MODEM_CONTROL) & LOOPBACK != 0 { 0 } else { self.serial.fifo_capacity() }
    }

    /// Returns true once for each time that space was wanted and there is enough.
    fn takes_room_notice(&mut self) -> bool {
        let due = self.wants_room && self.input_room() >= ROOM_NOTICE;
        if due {
            self.wants_room = false;
        }
        due
    }
}

/// Records that the UART has requested an interrupt, until its lock is free.
#[derive(Default)]
struct PulseRequest(Cell<bool>);

impl Trigger for PulseRequest {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.set(true);
        Ok(())
    }
}

/// Holds the byte that one register write sent, until the UART's lock is free.
#[derive(Default)]
struct Outbox(Option<u8>);

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|_| offset < SerialPort::WINDOW_LEN)
}

/// Half of the FIFO: an event per byte would wake the I/O thread for each typed byte.
const ROOM_NOTICE: usize = 32;
/// Modem control register: reading it has no side effect.
const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;

impl ConsoleInput for SerialPort {
    fn enqueue_input(&self, input: &[u8]) -> usize {
        SerialPort::enqueue_input(self, input)
    }

    fn has_input_room(&self) -> bool {
        SerialPort::has_input_room(self)
    }

    fn room_event(&self) -> &EventFd {
        SerialPort::room_event(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::{PulseCount, sweep};

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const DATA_READY: u8 = 1;
    const CONSOLE_BYTES: usize = 1024;

    struct Machine {
        port: SerialPort,
        console: Arc<ConsoleBuffer>,
        irq: Arc<PulseCount>,
    }

    fn machine() -> Machine {
        let console = Arc::new(ConsoleBuffer::new(CONSOLE_BYTES).unwrap());
        let irq = Arc::new(PulseCount::default());
        let port = SerialPort::new(console.clone(), irq.clone()).unwrap();
        Machine { port, console, irq }
    }

    impl Machine {
        fn read(&self, offset: u64) -> u8 {
            let mut data = [0];
            self.port.read(offset, &mut data);
            data[0]
        }

        fn read_data(&self, count: usize) {
            for _ in 0..count {
                self.read(DATA);
            }
        }

        fn printed(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            self.console.drain(|piece| {
                bytes.extend_from_slice(piece);
                piece.len()
            });
            bytes
        }

        fn room_noticed(&self) -> bool {
            self.port.room_event().read().is_ok()
        }
    }

    #[test]
    fn transmitted_bytes_reach_the_console_in_order() {
        let machine = machine();
        for byte in *b"hello" {
            machine.port.write(DATA, &[byte]);
        }
        assert_eq!(machine.printed(), b"hello");
    }

    #[test]
    fn wide_write_fills_ascending_registers() {
        let machine = machine();
        // outw to 0x3f8: the data register and the interrupt enable register.
        machine.port.write(DATA, &[b'x', 0x03]);
        assert_eq!(machine.printed(), b"x");
        assert_eq!(machine.read(INTERRUPT_ENABLE), 0x03);
        let mut data = [0; 8];
        machine.port.read(0, &mut data);
        assert_eq!([data[1], data[3], data[5]], [0x03, 0x03, 0x60]);
    }

    #[test]
    fn reset_empties_the_fifo_clears_the_registers_and_reports_room() {
        let machine = machine();
        machine.port.write(INTERRUPT_ENABLE, &[0x0f]);
        machine.port.write(7, &[0x5a]);
        assert_eq!(machine.port.enqueue_input(&[b'a'; 100]), 64);
        assert!(!machine.room_noticed());
        machine.port.reset();
        assert_eq!((machine.read(INTERRUPT_ENABLE), machine.read(7)), (0, 0));
        assert_eq!(machine.read(LINE_STATUS) & DATA_READY, 0);
        assert!(machine.room_noticed());
        assert_eq!(machine.port.enqueue_input(b"b"), 1);
    }

    #[test]
    fn access_past_the_window_is_all_ones_and_ignored() {
        let machine = machine();
        let mut data = [0; 4];
        machine.port.read(6, &mut data);
        machine.port.write(8, b"lost");
        assert_eq!(data[2..], [0xff, 0xff]);
        assert!(machine.console.is_empty());
    }

    #[test]
    fn input_interrupts_and_reads_back() {
        let machine = machine();
        machine.port.write(INTERRUPT_ENABLE, &[0x01]);
        machine.irq.take();
        assert_eq!(machine.port.enqueue_input(b"ab"), 2);
        assert_eq!(machine.irq.take(), 1);
        assert_eq!(machine.read(LINE_STATUS) & DATA_READY, DATA_READY);
        assert_eq!([machine.read(DATA), machine.read(DATA)], *b"ab");
        assert_eq!(machine.read(LINE_STATUS) & DATA_READY, 0);
    }

    #[test]
    fn input_before_the_guest_listens_interrupts_when_it_does() {
        let machine = machine();
        machine.port.enqueue_input(b"a");
        assert_eq!(machine.irq.take(), 0);
        machine.port.write(INTERRUPT_ENABLE, &[0x01]);
        assert_eq!(machine.irq.take(), 1);
    }

    #[test]
    fn input_is_bounded_and_room_is_noticed_once() {
        let machine = machine();
        assert!(machine.port.has_input_room());
        assert_eq!(machine.port.enqueue_input(&[b'x'; 100]), 64);
        assert_eq!(machine.port.enqueue_input(b"y"), 0);
        assert!(!machine.port.has_input_room());
        machine.read_data(31);
        assert!(!machine.room_noticed(), "31 bytes of room are too few for a notice");
        machine.read_data(1);
        assert!(machine.room_noticed());
        machine.read_data(100);
        assert!(!machine.room_noticed(), "nobody waits any more");
        assert!(machine.port.has_input_room());
    }

    #[test]
    fn partly_taken_input_requests_the_event() {
        let machine = machine();
        assert_eq!(machine.port.enqueue_input(&[b'x'; 65]), 64);
        machine.read_data(32);
        assert!(machine.room_noticed());
    }

    #[test]
    fn question_for_space_requests_the_event() {
        let machine = machine();
        assert_eq!(machine.port.enqueue_input(&[b'x'; 64]), 64);
        assert!(!machine.port.has_input_room());
        machine.read_data(32);
        assert!(machine.room_noticed());
    }

    #[test]
    fn loopback_refuses_input_until_it_ends() {
        let machine = machine();
        machine.port.write(MODEM_CONTROL.into(), &[LOOPBACK]);
        assert!(!machine.port.has_input_room());
        assert_eq!(machine.port.enqueue_input(b"in"), 0);
        machine.port.write(DATA, b"z");
        assert!(machine.console.is_empty());
        assert_eq!(machine.read(DATA), b'z');
        assert!(!machine.room_noticed());
        machine.port.write(MODEM_CONTROL.into(), &[0]);
        assert!(machine.room_noticed());
        assert_eq!(machine.port.enqueue_input(b"in"), 2);
    }

    #[test]
    fn transmitter_interrupt_follows_each_acknowledged_byte() {
        let machine = machine();
        machine.port.write(INTERRUPT_ENABLE, &[0x02]);
        assert_eq!(machine.irq.take(), 1);
        machine.port.write(DATA, b"a");
        assert_eq!(machine.irq.take(), 0, "not acknowledged yet");
        assert_eq!(machine.read(2) & 0x0f, 0x02);
        machine.port.write(DATA, b"b");
        assert_eq!(machine.irq.take(), 1);
    }

    #[test]
    fn a_million_random_operations_stay_bounded() {
        let machine = machine();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            // xorshift64: any fixed sequence that visits all registers and widths will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..1_000_000 {
            let dice = random();
            let width = [1, 2, 4, 8][(dice >> 8) as usize & 3];
            let offset = (dice >> 16) & 15;
            let mut data = random().to_le_bytes();
            match dice & 3 {
                0 => machine.port.write(offset, &data[..width]),
                1 => machine.port.read(offset, &mut data[..width]),
                2 => assert!(machine.port.enqueue_input(&data[..width]) <= width),
                _ => {
                    machine.port.has_input_room();
                }
            }
        }
        let state = lock(&machine.port.uart).serial.state();
        assert!(state.in_buffer.len() <= 64);
        assert_eq!(machine.printed().len(), CONSOLE_BYTES, "the console is full and no fuller");

        for (offset, value) in [(3, 0x03), (MODEM_CONTROL.into(), 0), (DATA, b'!')] {
            machine.port.write(offset, &[value]);
        }
        assert_eq!(machine.printed(), b"!", "the port still works");
    }

    #[test]
    fn any_access_is_survived() {
        sweep(&machine().port, SerialPort::WINDOW_LEN);
    }
}

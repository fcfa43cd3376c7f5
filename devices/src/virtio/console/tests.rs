//! The console through its rings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Console, ConsolePort, F_MULTIPORT, F_SIZE, TerminalSize};
use crate::backend::console_buffer::{ConsoleBuffer, Drained};
use crate::backend::console_input::ConsoleInput;
use crate::testing::saved;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Ring, Usual, conform};
use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};

struct Guest {
    machine: Machine,
    port: Arc<ConsolePort>,
    rings: Vec<Ring>,
}

impl Guest {
    /// Makes a guest whose driver has no control queues.
    fn new() -> Self {
        Self::without(1 << F_MULTIPORT)
    }

    fn without(features: u64) -> Self {
        let port = Arc::new(ConsolePort::new().unwrap());
        let machine = Machine::new(Arc::new(Console::new(port.clone())));
        let rings = machine.start(features);
        Self { machine, port, rings }
    }

    /// Returns another guest that goes on from here. This one is paused.
    fn fork(&self) -> Self {
        let port = Arc::new(ConsolePort::new().unwrap());
        let machine = self.machine.fork(Arc::new(Console::new(port.clone()))).unwrap();
        machine.resume();
        let rings = self.rings.iter().map(|ring| ring.in_memory(machine.memory.clone())).collect();
        Self { machine, port, rings }
    }

    /// Sends a control message.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.say_bytes(&message);
    }

    fn say_bytes(&mut self, message: &[u8]) {
        self.machine.put(MESSAGES, message);
        self.rings[3].offer(&[Buffer::readable(MESSAGES, message.len() as u32)]);
        self.machine.kick(3);
        assert!(self.rings[3].completed().is_some());
    }

    /// Offers a buffer for a control message.
    fn listen(&mut self, len: u32) {
        self.rings[2].offer(&[Buffer::writable(ANSWERS, len)]);
        self.machine.kick(2);
    }

    /// Returns the written bytes of the buffer that came back.
    fn heard(&mut self) -> Option<Vec<u8>> {
        let (_, len) = self.rings[2].completed()?;
        Some(self.machine.bytes(ANSWERS, len as usize))
    }

    fn hears(&mut self) -> Option<Vec<u8>> {
        self.listen(64);
        self.heard()
    }

    /// Offers output, and returns whether it has been taken.
    fn print(&mut self, text: &[u8]) -> bool {
        self.machine.put(BUFFERS, text);
        self.rings[1].offer(&[Buffer::readable(BUFFERS, text.len() as u32)]);
        self.machine.kick(1);
        self.rings[1].completed().is_some()
    }

    fn printed(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.port.output().drain(|piece| {
            all.extend_from_slice(piece);
            piece.len()
        }) == Drained::Pending
        {}
        all
    }

    /// Offers a buffer for input.
    fn read(&mut self, len: u32) {
        self.rings[0].offer(&[Buffer::writable(BUFFERS, len)]);
        self.machine.kick(0);
    }

    fn has_read(&mut self) -> Option<Vec<u8>> {
        let (_, len) = self.rings[0].completed()?;
        Some(self.machine.bytes(BUFFERS, len as usize))
    }
}

#[test]
fn conforms() {
    // Nobody drains the output here, but it is so little that there is always space.
    let usual = Usual {
        queue: 1,
        prepare: |machine| machine.put(BUFFERS, b"x"),
        buffers: vec![Buffer::readable(BUFFERS, 1)],
    };
    conform(&|| Arc::new(Console::new(Arc::new(ConsolePort::new().unwrap()))), &usual);
}

#[test]
fn output_comes_in_order_whatever_its_pieces() {
    let mut guest = Guest::new();
    assert!(guest.print(b"hello, "));
    guest.machine.put(BUFFERS, b"world");
    guest.machine.put(BUFFERS + 4096, b"!\n");
    guest.rings[1].offer(&[Buffer::readable(BUFFERS, 5), Buffer::readable(BUFFERS + 4096, 2)]);
    guest.machine.kick(1);
    assert_eq!(guest.printed(), b"hello, world!\n");
    assert_eq!(guest.rings[1].completed(), Some((1, 0)));
}

#[test]
fn input_waits_for_buffers_and_stops_at_a_limit() {
    let mut guest = Guest::new();
    assert_eq!(guest.port.enqueue_input(b"ls\n"), 3);
    guest.machine.settle();
    assert_eq!(guest.has_read(), None);
    guest.read(2);
    assert_eq!(guest.has_read(), Some(b"ls".to_vec()));
    guest.read(100);
    assert_eq!(guest.has_read(), Some(b"\n".to_vec()));
    guest.read(100);
    assert_eq!(guest.has_read(), None);
    guest.port.enqueue_input(b"x");
    guest.machine.settle();
    assert_eq!(guest.has_read(), Some(b"x".to_vec()));

    assert_eq!(guest.port.enqueue_input(&[b'y'; 10_000]), 4096);
    assert!(!guest.port.has_input_room() && guest.port.room_event().read().is_err());
    guest.read(3000);
    assert_eq!(guest.has_read(), Some(vec![b'y'; 3000]));
    assert!(guest.port.has_input_room() && guest.port.room_event().read().is_ok());
    guest.read(0);
    assert_eq!(guest.has_read(), Some(Vec::new()), "a buffer without space loses no input");
    guest.read(4096);
    assert_eq!(guest.has_read(), Some(vec![b'y'; 1096]));
}

/// Linux offers its buffers before it has opened the port, and discards bytes that arrive by then.
#[test]
fn input_waits_until_the_driver_has_opened_the_port() {
    let mut guest = Guest::without(0);
    guest.port.enqueue_input(b"early");
    guest.read(100);
    guest.say(0, 0, 1);
    guest.say(0, 3, 1);
    assert_eq!(guest.has_read(), None);
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 1, 0, 1, 0]), "there is port 0");
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 4, 0, 1, 0]), "it is a console");
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 6, 0, 1, 0]), "the host has it open");
    guest.listen(64);
    assert_eq!(guest.heard(), None);
    guest.port.enqueue_input(b"!");
    guest.machine.settle();
    assert_eq!(guest.has_read(), None);
    guest.machine.interrupts();
    guest.say(0, 6, 1);
    assert_eq!(guest.machine.interrupts(), 1, "one for the input, none for the message that was sent");
    assert_eq!(guest.has_read(), Some(b"early!".to_vec()));
    guest.read(100);
    guest.port.enqueue_input(b"late");
    guest.machine.settle();
    assert_eq!(guest.has_read(), Some(b"late".to_vec()));
    // The port is closed and opened again.
    guest.say(0, 6, 0);
    guest.read(100);
    guest.port.enqueue_input(b"x");
    guest.machine.settle();
    assert_eq!(guest.has_read(), None);
    guest.say(0, 6, 1);
    assert_eq!(guest.has_read(), Some(b"x".to_vec()));
}

#[test]
fn port_stays_open_in_a_pause_and_is_closed_by_a_reset() {
    let mut guest = Guest::without(0);
    guest.say(0, 6, 1);
    assert!(guest.machine.transport.pause().is_ok());
    guest.port.enqueue_input(b"paused");
    guest.machine.transport.resume();
    guest.machine.settle();
    guest.read(100);
    assert_eq!(guest.has_read(), Some(b"paused".to_vec()));
    guest.rings = guest.machine.start(0);
    guest.port.enqueue_input(b"reset");
    guest.read(100);
    assert_eq!(guest.has_read(), None);
    guest.say(0, 6, 1);
    assert_eq!(guest.has_read(), Some(b"reset".to_vec()));
}

#[test]
fn size_is_reported_with_the_port_and_when_it_changes() {
    let mut guest = Guest::without(0);
    assert_eq!((guest.machine.read(0x100), guest.machine.read(0x104)), (0, 1));
    guest.port.resize(TerminalSize { columns: 80, rows: 24 });
    guest.machine.settle();
    assert_eq!(guest.machine.read(0x100), 24 << 16 | 80);
    guest.listen(64);
    assert_eq!(guest.heard(), None, "it has no port yet");
    guest.say(0, 3, 1);
    assert_eq!(guest.heard(), Some(vec![0, 0, 0, 0, 4, 0, 1, 0]));
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 6, 0, 1, 0]));
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 24, 0]));
    guest.port.resize(TerminalSize { columns: 80, rows: 24 });
    guest.port.resize(TerminalSize { columns: 100, rows: 50 });
    guest.port.resize(TerminalSize { columns: 300, rows: 50 });
    guest.machine.settle();
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 44, 1, 50, 0]), "only the last one");
    guest.listen(64);
    assert_eq!(guest.heard(), None);
}

#[test]
fn driver_without_control_queues_is_interrupted_for_a_size_if_it_wants_one() {
    for (without, interrupts) in [(1 << F_MULTIPORT, 1), (1 << F_MULTIPORT | 1 << F_SIZE, 0)] {
        let guest = Guest::without(without);
        guest.machine.interrupts();
        guest.port.resize(TerminalSize { columns: 80, rows: 24 });
        guest.machine.settle();
        assert_eq!(
            (guest.machine.interrupts(), guest.machine.read(0x60)),
            (interrupts, interrupts as u32 * 2)
        );
    }
}

#[test]
fn driver_that_sends_without_receiving_gets_each_answer_once() {
    let mut guest = Guest::without(0);
    for _ in 0..10_000 {
        guest.say(0, 0, 1);
        guest.say(0, 3, 1);
    }
    // A buffer too short for an answer, and one without a writable part.
    guest.listen(7);
    assert_eq!(guest.heard(), Some(Vec::new()));
    guest.listen(0);
    assert_eq!(guest.heard(), Some(Vec::new()));
    for _ in 0..3 {
        assert_eq!(guest.hears().map(|message| message.len()), Some(8));
    }
    guest.listen(64);
    assert_eq!(guest.heard(), None);
}

#[test]
fn invalid_messages_are_taken_and_ignored() {
    let mut guest = Guest::without(0);
    guest.read(100);
    guest.port.enqueue_input(b"x");
    guest.listen(64);
    for port in [1, 2, u32::MAX] {
        guest.say(port, 3, 1);
        guest.say(port, 6, 1);
    }
    for event in 0..=u16::MAX {
        guest.say(0, event, 2);
    }
    for len in [1, 2, 4, 6, 7] {
        guest.say_bytes(&[0, 0, 0, 0, 6, 0, 1][..len]);
    }
    guest.say_bytes(&[0; 4097]);
    assert_eq!((guest.heard(), guest.has_read()), (None, None));
    assert!(!guest.machine.needs_reset());
    // The message is longer than needed: its known part counts.
    guest.say_bytes(&[0, 0, 0, 0, 6, 0, 1, 0, 0xff, 0xff]);
    assert_eq!(guest.has_read(), Some(b"x".to_vec()));
}

#[test]
fn missing_control_queue_that_was_negotiated_needs_a_reset() {
    let guest = Guest::new();
    guest.machine.negotiate(guest.machine.offered());
    for (index, ring) in (0..3).zip(&guest.rings) {
        guest.machine.set_up_queue(index, ring);
    }
    guest.machine.write(0x70, 15);
    assert!(guest.machine.needs_reset());
}

#[test]
fn reader_that_keeps_up_gets_100_mb_without_loss() {
    let mut guest = Guest::new();
    let line: Vec<u8> = (0..50_000_u32).map(|byte| (byte % 251) as u8).collect();
    let expected = line.repeat(3);
    let (mut sent, mut got, mut waits) = (0, 0_usize, 0);
    while sent < 100_000_000 {
        let mut is_taken = guest.print(&line);
        sent += line.len();
        while !is_taken {
            waits += 1;
            let piece = guest.printed();
            assert!(expected[got % line.len()..].starts_with(&piece), "after {got} bytes");
            got += piece.len();
            guest.machine.settle();
            is_taken = guest.rings[1].completed().is_some();
        }
    }
    got += guest.printed().len();
    assert_eq!((got, guest.port.output().dropped_bytes()), (sent, 0));
    assert!(waits > 1000, "the guest waits for its reader");
}

#[test]
fn stuck_reader_holds_the_guest_up_once_and_what_it_misses_is_counted() {
    let mut guest = Guest::new();
    let start = Instant::now();
    let mut sent = 0_u64;
    while sent < 100_000_000 {
        let mut is_taken = guest.print(&[b'x'; 50_000]);
        sent += 50_000;
        while !is_taken {
            assert!(start.elapsed() < Duration::from_secs(30));
            guest.machine.settle();
            is_taken = guest.rings[1].completed().is_some();
        }
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
    let kept = ConsoleBuffer::DEFAULT_CAPACITY as u64;
    assert_eq!(guest.port.output().dropped_bytes(), sent - kept);
    assert_eq!(guest.printed().len() as u64, kept);
    // The reader is back: nothing is dropped any more.
    guest.machine.settle();
    assert!(guest.print(&[b'y'; 60_000]) && !guest.print(&[b'z'; 60_000]));
    assert_eq!(guest.printed().len(), 64 << 10);
    guest.machine.settle();
    assert!(guest.rings[1].completed().is_some());
    assert_eq!(guest.port.output().dropped_bytes(), sent - kept);
}

#[test]
fn pause_and_reset_do_not_wait_for_a_stuck_reader() {
    // The handler waits a second for a reader. A busy machine may take the CPU away for as long, but not each
    // time.
    let took: Vec<Duration> =
        (0..3).map(|_| pause_and_reset()).take_while(|took| *took >= Duration::from_secs(1)).collect();
    assert!(took.len() < 3, "{took:?}");
}

/// Returns how long both take while nobody reads.
fn pause_and_reset() -> Duration {
    let mut guest = Guest::new();
    while guest.print(&[b'x'; 60_000]) {}
    let start = Instant::now();
    assert!(guest.machine.transport.pause().is_ok());
    guest.machine.transport.resume();
    guest.machine.settle();
    assert!(guest.rings[1].completed().is_some());
    while guest.print(&[b'x'; 60_000]) {}
    guest.rings = guest.machine.start(0);
    let took = start.elapsed();
    guest.printed();
    assert!(guest.print(b"again"));
    assert!(guest.printed().ends_with(b"again"));
    took
}

#[test]
fn too_long_output_is_dropped_and_the_next_is_not() {
    let mut guest = Guest::new();
    guest.rings[1].offer(&[Buffer::readable(BUFFERS, (64 << 10) + 1)]);
    guest.machine.kick(1);
    assert_eq!(guest.rings[1].completed(), Some((0, 0)));
    assert!(guest.print(b"ok"));
    assert_eq!(guest.printed(), b"ok");
}

/// This address is free for control messages; input and output are at [`BUFFERS`].
const MESSAGES: u64 = BUFFERS + 0x10_0000;
const ANSWERS: u64 = BUFFERS + 0x11_0000;

#[test]
fn input_that_the_guest_has_not_read_goes_along_and_output_stays_with_its_host() {
    let mut guest = Guest::without(0);
    guest.say(0, 6, 1);
    assert!(guest.print(b"before"));
    assert_eq!(guest.port.enqueue_input(&[b'i'; 5000]), 4096);
    guest.machine.settle();
    guest.read(96);
    assert_eq!(guest.has_read(), Some(vec![b'i'; 96]));
    let mut fork = guest.fork();
    assert!(fork.print(b"after"));
    assert_eq!(fork.printed(), b"after");
    assert_eq!(fork.port.enqueue_input(b"more"), 4, "as many bytes as were read");
    fork.read(4096);
    assert_eq!(fork.has_read(), Some([&[b'i'; 4000][..], b"more"].concat()));
    assert_eq!((guest.printed(), guest.has_read()), (b"before".to_vec(), None));
    guest.machine.resume();
    guest.read(4096);
    assert_eq!(guest.has_read(), Some(vec![b'i'; 4000]));
}

#[test]
fn output_that_waits_for_space_is_taken_before_a_machine_is_saved() {
    let mut guest = Guest::new();
    guest.port.output().push(&[b'x'; ConsoleBuffer::DEFAULT_CAPACITY]);
    assert!(!guest.print(b"held"));
    let mut fork = guest.fork();
    assert!(fork.rings[1].completed().is_some(), "it is done, in both machines");
    assert_eq!(fork.printed(), b"");
    assert!(fork.print(b"more"));
    assert_eq!(fork.printed(), b"more");
    assert!(guest.rings[1].completed().is_some());
}

#[test]
fn port_is_open_or_closed_in_other_machines_as_the_driver_left_it() {
    for is_open in [false, true] {
        let mut guest = Guest::without(0);
        guest.read(100);
        if is_open {
            guest.say(0, 6, 1);
        }
        let mut fork = guest.fork();
        fork.port.enqueue_input(b"x");
        fork.machine.settle();
        assert_eq!(fork.has_read(), is_open.then(|| b"x".to_vec()));
        fork.say(0, 6, 1);
        assert!(is_open || fork.has_read().is_some());
    }
}

#[test]
fn messages_that_the_device_owes_are_sent_by_the_next_machine() {
    let mut guest = Guest::without(0);
    guest.port.resize(TerminalSize { columns: 80, rows: 24 });
    guest.say(0, 0, 1);
    guest.say(0, 3, 1);
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 1, 0, 1, 0]));
    let mut second = guest.fork();
    assert_eq!(second.hears(), Some(vec![0, 0, 0, 0, 4, 0, 1, 0]));
    let mut third = second.fork();
    assert_eq!(third.hears(), Some(vec![0, 0, 0, 0, 6, 0, 1, 0]));
    assert_eq!(third.hears(), Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 24, 0]));
    third.listen(64);
    assert_eq!(third.heard(), None);
}

#[test]
fn size_stays_and_a_new_one_is_reported_once() {
    let mut guest = Guest::without(0);
    guest.say(0, 0, 1);
    guest.say(0, 3, 1);
    while guest.hears().is_some() {}
    guest.port.resize(TerminalSize { columns: 80, rows: 24 });
    guest.machine.settle();
    let heard = guest.heard();
    assert_eq!(heard, Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 24, 0]));
    let mut fork = guest.fork();
    assert_eq!(fork.machine.read(0x100), 24 << 16 | 80);
    fork.listen(64);
    assert_eq!(fork.heard(), None, "the driver knows it");
    fork.port.resize(TerminalSize { columns: 80, rows: 25 });
    fork.machine.settle();
    assert_eq!(fork.heard(), Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 25, 0]));
    // Set while the machine is paused, so that the driver has not heard of it.
    fork.machine.transport.pause().unwrap();
    fork.port.resize(TerminalSize { columns: 80, rows: 26 });
    let mut next = fork.fork();
    next.listen(64);
    assert_eq!(next.heard(), Some(vec![0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 26, 0]));
}

#[test]
fn states_of_no_console_are_refused_by_name() {
    let refused = |guest: &Guest, bytes: &[u8]| {
        guest.machine.transport.pause().unwrap();
        let mut state = guest.machine.transport.save().unwrap();
        state.device = saved(1, bytes);
        let console = Console::new(Arc::new(ConsolePort::new().unwrap()));
        let machine = Machine::new(Arc::new(console));
        machine.transport.prepare(&state).err().map(|error| error.to_string())
    };
    let guest = Guest::without(0);
    // No input, no size; owed messages, ready, open, ready for the stream; connected.
    assert_eq!(refused(&guest, &[0, 0, 0x0f, 1, 1, 0, 0]), None);
    let owed = |value: &str, bits: &str| {
        Some(format!("field `owed` is {value}: only the bits of {bits} can be set"))
    };
    assert_eq!(refused(&guest, &[0, 0, 0x1f, 1, 1, 0, 0]), owed("0x1f", "0xf"));
    assert_eq!(refused(&guest, &[0, 0, 0x0e, 0, 1, 0, 0]), owed("0xe", "0x1"));
    let never = |field: &str| Some(format!("field `{field}` is 0x1: always 0x0 here"));
    assert_eq!(refused(&guest, &[0, 0, 0, 1, 1, 1, 0]), never("is_stream_ready"));
    assert_eq!(refused(&guest, &[0, 0, 0, 1, 1, 0, 1]), never("is_connected"));
    let long = [&[0x81, 0x20][..], &[b'i'; 4097], &[0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(refused(&guest, &long), Some("field `input` has 4097 entries: at most 4096".to_owned()));
    let silent = Guest::new();
    assert_eq!(refused(&silent, &[0, 0, 0, 0, 1, 0, 0]), never("is_open"));
    assert_eq!(refused(&silent, &[0, 0, 1, 0, 0, 0, 0]), never("owed"));
    assert_eq!(refused(&silent, &[0, 0, 0, 1, 0, 0, 0]), never("is_ready"));
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let mut guest = Guest::without(0);
    guest.port.resize(TerminalSize { columns: 80, rows: 24 });
    guest.port.enqueue_input(b"input");
    guest.say(0, 0, 1);
    guest.say(0, 3, 1);
    guest.machine.transport.pause().unwrap();
    let state = guest.machine.transport.save().unwrap();
    assert_eq!(state.device, saved(1, &[5, b'i', b'n', b'p', b'u', b't', 1, 80, 24, 0, 0x0f, 1, 0, 0, 0]));
    let make = || Arc::new(Console::new(Arc::new(ConsolePort::new().unwrap()))) as Arc<dyn VirtioDevice>;
    refuses_damaged_states(&make, &state);
    survives_any_state(&make, &state);
}

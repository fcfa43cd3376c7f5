//! The console through its rings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Console, ConsolePort};
use crate::backend::console_buffer::{ConsoleBuffer, Drained};
use crate::backend::console_input::ConsoleInput;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Ring, Usual, conform};

struct Guest {
    machine: Machine,
    port: Arc<ConsolePort>,
    rings: Vec<Ring>,
}

impl Guest {
    fn new() -> Self {
        let port = Arc::new(ConsolePort::new().unwrap());
        let machine = Machine::new(Arc::new(Console::new(port.clone())));
        let rings = machine.start(0);
        Self { machine, port, rings }
    }

    /// Offers output; true when it has been taken.
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
    // Output is not drained here: so little that there is always room.
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
    assert_eq!(guest.has_read(), Some(Vec::new()), "a buffer without room loses no input");
    guest.read(4096);
    assert_eq!(guest.has_read(), Some(vec![b'y'; 1096]));
}

#[test]
fn first_input_is_told_of_again_in_case_the_driver_was_not_ready() {
    let mut guest = Guest::new();
    guest.read(100);
    guest.port.enqueue_input(b"x");
    guest.machine.settle();
    guest.machine.interrupts();
    let start = Instant::now();
    while guest.machine.interrupts() == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        guest.machine.settle();
    }
    assert_eq!(guest.has_read(), Some(b"x".to_vec()));
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
    let mut guest = Guest::new();
    while guest.print(&[b'x'; 60_000]) {}
    let start = Instant::now();
    assert!(guest.machine.transport.pause().is_ok());
    guest.machine.transport.resume();
    guest.machine.settle();
    assert!(guest.rings[1].completed().is_some());
    while guest.print(&[b'x'; 60_000]) {}
    guest.rings = guest.machine.start(0);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    guest.printed();
    assert!(guest.print(b"again"));
    assert!(guest.printed().ends_with(b"again"));
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

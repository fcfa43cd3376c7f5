//! The stream port through its rings.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::{Console, ConsolePort, StreamPort};
use crate::testing::saved;
use crate::virtio::VirtioDevice;
use crate::virtio::listener::PortListener;
use crate::virtio::state::SavedDevice;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Ring, Usual, conform};
use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};

struct Guest {
    machine: Machine,
    rings: Vec<Ring>,
    listener: PortListener,
}

impl Guest {
    /// Makes a guest with both ports, whose driver has set them up.
    fn new() -> Self {
        let port = Arc::new(StreamPort::new("test.port").unwrap());
        let console = Arc::new(ConsolePort::new().unwrap());
        Self::of(Console::with_stream(console, port.clone()), &port)
    }

    fn of(console: Console, port: &StreamPort) -> Self {
        let listener = port.listen().unwrap();
        let machine = Machine::new(Arc::new(console));
        let rings = machine.start(0);
        let mut guest = Self { machine, rings, listener };
        guest.become_ready();
        guest
    }

    /// Returns another guest that goes on from here, with a listener of its own. This one is paused.
    fn fork(&self) -> Self {
        let port = Arc::new(StreamPort::new("test.port").unwrap());
        let listener = port.listen().unwrap();
        let console = Console::with_stream(Arc::new(ConsolePort::new().unwrap()), port);
        let machine = self.machine.fork(Arc::new(console)).unwrap();
        machine.resume();
        let rings = self.rings.iter().map(|ring| ring.in_memory(machine.memory.clone())).collect();
        Self { machine, rings, listener }
    }

    fn become_ready(&mut self) {
        self.say(0, 0, 1);
        self.say(1, 3, 1);
        while self.hears().is_some() {}
    }

    /// Sends a control message.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.machine.put(MESSAGES, &message);
        self.rings[3].offer(&[Buffer::readable(MESSAGES, 8)]);
        self.machine.kick(3);
        assert!(self.rings[3].completed().is_some());
    }

    /// Returns the next control message of the device, if there is one.
    fn hears(&mut self) -> Option<Vec<u8>> {
        if !self.is_listening() {
            self.rings[2].offer(&[Buffer::writable(ANSWERS, 64)]);
        }
        self.machine.kick(2);
        let (_, len) = self.rings[2].completed()?;
        Some(self.machine.bytes(ANSWERS, len as usize))
    }

    /// Returns whether a buffer for a message is still with the device.
    fn is_listening(&self) -> bool {
        self.rings[2].used_index() != self.offered_index()
    }

    fn offered_index(&self) -> u16 {
        let bytes = self.machine.bytes(self.rings[2].available() + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn open(&mut self) -> UnixStream {
        self.say(1, 6, 1);
        self.accepted().expect("there is a connection")
    }

    fn accepted(&self) -> Option<UnixStream> {
        let stream = self.listener.accept_within(Duration::ZERO).unwrap()?;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    }

    /// Offers bytes, and returns whether they have been taken.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.machine.put(BUFFERS, bytes);
        self.rings[5].offer(&[Buffer::readable(BUFFERS, bytes.len() as u32)]);
        self.machine.kick(5);
        self.rings[5].completed().is_some()
    }

    fn receive(&mut self, len: u32) -> Option<Vec<u8>> {
        self.rings[4].offer(&[Buffer::writable(INPUT, len)]);
        self.machine.kick(4);
        self.received()
    }

    fn received(&mut self) -> Option<Vec<u8>> {
        self.machine.settle();
        let (_, len) = self.rings[4].completed()?;
        Some(self.machine.bytes(INPUT, len as usize))
    }
}

/// Returns the bytes that the host has received, and whether the stream has ended.
fn got(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let (mut all, mut piece) = (Vec::new(), [0; 65_536]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (all, true),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn conforms() {
    let usual = Usual {
        queue: 5,
        prepare: |machine| machine.put(BUFFERS, b"x"),
        buffers: vec![Buffer::readable(BUFFERS, 1)],
    };
    let make = || Console::stream_only(Arc::new(StreamPort::new("test.port").unwrap())).unwrap();
    conform(&|| Arc::new(make()), &usual);
}

#[test]
fn driver_finds_both_ports_and_the_name_of_the_second() {
    let port = Arc::new(StreamPort::new("test.port").unwrap());
    let console = Console::with_stream(Arc::new(ConsolePort::new().unwrap()), port);
    let machine = Machine::new(Arc::new(console));
    assert_eq!((machine.queue_count(), machine.read(0x104)), (6, 2));
    let listener = StreamPort::new("x").unwrap().listen().unwrap();
    let mut guest = Guest { rings: machine.start(0), machine, listener };
    guest.say(0, 0, 1);
    assert_eq!(guest.hears(), Some(vec![0, 0, 0, 0, 1, 0, 1, 0]));
    assert_eq!(guest.hears(), Some(vec![1, 0, 0, 0, 1, 0, 1, 0]));
    guest.say(1, 3, 1);
    assert_eq!(guest.hears(), Some(b"\x01\0\0\0\x07\0\x01\0test.port".to_vec()));
    assert_eq!(guest.hears(), Some(vec![1, 0, 0, 0, 6, 0, 1, 0]));
    assert_eq!(guest.hears(), None);
}

#[test]
fn device_without_a_console_announces_only_the_stream() {
    let port = Arc::new(StreamPort::new("p").unwrap());
    let mut guest = Guest::of(Console::stream_only(port.clone()).unwrap(), &port);
    guest.say(0, 3, 1);
    assert_eq!(guest.hears(), None, "there is no port 0");
    let mut host = guest.open();
    assert!(guest.send(b"hello"));
    assert_eq!(got(&mut host).0, b"hello");
}

#[test]
fn bytes_go_both_ways_while_the_port_is_open() {
    let mut guest = Guest::new();
    assert!(guest.accepted().is_none());
    assert!(guest.send(b"to nobody"));
    let mut host = guest.open();
    assert!(guest.send(b"to ") && guest.send(b"the host"));
    assert_eq!(got(&mut host), (b"to the host".to_vec(), false));
    assert_eq!(guest.receive(5), None);
    host.write_all(b"to the guest").unwrap();
    assert_eq!(guest.received(), Some(b"to th".to_vec()));
    assert_eq!(guest.receive(0), Some(Vec::new()), "a buffer without space loses nothing");
    assert_eq!(guest.receive(64), Some(b"e guest".to_vec()));
    guest.say(1, 6, 0);
    assert_eq!(got(&mut host), (Vec::new(), true));
    assert!(guest.accepted().is_none());
}

#[test]
fn bytes_sent_before_the_port_closed_arrive() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    guest.machine.put(BUFFERS, b"last words");
    guest.rings[5].offer(&[Buffer::readable(BUFFERS, 10)]);
    guest.say(1, 6, 0);
    assert_eq!(got(&mut host), (b"last words".to_vec(), true));
}

#[test]
fn host_that_does_not_read_holds_the_guest_up_and_loses_nothing() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    let line: Vec<u8> = (0..50_000_u32).map(|byte| (byte % 251) as u8).collect();
    let mut sent = 0;
    while guest.send(&line) {
        sent += line.len();
        assert!(sent < 10_000_000, "the guest is not held up");
    }
    // One chain was taken before that, and this one waits in the ring.
    sent += line.len();
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(got(&mut host).0);
        guest.machine.settle();
    }
    assert!(guest.rings[5].completed().is_some());
    assert_eq!(all.len(), sent);
    assert!(all.chunks(line.len()).all(|piece| piece == line));
}

#[test]
fn guest_that_does_not_read_holds_the_host_up() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    let mut sent = 0;
    while let Ok(count) = host.write(&[7; 4096]) {
        sent += count;
        guest.machine.settle();
        assert!(sent < 10_000_000, "the host is not held up");
    }
    let mut received = 0;
    while let Some(bytes) = guest.receive(4096) {
        assert!(bytes.iter().all(|byte| *byte == 7));
        received += bytes.len();
    }
    assert_eq!(received, sent);
}

#[test]
fn driver_is_told_that_the_host_has_gone_and_is_back_once_it_has_closed_the_port() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    host.write_all(b"bye").unwrap();
    drop(host);
    assert_eq!(guest.receive(64), Some(b"bye".to_vec()), "earlier bytes are delivered first");
    assert_eq!(guest.receive(64), None);
    assert_eq!(guest.hears(), Some(vec![1, 0, 0, 0, 6, 0, 0, 0]));
    assert!(guest.send(b"to nobody"));
    guest.say(1, 6, 0);
    assert_eq!(guest.hears(), Some(vec![1, 0, 0, 0, 6, 0, 1, 0]));
    let mut host = guest.open();
    host.write_all(b"again").unwrap();
    assert_eq!(guest.received(), Some(b"again".to_vec()), "the earlier buffer");
    assert!(guest.send(b"yes"));
    assert_eq!(got(&mut host).0, b"yes");
}

#[test]
fn connection_outlives_a_pause_and_ends_with_a_reset() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    assert!(guest.machine.transport.pause().is_ok());
    host.write_all(b"paused").unwrap();
    guest.machine.transport.resume();
    assert_eq!(guest.receive(64), Some(b"paused".to_vec()));
    assert!(guest.send(b"resumed"));
    assert_eq!(got(&mut host), (b"resumed".to_vec(), false));
    guest.rings = guest.machine.start(0);
    assert_eq!(got(&mut host), (Vec::new(), true));
    guest.become_ready();
    let mut host = guest.open();
    assert!(guest.send(b"again"));
    assert_eq!(got(&mut host), (b"again".to_vec(), false));
}

#[test]
fn pause_and_reset_do_not_wait_for_a_host_that_does_not_read() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    let mut sent = 0;
    while guest.send(&[7; 50_000]) {
        sent += 50_000;
    }
    assert!(guest.machine.transport.pause().is_ok());
    guest.machine.transport.resume();
    guest.machine.settle();
    let mut count = 0;
    for _ in 0..100 {
        count += got(&mut host).0.len();
        guest.machine.settle();
    }
    assert_eq!(count, sent + 50_000, "nothing is lost in a pause");
    while guest.send(&[7; 50_000]) {}
    guest.rings = guest.machine.start(0);
    assert!(!guest.machine.needs_reset());
}

#[test]
fn port_that_is_opened_and_closed_without_end_takes_a_bounded_number_of_sockets() {
    let mut guest = Guest::new();
    for _ in 0..5000 {
        guest.say(1, 6, 1);
        guest.say(1, 6, 1);
        guest.say(1, 6, 0);
    }
    let mut accepted = 0;
    while guest.accepted().is_some() {
        accepted += 1;
    }
    assert!((1..=128).contains(&accepted), "{accepted}");
    let mut host = guest.open();
    assert!(guest.send(b"still"));
    assert_eq!(got(&mut host).0, b"still");
}

#[test]
fn invalid_messages_change_nothing() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    for port in [0, 2, 3, u32::MAX] {
        guest.say(port, 6, 0);
        guest.say(port, 6, 1);
    }
    for event in (0..=u16::MAX).filter(|event| *event != 3) {
        guest.say(1, event, 2);
    }
    for event in [1, 2, 4, 5, 7, 8] {
        guest.say(1, event, 0);
        guest.say(1, event, 1);
    }
    assert!(guest.accepted().is_none());
    assert!(guest.send(b"still"));
    assert_eq!(got(&mut host), (b"still".to_vec(), false));
}

#[test]
fn too_long_chain_is_dropped_and_the_next_is_not() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    guest.rings[5].offer(&[Buffer::readable(BUFFERS, (64 << 10) + 1)]);
    guest.machine.kick(5);
    assert_eq!(guest.rings[5].completed(), Some((0, 0)));
    assert!(guest.send(b"ok"));
    assert_eq!(got(&mut host).0, b"ok");
}

#[test]
fn without_a_listener_the_port_stays_without_a_connection() {
    let mut guest = Guest::new();
    let other = StreamPort::new("x").unwrap().listen().unwrap();
    drop(std::mem::replace(&mut guest.listener, other));
    guest.say(1, 6, 1);
    assert!(guest.send(b"x") && guest.accepted().is_none());
    assert!(!guest.machine.needs_reset());
}

/// This address is free for control messages and input; bytes to send are at [`BUFFERS`].
const MESSAGES: u64 = BUFFERS + 0x10_0000;
const ANSWERS: u64 = BUFFERS + 0x11_0000;
const INPUT: u64 = BUFFERS + 0x12_0000;

/// The program that the guest was connected to belongs to the machine before.
#[test]
fn connection_ends_for_the_guest_of_another_machine_which_can_open_the_next() {
    let mut guest = Guest::new();
    let mut host = guest.open();
    assert!(guest.send(b"before"));
    host.write_all(b"unread").unwrap();
    let mut fork = guest.fork();
    assert!(fork.accepted().is_none());
    assert_eq!(fork.hears(), Some(vec![1, 0, 0, 0, 6, 0, 0, 0]), "the host's end is gone");
    assert!(fork.send(b"to nobody"));
    fork.say(1, 6, 0);
    assert_eq!(fork.hears(), Some(vec![1, 0, 0, 0, 6, 0, 1, 0]), "and there again");
    let mut next = fork.open();
    assert!(fork.send(b"after"));
    assert_eq!(got(&mut next), (b"after".to_vec(), false));
    next.write_all(b"hello").unwrap();
    assert_eq!(fork.receive(100), Some(b"hello".to_vec()));
    // The guest before goes on with its own connection.
    guest.machine.resume();
    assert_eq!(guest.hears(), None);
    assert_eq!(guest.receive(100), Some(b"unread".to_vec()));
    assert_eq!(got(&mut host), (b"before".to_vec(), false));
}

#[test]
fn port_that_is_closed_stays_closed_in_another_machine() {
    let mut guest = Guest::new();
    let mut fork = guest.fork();
    assert_eq!(fork.hears(), None);
    fork.open();
    guest.machine.resume();
    guest.open();
    guest.say(1, 6, 0);
    while guest.hears().is_some() {}
    let mut fork = guest.fork();
    assert_eq!(fork.hears(), None);
    fork.open();
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let mut guest = Guest::new();
    guest.open();
    guest.machine.transport.pause().unwrap();
    let state = guest.machine.transport.save().unwrap();
    let make = || {
        let port = Arc::new(StreamPort::new("test.port").unwrap());
        Arc::new(Console::stream_only(port).unwrap()) as Arc<dyn VirtioDevice>
    };
    refuses_damaged_states(&make, &state);
    survives_any_state(&make, &state);
    let refused = |bytes: &[u8]| {
        let state = SavedDevice { device: saved(1, bytes), ..state.clone() };
        Machine::new(make()).transport.prepare(&state).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&[0, 0, 0xb0, 0, 1, 1, 1]), None);
    let both = "field `owed` is 0xf0: not both bits of 0xc0";
    assert_eq!(refused(&[0, 0, 0xf0, 0, 1, 1, 1]).as_deref(), Some(both));
    let ready = "field `is_ready` is 0x1: always 0x0 here";
    assert_eq!(refused(&[0, 0, 0, 1, 0, 0, 0]).as_deref(), Some(ready), "there is no console port");
    let unready = "field `owed` is 0x20: only the bits of 0x10 can be set";
    assert_eq!(refused(&[0, 0, 0x20, 0, 0, 0, 0]).as_deref(), Some(unready));
}

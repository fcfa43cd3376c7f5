//! A driver of the socket device, for tests: correct in everything, unless a test sends something wrong.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::super::Vsock;
use super::super::packet::{Header, Op, STREAM};
use super::LIMIT;
use crate::lock;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Ring};

/// A machine with the device, whose receive queue is full of buffers.
pub(in super::super) struct Guest {
    pub machine: Machine,
    pub vsock: Arc<Vsock>,
    pub rings: Vec<Ring>,
    /// Packets that have arrived and that no test has asked for, in order.
    inbox: Vec<(Header, Vec<u8>)>,
    /// By guest port and host port: the bytes sent, the device's buffer size and the bytes that it has taken.
    sent: BTreeMap<(u32, u32), u32>,
    room: BTreeMap<(u32, u32), (u32, u32)>,
}

/// The buffer size that the guest reports.
pub(in super::super) const ROOM: u32 = 32 << 10;
const BUFFER_LEN: u32 = 4096;
const PACKETS: u64 = BUFFERS + (1 << 20);

impl Guest {
    pub(in super::super) fn new(vsock: Arc<Vsock>) -> Self {
        let machine = Machine::new(vsock.clone());
        let rings = machine.start(0);
        let mut guest = Self::over(machine, vsock, rings);
        guest.offer_buffers();
        guest
    }

    /// Makes a guest over a device that was restored, with its rings.
    pub(in super::super) fn over(machine: Machine, vsock: Arc<Vsock>, rings: Vec<Ring>) -> Self {
        Self { machine, vsock, rings, inbox: Vec::new(), sent: BTreeMap::new(), room: BTreeMap::new() }
    }

    /// Makes a guest with a connection, and returns the host's end of it.
    pub(in super::super) fn connected(port: u32, host: u32) -> (Self, UnixStream) {
        let vsock = super::device();
        let listener = vsock.switchboard().listen(host).unwrap();
        let mut guest = Self::new(vsock);
        guest.connect(port, host);
        (guest, listener.accept().unwrap())
    }

    /// Resets the device and starts it again.
    pub(in super::super) fn restart(&mut self) {
        self.rings = self.machine.start(0);
        self.inbox.clear();
        self.offer_buffers();
    }

    /// Resets the device and starts it again, and leaves the receive queue empty.
    pub(in super::super) fn restart_without_buffers(&mut self) {
        self.rings = self.machine.start(0);
        self.inbox.clear();
    }

    pub(in super::super) fn offer_buffers(&mut self) {
        for index in 0..16 {
            self.rings[0].descriptor(index, buffer(index), BUFFER_LEN, 2, 0);
            self.rings[0].offer_head(index);
        }
        self.machine.kick(0);
    }

    /// Opens a connection that the host accepts.
    #[track_caller]
    pub(in super::super) fn connect(&mut self, port: u32, host: u32) {
        self.send(&header(Op::Request, port, host), &[]);
        self.next_of(Op::Response);
    }

    pub(in super::super) fn send_data(&mut self, port: u32, host: u32, bytes: &[u8]) {
        let len = bytes.len() as u32;
        *self.sent.entry((port, host)).or_default() += len;
        self.send(&Header { len, ..header(Op::Data, port, host) }, bytes);
    }

    /// Returns the number of bytes that the device has space for in a connection.
    pub(in super::super) fn credit(&mut self, port: u32, host: u32) -> u32 {
        self.collect();
        let sent = self.sent.get(&(port, host)).copied().unwrap_or_default();
        let (room, taken) = self.room[&(port, host)];
        assert!(sent.wrapping_sub(taken) <= room, "port {port}: {sent} sent, {taken} taken of {room}");
        room - (sent - taken)
    }

    /// Sends a packet in two buffers.
    pub(in super::super) fn send(&mut self, header: &Header, bytes: &[u8]) {
        self.machine.put(PACKETS, &header.to_bytes());
        self.machine.put(PACKETS + 4096, bytes);
        let buffers = [Buffer::readable(PACKETS, 44), Buffer::readable(PACKETS + 4096, bytes.len() as u32)];
        self.send_buffers(&buffers[..1 + usize::from(!bytes.is_empty())]);
    }

    pub(in super::super) fn send_buffers(&mut self, buffers: &[Buffer]) {
        self.rings[1].offer(buffers);
        self.machine.kick(1);
        while self.rings[1].completed().is_some() {}
    }

    pub(in super::super) fn settle(&mut self) {
        self.machine.settle();
        self.collect();
    }

    #[track_caller]
    pub(in super::super) fn settle_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < LIMIT, "the inbox is {:?}", self.inbox);
            self.settle();
        }
    }

    /// Returns the next packet of this kind, and drops those that came before it.
    #[track_caller]
    pub(in super::super) fn next_of(&mut self, op: Op) -> (Header, Vec<u8>) {
        self.settle_until(|guest| guest.inbox.iter().any(|(header, _)| header.op == op as u16));
        let index = self.inbox.iter().position(|(header, _)| header.op == op as u16).unwrap();
        self.inbox.drain(..=index).next_back().unwrap()
    }

    /// Returns the bytes of all packets of this kind that have arrived, and drops the others.
    pub(in super::super) fn packets_of(&mut self, op: Op) -> Vec<Vec<u8>> {
        self.settle();
        let all = std::mem::take(&mut self.inbox).into_iter();
        all.filter(|(header, _)| header.op == op as u16).map(|(_, bytes)| bytes).collect()
    }

    pub(in super::super) fn backlog(&self) -> usize {
        lock(&self.vsock.mux).backlog()
    }

    pub(in super::super) fn connections(&self) -> usize {
        lock(&self.vsock.mux).connections()
    }

    pub(in super::super) fn resets(&self) -> usize {
        lock(&self.vsock.mux).resets()
    }

    pub(in super::super) fn tick(&mut self) {
        self.tick_uncollected();
        self.collect();
    }

    /// Like the function above, but the guest takes none of the packets that arrive.
    pub(in super::super) fn tick_uncollected(&mut self) {
        lock(&self.vsock.mux).tick();
        // The next event makes the device notice the effect of the clock.
        self.machine.kick(0);
    }

    /// Takes the packets out of the buffers and offers the buffers again, until nothing more arrives.
    fn collect(&mut self) {
        loop {
            let mut is_new = false;
            while let Some((index, len)) = self.rings[0].completed() {
                is_new = true;
                let index = index as u16;
                let packet = self.machine.bytes(buffer(index), len as usize);
                self.rings[0].offer_head(index);
                let (head, bytes) = packet.split_first_chunk().expect("a whole header");
                let header = Header::from_bytes(head);
                assert_eq!(header.len as usize, bytes.len());
                assert_eq!((header.dst_cid, header.kind), (self.vsock.guest_cid.into(), STREAM));
                let ports = (header.dst_port, header.src_port);
                self.room.insert(ports, (header.buf_alloc, header.fwd_cnt));
                self.inbox.push((header, bytes.to_vec()));
            }
            if !is_new {
                return;
            }
            self.machine.kick(0);
        }
    }
}

/// Makes a packet without bytes from a port of the guest to one of the host.
pub(in super::super) fn header(op: Op, port: u32, host: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: port,
        dst_port: host,
        kind: STREAM,
        op: op as u16,
        buf_alloc: ROOM,
        ..Header::default()
    }
}

/// Makes bytes of which no two ranges are alike.
pub(in super::super) fn numbered(len: usize) -> Vec<u8> {
    (0..len.div_ceil(4) as u32).flat_map(u32::to_le_bytes).take(len).collect()
}

fn buffer(index: u16) -> u64 {
    BUFFERS + u64::from(index) * u64::from(BUFFER_LEN)
}

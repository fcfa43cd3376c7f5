//! The multiplexer: finds the connection of each packet and of each socket.
//!
//! It outlives the handler that serves the queues, so that connections survive a pause. All descriptors of
//! the host's side are in one epoll set, and the handler watches that set.

#[cfg(any(test, feature = "testing"))]
mod bounds;
mod host_side;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::client::Client;
use super::connection::{Connection, Opener, Violation};
use super::host_socket::HostSocket;
use super::packet::{HOST_CID, Header, Op, Ports, STREAM};
use super::switchboard::Switchboard;
use super::{KEPT_BACK, MAX_CONNECTIONS};
use crate::journal;
use crate::memory::Buffers;

/// All connections of a device, and the sources of new ones.
#[derive(Debug)]
pub(super) struct Mux {
    guest_cid: u64,
    epoll: Epoll,
    socket: Option<HostSocket>,
    switchboard: Arc<Switchboard>,
    /// Ticks while anyone's patience has to be counted.
    clock: TimerFd,
    clock_runs: bool,
    /// Whether the listener may have clients, or the host had no descriptor for one.
    may_accept: bool,
    clients: BTreeMap<Id, Client>,
    connections: BTreeMap<Id, Connection>,
    by_ports: BTreeMap<Ports, Id>,
    /// Connections that have something for the guest. Each is in here once, and only while it exists.
    ready: VecDeque<Id>,
    /// Resets that the guest has yet to get: the address and ports of the host's side. They are sent before
    /// all else. So besides [`MAX_RESETS`] there are only those of connections that the guest knew when the
    /// first of these resets was due.
    resets: VecDeque<(u64, Ports)>,
    /// The bytes of wide windows that are still available.
    wide_room: u32,
    next_id: Id,
    next_host_port: u32,
    /// Whether the driver has yet to hear that all of its connections are gone.
    pub(super) owes_transport_reset: bool,
}

/// The number of a socket in the epoll set. No number is used twice.
type Id = u64;

impl Mux {
    pub(super) fn new(
        guest_cid: u64,
        socket: Option<HostSocket>,
        switchboard: Arc<Switchboard>,
    ) -> io::Result<Self> {
        let mux = Self {
            guest_cid,
            epoll: Epoll::new()?,
            socket,
            switchboard,
            clock: TimerFd::new()?,
            clock_runs: false,
            may_accept: true,
            clients: BTreeMap::new(),
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            wide_room: WIDE_ROOM,
            next_id: FIRST_ID,
            next_host_port: FIRST_HOST_PORT,
            owes_transport_reset: false,
        };
        mux.watch(mux.switchboard.wake(), CALLS, EventSet::IN)?;
        mux.watch(&mux.clock, CLOCK, EventSet::IN)?;
        if let Some(socket) = &mux.socket {
            mux.watch(socket.listener(), LISTENER, EventSet::IN)?;
        }
        Ok(mux)
    }

    /// Returns the epoll set. It is readable when [`serve_host`](Self::serve_host) has something to do.
    pub(super) fn events(&self) -> &Epoll {
        &self.epoll
    }

    /// Returns whether the guest has to take resets before more of its packets are served.
    pub(super) fn is_clogged(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Returns whether [`next_packet`](Self::next_packet) may have a packet for a buffer of the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet from the guest. Its bytes pass through `scratch`, piece by piece.
    pub(super) fn take_packet(&mut self, packet: &mut Buffers, scratch: &mut [u8]) {
        let Some(header) = packet.read_array().map(|bytes| Header::from_bytes(&bytes)) else {
            return journal!(Guest Warn, "virtio vsock: a packet without a header is dropped");
        };
        // There is no way to answer a sender that is not the guest.
        if header.src_cid != self.guest_cid {
            return;
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let op = Op::new(header.op).filter(|_| header.kind == STREAM && header.dst_cid == HOST_CID);
        let Some(op) = op else { return self.refuse(&header) };
        match (op, self.by_ports.get(&ports).copied()) {
            (Op::Request, None) => self.open_for_guest(ports, &header),
            (Op::Reset, Some(id)) => self.forgotten_by_guest(id),
            (_, Some(id)) => {
                if self.take_for(id, op, &header, packet, scratch).is_err() {
                    self.remove(id);
                    self.resets.push_back((HOST_CID, ports));
                }
            }
            (_, None) => self.refuse(&header),
        }
    }

    /// Makes the next packet for the guest, with at most as many bytes as fit into `data`. Returns its
    /// header.
    pub(super) fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some((src_cid, ports)) = self.resets.pop_front() {
            return Some(Header { src_cid, op: Op::Reset as u16, ..self.header(ports) });
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let packet = connection.next_packet(data);
            let (room, taken) = packet.map(|_| connection.report_room()).unwrap_or_default();
            let (ports, is_patient) = (connection.ports(), connection.patience.is_some());
            self.queue(id);
            if is_patient {
                self.run_clock();
            }
            if let Some(packet) = packet {
                let (op, flags, len) = (packet.op as u16, packet.flags, packet.len);
                return Some(Header {
                    op,
                    flags,
                    len,
                    buf_alloc: room,
                    fwd_cnt: taken,
                    ..self.header(ports)
                });
            }
        }
        None
    }

    /// Detaches all connections, because the guest has reset the device. The host still gets the bytes that
    /// are on their way.
    pub(super) fn reset(&mut self) {
        let ids: Vec<Id> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.detach(id));
        self.ready.clear();
        self.resets.clear();
        self.owes_transport_reset = false;
    }

    /// Closes everything for the end of the machine. The host still gets the bytes on their way, within
    /// [`FLUSH_LIMIT`].
    pub(super) fn close(&mut self) {
        self.reset();
        self.socket = None;
        self.clients.clear();
        let start = Instant::now();
        while !self.connections.is_empty() && start.elapsed() < FLUSH_LIMIT {
            let mut events = [EpollEvent::default(); READY_EVENTS];
            // Sockets that take more bytes end the wait.
            let count = self.epoll.wait(FLUSH_WAIT_MILLIS, &mut events).unwrap_or_default();
            events.iter().take(count).for_each(|event| self.on_socket_ready(event.data(), event.event_set()));
        }
        self.connections.clear();
        self.switchboard.close();
    }

    /// Takes a packet for a connection that exists.
    fn take_for(
        &mut self,
        id: Id,
        op: Op,
        header: &Header,
        packet: &mut Buffers,
        scratch: &mut [u8],
    ) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&id) else { return Err(Violation) };
        connection.update_room(header);
        match op {
            Op::Request | Op::Reset => return Err(Violation),
            Op::Response => connection.respond()?,
            Op::CreditUpdate => {}
            Op::CreditRequest => connection.owe_credit(),
            Op::Data => {
                connection.check_data(header.len)?;
                if u64::from(header.len) > packet.len() {
                    return Err(Violation);
                }
                let mut left = header.len as usize;
                while left > 0 {
                    let piece = left.min(scratch.len());
                    let piece = scratch.get_mut(..piece).unwrap_or_default();
                    let count = packet.read(piece);
                    connection.push(piece.get(..count).unwrap_or_default());
                    left = if count == 0 { 0 } else { left.saturating_sub(count) };
                }
            }
            Op::Shutdown => {
                if connection.shut_down(header.flags) {
                    let ports = connection.ports();
                    self.detach(id);
                    self.resets.push_back((HOST_CID, ports));
                }
            }
        }
        self.queue(id);
        Ok(())
    }

    /// Opens a connection from the guest to a port of the host.
    fn open_for_guest(&mut self, ports: Ports, request: &Header) {
        let stream = match self.dial(ports) {
            Ok(stream) => stream,
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
                    journal!(Guest Warn,
                        "virtio vsock: the guest cannot connect to port {} of the host: {error}",
                        ports.host
                    );
                }
                return self.refuse(request);
            }
        };
        let window = self.take_window();
        let connection = Connection::accepted(ports, stream, window, request);
        if self.add(connection).is_err() {
            self.refuse(request);
        }
    }

    fn dial(&self, ports: Ports) -> io::Result<UnixStream> {
        let kept_back = if self.switchboard.listeners().is_privileged(ports.host) { KEPT_BACK } else { 0 };
        if self.count() >= MAX_CONNECTIONS.saturating_add(kept_back) {
            return Err(io::Error::other("the device has its largest number of connections"));
        }
        match (self.switchboard.listeners().dial(ports.host, ports.guest), &self.socket) {
            (Some(stream), _) => stream,
            (None, Some(socket)) => socket.dial(ports.host),
            (None, None) => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Answers a packet that belongs to no connection, or to one that cannot exist, with a reset.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            let ports = Ports { guest: header.src_port, host: header.dst_port };
            self.resets.push_back((header.dst_cid, ports));
        }
    }

    fn forgotten_by_guest(&mut self, id: Id) {
        match self.connections.get(&id) {
            Some(connection) if connection.is_requested() => {
                if let Some(caller) = self.remove(id).and_then(Connection::into_caller) {
                    caller.refused();
                }
            }
            _ => self.detach(id),
        }
    }

    fn requested(&mut self, port: u32, stream: UnixStream, opener: Opener) -> Connection {
        let host = self.free_host_port(port);
        let window = self.take_window();
        self.run_clock();
        Connection::requested(Ports { guest: port, host }, stream, window, opener)
    }

    /// Adds a connection whose socket is new.
    fn add(&mut self, connection: Connection) -> io::Result<()> {
        let id = self.new_id();
        if let Err(error) = self.watch(connection.stream(), id, SOCKET_EVENTS) {
            self.give_window_back(&connection);
            return Err(error);
        }
        self.insert(id, connection);
        Ok(())
    }

    /// Adds a connection whose socket is already watched.
    fn insert(&mut self, id: Id, connection: Connection) {
        self.by_ports.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.queue(id);
    }

    /// Queues a connection that has something for the guest.
    fn queue(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.has_packets() && !std::mem::replace(&mut connection.queued, true) {
            self.ready.push_back(id);
        }
    }

    /// Detaches a connection that the guest has forgotten. The host still gets the bytes that are on their
    /// way.
    fn detach(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        self.by_ports.remove(&connection.ports());
        connection.detach();
        if connection.is_over() {
            self.remove(id);
        }
    }

    /// Ends a connection, and tells the guest if the guest knows it.
    fn give_up(&mut self, id: Id) {
        if let Some(connection) = self.remove(id)
            && connection.is_known_to_guest()
        {
            self.resets.push_back((HOST_CID, connection.ports()));
        }
    }

    /// Ends a connection. Closing its socket removes it from the epoll set.
    fn remove(&mut self, id: Id) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        if self.by_ports.get(&connection.ports()) == Some(&id) {
            self.by_ports.remove(&connection.ports());
        }
        if connection.queued {
            self.ready.retain(|ready| *ready != id);
        }
        self.give_window_back(&connection);
        Some(connection)
    }

    fn is_full(&self) -> bool {
        self.count() >= MAX_CONNECTIONS
    }

    fn count(&self) -> usize {
        self.connections.len().saturating_add(self.clients.len())
    }

    /// Takes a wide window while one is available, and otherwise a narrow one.
    fn take_window(&mut self) -> u32 {
        match self.wide_room.checked_sub(WIDE_WINDOW) {
            Some(left) => {
                self.wide_room = left;
                WIDE_WINDOW
            }
            None => NARROW_WINDOW,
        }
    }

    fn give_window_back(&mut self, connection: &Connection) {
        if connection.window() == WIDE_WINDOW {
            self.wide_room = self.wide_room.saturating_add(WIDE_WINDOW);
        }
    }

    /// Returns a port of the host that has no connection to this port of the guest.
    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // The loop ends, because there are fewer connections than ports.
            if !self.by_ports.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    fn new_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        id
    }

    fn watch(&self, source: &impl AsRawFd, id: Id, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, id);
        self.epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
    }

    /// Returns a header with the fields that all packets to the guest share.
    fn header(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            ..Header::default()
        }
    }
}

// The event data of the epoll set that tell the sources apart.
const CALLS: Id = 0;
const CLOCK: Id = 1;
const LISTENER: Id = 2;
const FIRST_ID: Id = 16;

const SOCKET_EVENTS: EventSet = EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP);
/// The number of sockets that one call serves.
const READY_EVENTS: usize = 64;
/// The lowest port that the device uses for its own connections. Lower ports are for programs that listen.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The number of waiting resets from which the guest's packets have to wait too.
const MAX_RESETS: usize = 256;
/// The bytes that the guest may have in flight in one connection: two of the largest packets that Linux
/// makes.
const WIDE_WINDOW: u32 = 128 << 10;
/// The bytes in flight of a further connection when [`WIDE_ROOM`] is used up.
const NARROW_WINDOW: u32 = 8 << 10;
/// The bytes of all wide windows: 32 connections have one. Together with the narrow windows of all others, a
/// guest whose peers read nothing can make this process hold less than 8 MiB.
const WIDE_ROOM: u32 = 4 << 20;
/// How long the end of a machine waits for peers that read slowly.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
const FLUSH_WAIT_MILLIS: i32 = 50;

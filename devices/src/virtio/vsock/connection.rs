//! A connection between a port of the guest and a stream socket of the host.
//!
//! The multiplexer owns it, passes it the guest's packets and the events of its socket, and asks it for
//! packets to the guest. It never waits. Bytes that the socket does not take are kept, up to the window that
//! the guest may fill. Bytes that the guest has no space for stay in the socket.
//!
//! ```text
//! requested --response--> open --reset, or both directions shut down--> detached --all is sent--> (removed)
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::credit::{ToGuest, ToHost};
use super::packet::{BOTH_WAYS, Header, NO_MORE_RECEIVED, NO_MORE_SENT, Op, Ports};
use super::switchboard::Caller;
use crate::virtio::socket;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    stream: UnixStream,
    stage: Stage,
    to_host: ToHost,
    to_guest: ToGuest,
    owed: Owed,
    /// The number of clock ticks until it is given up, while it waits for an answer of the guest.
    pub(super) patience: Option<u32>,
    /// Whether it is in the multiplexer's queue of connections that have something for the guest.
    pub(super) queued: bool,
}

#[derive(Debug)]
enum Stage {
    /// The guest has been asked to accept the connection, or will be.
    Requested(Opener),
    Open,
    /// The guest has forgotten the connection, and the host gets the rest of the bytes.
    Detached,
}

/// The side of the host that opens a connection and waits for its success.
#[derive(Debug)]
pub(super) enum Opener {
    /// A client of the socket: it gets `OK PORT` on the stream (see [`super::client`]).
    Client,
    /// A thread of this process.
    Caller(Caller),
}

/// Packets without bytes that the guest still has to get.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit: bool,
    /// The flags of a shutdown that is still to be sent.
    shutdown: u32,
    /// The flags that have been sent.
    shutdown_sent: u32,
}

/// A packet for the guest, without the fields that all packets of the connection share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub op: Op,
    pub flags: u32,
    /// The number of bytes in the buffer.
    pub len: u32,
}

/// The guest has broken the rules of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

impl Connection {
    /// Makes a connection that the host opens.
    pub(super) fn requested(ports: Ports, stream: UnixStream, window: u32, opener: Opener) -> Self {
        let owed = Owed { request: true, ..Owed::default() };
        Self { patience: Some(PATIENCE), ..Self::new(ports, stream, window, Stage::Requested(opener), owed) }
    }

    /// Makes a connection that the guest has opened with `request`, and that the host has accepted.
    pub(super) fn accepted(ports: Ports, stream: UnixStream, window: u32, request: &Header) -> Self {
        let owed = Owed { response: true, ..Owed::default() };
        let mut connection = Self::new(ports, stream, window, Stage::Open, owed);
        connection.update_room(request);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, window: u32, stage: Stage, owed: Owed) -> Self {
        let to_guest = ToGuest { readable: true, ..ToGuest::default() };
        Self {
            ports,
            stream,
            stage,
            to_host: ToHost::new(window),
            to_guest,
            owed,
            patience: None,
            queued: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn window(&self) -> u32 {
        self.to_host.window
    }

    /// Returns the number of bytes that wait for the host.
    #[cfg(test)]
    pub(super) fn backlog(&self) -> usize {
        self.to_host.backlog.len()
    }

    /// Returns whether the guest has yet to accept the connection.
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.stage, Stage::Requested(_))
    }

    /// Returns whether the guest has been told about the connection, or has opened it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !self.owed.request
    }

    /// Returns the caller in this process that waits for the connection, if there is one.
    pub(super) fn into_caller(self) -> Option<Caller> {
        match self.stage {
            Stage::Requested(Opener::Caller(caller)) => Some(caller),
            Stage::Requested(Opener::Client) | Stage::Open | Stage::Detached => None,
        }
    }

    /// Returns whether the connection can be removed.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Detached) && self.to_host.backlog.is_empty()
    }

    /// Takes the size of the guest's buffer, which is in every packet. A false size harms only this
    /// connection.
    pub(super) fn update_room(&mut self, header: &Header) {
        self.to_guest.room = header.buf_alloc;
        self.to_guest.taken = header.fwd_cnt;
        if self.to_guest.credit() > 0 {
            self.to_guest.room_is_asked_for = false;
        }
    }

    /// Opens the connection, because the guest has accepted it.
    pub(super) fn respond(&mut self) -> Result<(), Violation> {
        let Stage::Requested(opener) = std::mem::replace(&mut self.stage, Stage::Open) else {
            return Err(Violation);
        };
        self.patience = None;
        match opener {
            Opener::Caller(caller) => caller.connected(),
            Opener::Client => {
                // It is the first thing that the client gets, so its socket has space. A client whose socket
                // has none is beyond help.
                let answer = format!("OK {}\n", self.ports.host);
                if !socket::send(&self.stream, answer.as_bytes()).is_ok_and(|sent| sent == answer.len()) {
                    self.refuse_host();
                }
            }
        }
        Ok(())
    }

    /// Checks that the guest may send `len` bytes now.
    pub(super) fn check_data(&self, len: u32) -> Result<(), Violation> {
        let is_open = matches!(self.stage, Stage::Open);
        if is_open && self.to_host.takes(len) { Ok(()) } else { Err(Violation) }
    }

    /// Takes bytes from the guest that [`check_data`](Self::check_data) has admitted.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.to_host.received = self.to_host.received.wrapping_add(bytes.len() as u32);
        if self.to_host.backlog.is_empty() {
            let sent = self.send(bytes);
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        if self.to_host.refused {
            self.to_host.forwarded = self.to_host.received;
        } else {
            self.to_host.backlog.extend(bytes);
        }
    }

    /// Ends directions by the flags of the guest's packet. Returns whether both directions have now ended.
    pub(super) fn shut_down(&mut self, flags: u32) -> bool {
        if flags & NO_MORE_RECEIVED != 0 {
            self.refuse_guest();
        }
        if flags & NO_MORE_SENT != 0 {
            self.to_host.ended = true;
            self.end_host();
        }
        self.to_guest.refused && self.to_host.ended
    }

    /// Detaches the connection, because the guest has forgotten it. The host still gets the bytes that are on
    /// their way.
    pub(super) fn detach(&mut self) {
        self.stage = Stage::Detached;
        self.owed = Owed::default();
        self.patience = None;
        self.to_host.ended = true;
        self.refuse_guest();
        self.end_host();
    }

    /// Handles events of the socket. Returns true if the host has given up a connection that the guest has
    /// not accepted.
    pub(super) fn on_socket_ready(&mut self, events: EventSet) -> bool {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            if self.is_requested() {
                return true;
            }
            self.refuse_host();
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.to_guest.readable = true;
        }
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        false
    }

    /// Sends as much of the backlog as the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.to_host.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.to_host.backlog);
            let sent = self.send(backlog.as_slices().0);
            if !self.to_host.refused {
                self.to_host.backlog = backlog;
                self.to_host.backlog.drain(..sent);
            }
            if sent == 0 {
                break;
            }
        }
        if self.to_host.backlog.is_empty() {
            // An idle connection holds no memory.
            self.to_host.backlog = VecDeque::new();
        }
        self.end_host();
    }

    /// Returns whether [`next_packet`](Self::next_packet) can have a packet.
    pub(super) fn has_packets(&self) -> bool {
        let Owed { request, response, credit, shutdown, .. } = self.owed;
        match self.stage {
            Stage::Requested(_) => request,
            Stage::Open => {
                response
                    || credit
                    || shutdown != 0
                    || self.to_guest.can_read()
                    || self.to_guest.asks_for_room()
                    || self.to_host.owes_credit()
            }
            Stage::Detached => false,
        }
    }

    /// Returns the next packet for the guest. Its bytes, if any, are put into `data`, which is not empty.
    pub(super) fn next_packet(&mut self, data: &mut [u8]) -> Option<Packet> {
        let bare = |op| Some(Packet { op, flags: 0, len: 0 });
        match self.stage {
            Stage::Requested(_) if std::mem::take(&mut self.owed.request) => return bare(Op::Request),
            Stage::Requested(_) | Stage::Detached => return None,
            Stage::Open if std::mem::take(&mut self.owed.response) => return bare(Op::Response),
            Stage::Open => {}
        }
        if let Some(len) = self.read(data) {
            return Some(Packet { op: Op::Data, flags: 0, len });
        }
        if let flags @ 1.. = std::mem::take(&mut self.owed.shutdown) {
            self.owed.shutdown_sent |= flags;
            if self.owed.shutdown_sent == BOTH_WAYS {
                self.patience = Some(PATIENCE);
            }
            return Some(Packet { op: Op::Shutdown, flags, len: 0 });
        }
        if self.to_guest.asks_for_room() {
            self.to_guest.room_is_asked_for = true;
            return bare(Op::CreditRequest);
        }
        if self.owed.credit || self.to_host.owes_credit() { bare(Op::CreditUpdate) } else { None }
    }

    /// Returns the size of the window and the bytes that have left it, for the header of a packet, and notes
    /// that the guest now knows them.
    pub(super) fn report_room(&mut self) -> (u32, u32) {
        self.owed.credit = false;
        self.to_host.told = self.to_host.forwarded;
        (self.to_host.window, self.to_host.forwarded)
    }

    /// Notes that the guest has asked for its credit.
    pub(super) fn owe_credit(&mut self) {
        self.owed.credit = true;
    }

    /// Sends bytes to the host. Returns the number that it took.
    fn send(&mut self, bytes: &[u8]) -> usize {
        if self.to_host.refused {
            return 0;
        }
        match socket::send(&self.stream, bytes) {
            Ok(sent) => {
                self.to_host.forwarded = self.to_host.forwarded.wrapping_add(sent as u32);
                sent
            }
            Err(error) if waits(&error) => 0,
            Err(_) => {
                self.refuse_host();
                0
            }
        }
    }

    /// Notes that the host takes no more bytes.
    fn refuse_host(&mut self) {
        if !std::mem::replace(&mut self.to_host.refused, true) {
            self.to_host.backlog = VecDeque::new();
            self.to_host.forwarded = self.to_host.received;
            self.owe_shutdown(NO_MORE_RECEIVED);
        }
    }

    /// Notes that the guest takes no more bytes. The host learns it when it sends some.
    fn refuse_guest(&mut self) {
        if !std::mem::replace(&mut self.to_guest.refused, true) {
            // This fails only for a socket that is no longer connected.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// Tells the host that no more bytes come, once all have been sent.
    fn end_host(&mut self) {
        let to_host = &mut self.to_host;
        if to_host.ended && to_host.backlog.is_empty() && !std::mem::replace(&mut to_host.end_is_sent, true) {
            // This fails only for a socket that is no longer connected.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn owe_shutdown(&mut self, flag: u32) {
        self.owed.shutdown |= flag & !self.owed.shutdown_sent;
    }

    /// Reads bytes from the host, as many as the guest and `data` have space for.
    fn read(&mut self, data: &mut [u8]) -> Option<u32> {
        if !self.to_guest.can_read() {
            return None;
        }
        let most = data.len().min(self.to_guest.credit() as usize);
        match socket::receive(&self.stream, data.get_mut(..most)?) {
            Ok(count @ 1..) => {
                let count = count as u32;
                self.to_guest.sent = self.to_guest.sent.wrapping_add(count);
                Some(count)
            }
            Err(error) if waits(&error) => {
                self.to_guest.readable = false;
                None
            }
            // The stream has ended, or the peer has gone without reading all.
            Ok(_) | Err(_) => {
                self.to_guest.ended = true;
                self.owe_shutdown(NO_MORE_SENT);
                None
            }
        }
    }
}

fn waits(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// The number of clock ticks that a guest has to answer a request, or to end a connection that the host has
/// closed. Linux allows 2 s and 8 s, but a guest on an emulated host is slow.
pub(super) const PATIENCE: u32 = 10;

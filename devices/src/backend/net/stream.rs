//! A unix stream socket to a program that implements a network. Each frame follows its length in 4 bytes,
//! big-endian, as in passt, gvproxy and QEMU's `-netdev stream`.
//!
//! ```text
//! socket -> buffer (whole frames and the start of the next) -> the guest's RAM
//! the guest's RAM -> socket; what the socket does not take of one frame -> tail,
//! and no further frame until the tail is sent
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{
    HEADER_LEN, Interest, LinkLost, MAX_FRAME_LEN, MIN_FRAME_LEN, NetBackend, NetOpenError, Offloads,
    Received, Sent,
};
use vmm_sys_util::epoll::EventSet;

use crate::backend::unix_socket;
use crate::memory::{Buffers, Span};

/// A connected socket, and the frames in flight.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Bytes that were received and not taken yet, from `start` to `end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The range of `buffer` with the end of the last frame.
    overflow: std::ops::Range<usize>,
    /// The rest of a frame whose sending has begun.
    tail: Vec<u8>,
    /// The number of bytes of the tail that were sent.
    tail_sent: usize,
    /// Pieces of the next frame. The vector is kept for its memory.
    pieces: Vec<Span>,
}

impl Stream {
    /// Makes a stream of a non-blocking socket.
    pub fn new(socket: UnixStream) -> Stream {
        Stream {
            socket,
            buffer: vec![0; BUFFER_LEN].into(),
            start: 0,
            end: 0,
            overflow: 0..0,
            tail: Vec::new(),
            tail_sent: 0,
            pieces: Vec::new(),
        }
    }

    /// Connects to a socket at which a program listens. Does not wait for a program that accepts no
    /// connections.
    ///
    /// # Errors
    /// There is no such socket, or nobody listens.
    pub fn connect(path: &Path) -> Result<Stream, NetOpenError> {
        unix_socket::connect(path).map(Stream::new).map_err(|source| NetOpenError::Connect { source })
    }

    /// Returns the length of the frame at the front of the buffer, if the length is complete.
    fn announced(&self) -> Option<u32> {
        let bytes = self.buffer.get(self.start..self.end)?.first_chunk::<PREFIX_LEN>()?;
        Some(u32::from_be_bytes(*bytes))
    }

    /// Receives into the free part of the buffer. Returns false if there is nothing.
    fn fill(&mut self) -> Result<bool, LinkLost> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        // SAFETY: the pointer and the length are those of a slice.
        let result = unsafe {
            libc::recv(self.socket.as_raw_fd(), free.as_mut_ptr().cast(), free.len(), libc::MSG_DONTWAIT)
        };
        match usize::try_from(result) {
            Ok(0) => Err(LinkLost::Closed),
            Ok(len) => {
                self.end = self.end.saturating_add(len);
                Ok(true)
            }
            Err(_) => would_block(io::Error::last_os_error()).map(|()| false),
        }
    }

    /// Copies the frame of `len` bytes at the front of the buffer to the guest.
    fn take(&mut self, len: usize, room: &[Span]) -> Received {
        let start = self.start.saturating_add(PREFIX_LEN);
        let end = start.saturating_add(len);
        self.start = end;
        let mut room = Filler { room, at: 0 };
        room.write(&NO_OFFLOADS);
        let done = room.write(self.buffer.get(start..end).unwrap_or_default());
        self.overflow = start.saturating_add(done)..end;
        Received::Frame(HEADER_LEN.saturating_add(len as u32))
    }

    /// Sends as much of `pieces` as the socket takes. Returns the number of bytes.
    fn send_pieces(&self) -> Result<usize, LinkLost> {
        let iovecs = Span::iovecs(&self.pieces);
        // SAFETY: all fields are numbers or pointers, for which zero is a valid value.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = iovecs.as_ptr().cast_mut();
        message.msg_iovlen = iovecs.len() as _;
        // SAFETY: each iovec is guest RAM that its memory keeps mapped (the contract of `Span`), or lives in
        // the caller; the call only reads them.
        let result = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, FLAGS) };
        match usize::try_from(result) {
            Ok(len) => Ok(len),
            Err(_) => would_block(io::Error::last_os_error()).map(|()| 0),
        }
    }

    /// Sends as much of the tail as the socket takes.
    fn flush(&mut self) -> Result<(), LinkLost> {
        while let Some(rest @ [_, ..]) = self.tail.get(self.tail_sent..) {
            // SAFETY: the pointer and the length are those of a slice.
            let result =
                unsafe { libc::send(self.socket.as_raw_fd(), rest.as_ptr().cast(), rest.len(), FLAGS) };
            match usize::try_from(result) {
                Ok(len) => self.tail_sent = self.tail_sent.saturating_add(len),
                Err(_) => return would_block(io::Error::last_os_error()),
            }
        }
        self.tail.clear();
        self.tail_sent = 0;
        Ok(())
    }

    /// Keeps the rest of a frame after the first `sent` bytes of its prefix and content.
    fn keep_tail(&mut self, prefix: [u8; PREFIX_LEN], frame: &mut Buffers, sent: usize) {
        self.tail.clear();
        self.tail_sent = 0;
        self.tail.extend(prefix.iter().skip(sent));
        frame.skip(sent.saturating_sub(PREFIX_LEN) as u64);
        let begun = self.tail.len();
        self.tail.resize(begun.saturating_add(frame.len() as usize), 0);
        frame.read(self.tail.get_mut(begun..).unwrap_or_default());
    }
}

impl NetBackend for Stream {
    fn interest(&self, is_full: bool) -> Interest {
        Interest::of_end(&self.socket, is_full)
    }

    fn ready(&mut self, events: EventSet) -> Result<(), LinkLost> {
        if events.contains(EventSet::OUT) { self.flush() } else { Ok(()) }
    }

    fn possible_offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&mut self, _: Offloads) {}

    fn receive(&mut self, room: &[Span]) -> Result<Received, LinkLost> {
        self.overflow = 0..0;
        loop {
            let there = self.end.saturating_sub(self.start);
            if let Some(len) = self.announced() {
                if len > MAX_FRAME_LEN {
                    return Err(LinkLost::Protocol { len });
                }
                let whole = PREFIX_LEN.saturating_add(len as usize);
                if there >= whole {
                    if len >= MIN_FRAME_LEN {
                        return Ok(self.take(len as usize, room));
                    }
                    self.start = self.start.saturating_add(whole);
                    return Ok(Received::Dropped);
                }
            }
            if !self.fill()? {
                return Ok(Received::Nothing);
            }
        }
    }

    fn overflow(&self) -> &[u8] {
        self.buffer.get(self.overflow.clone()).unwrap_or_default()
    }

    fn send(&mut self, frame: &mut Buffers) -> Result<Sent, LinkLost> {
        let len = frame.len().saturating_sub(HEADER_LEN.into());
        if !(MIN_FRAME_LEN.into()..=MAX_FRAME_LEN.into()).contains(&len) || self.is_blocked() {
            return Ok(Sent::Dropped);
        }
        frame.skip(HEADER_LEN.into());
        let mut prefix = (len as u32).to_be_bytes();
        if frame.spans().len() >= MAX_IOVECS {
            self.keep_tail(prefix, frame, 0);
            return self.flush().map(|()| Sent::Done);
        }
        self.pieces.clear();
        // SAFETY: `prefix` lives until the end of this function, and only this function uses `pieces`.
        self.pieces.push(unsafe { Span::new(prefix.as_mut_ptr(), PREFIX_LEN as u32) });
        self.pieces.extend(frame.spans());
        let sent = self.send_pieces()?;
        if (sent as u64) < len.saturating_add(PREFIX_LEN as u64) {
            self.keep_tail(prefix, frame, sent);
        }
        Ok(Sent::Done)
    }

    fn is_blocked(&self) -> bool {
        !self.tail.is_empty()
    }
}

/// A cursor that fills spans from the front.
struct Filler<'a> {
    room: &'a [Span],
    /// The number of bytes of the first span that are filled.
    at: u32,
}

impl Filler<'_> {
    /// Writes as much of `data` as there is space for. Returns the number of bytes.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let (Some(span), Some(rest @ [_, ..])) = (self.room.first(), data.get(done..)) {
            let count = span.write(self.at, rest);
            done = done.saturating_add(count);
            self.at = self.at.saturating_add(count as u32);
            if self.at >= span.len() {
                (self.room, self.at) = (self.room.get(1..).unwrap_or_default(), 0);
            }
        }
        done
    }
}

/// Returns an error unless `error` only means that the socket is full or empty.
fn would_block(error: io::Error) -> Result<(), LinkLost> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Ok(()),
        Some(libc::EPIPE | libc::ECONNRESET) => Err(LinkLost::Closed),
        _ => Err(LinkLost::Failed(error)),
    }
}

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// The length in bytes of the prefix with a frame's length.
const PREFIX_LEN: usize = 4;
/// The header of a frame without offloads.
const NO_OFFLOADS: [u8; HEADER_LEN as usize] = [0; HEADER_LEN as usize];
/// The size of the receive buffer in bytes: two of the longest frames, so that one call takes many usual
/// ones.
const BUFFER_LEN: usize = 2 * (PREFIX_LEN + MAX_FRAME_LEN as usize);
/// The largest number of iovecs in a call: IOV_MAX of Linux.
const MAX_IOVECS: usize = 1024;

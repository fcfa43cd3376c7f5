//! A tap device: an Ethernet interface of the host whose other end is a file. Frames pass between the guest's
//! RAM and the kernel without a copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::open::{NetOpenError, OpenStep};
use super::{
    HEADER_LEN, Interest, LinkLost, MAX_FRAME_LEN, MIN_FRAME_LEN, NetBackend, Offloads, Received, Sent,
};
use crate::journal;
use crate::memory::{Buffers, Span};

/// A tap device that is ready for frames with virtio headers.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offloads: Offloads,
    /// Takes the end of frames that are longer than their buffers.
    overflow: Box<[u8]>,
    overflow_len: usize,
    /// Buffers of the next frame. The vector is kept for its memory.
    buffers: Vec<Span>,
}

impl Tap {
    /// Opens the tap with this name. It must exist: a new one would have no address and no route.
    ///
    /// # Errors
    /// There is none, it is of another kind, it belongs to another user, or it is in use.
    pub fn open(name: &str) -> Result<Tap, NetOpenError> {
        let mut request = interface_request(name).ok_or(NetOpenError::NoInterface)?;
        // SAFETY: the name in the request ends with a zero.
        if unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) } == 0 {
            return Err(NetOpenError::NoInterface);
        }
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).clone();
        let file = options.open(TUN).map_err(|source| NetOpenError::Tun { source })?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(attach_error(io::Error::last_os_error()));
        }
        Tap::prepare(file)
    }

    /// Takes a tap that another program has opened. Its descriptor becomes non-blocking for all processes
    /// that share it.
    ///
    /// # Errors
    /// The tap is of another kind.
    pub(super) fn adopt(file: File, flags: i32) -> Result<Tap, NetOpenError> {
        if flags & libc::IFF_TAP == 0 {
            return Err(NetOpenError::NotEthernet);
        }
        if flags & libc::IFF_VNET_HDR == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(NetOpenError::TapFlags);
        }
        Tap::prepare(file)
    }

    /// Returns the flags of the tap behind a descriptor; `None` if it is not a tap.
    pub(super) fn flags(file: &File) -> Option<i32> {
        let mut request = interface_request("")?;
        // SAFETY: TUNGETIFF writes one `ifreq`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        // SAFETY: the flags were zero, or are what the call has written.
        (result == 0).then(|| i32::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    fn prepare(file: File) -> Result<Tap, NetOpenError> {
        let failed = |source| NetOpenError::Prepare { step: OpenStep::Tap, source };
        let len = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        set_offloads(&file, Offloads::default()).map_err(failed)?;
        let overflow = vec![0; (HEADER_LEN.saturating_add(MAX_FRAME_LEN)) as usize].into();
        Ok(Tap { file, offloads: Offloads::default(), overflow, overflow_len: 0, buffers: Vec::new() })
    }

    /// Drops the waiting frames, up to a limit.
    fn discard(&mut self) {
        for _ in 0..MAX_DISCARDED {
            match self.receive(&[]) {
                Ok(Received::Frame(_) | Received::Dropped) => {}
                Ok(Received::Nothing) | Err(_) => return,
            }
        }
    }
}

impl NetBackend for Tap {
    fn interest(&self, is_full: bool) -> Interest {
        Interest::of_end(&self.file, is_full)
    }

    fn possible_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        if let Err(error) = set_offloads(&self.file, offloads) {
            journal!(Guest Warn, "a tap takes no new offloads: {error}");
        }
        let before = std::mem::replace(&mut self.offloads, offloads);
        // The waiting frames may have been left unfinished for a receiver that could do more.
        if !offloads.contains(before) {
            self.discard();
        }
    }

    fn receive(&mut self, room: &[Span]) -> Result<Received, LinkLost> {
        self.buffers.clear();
        self.buffers.extend(room.iter().take(MAX_IOVECS.saturating_sub(1)));
        let room_len: usize = self.buffers.iter().map(|span| span.len() as usize).sum();
        // SAFETY: the buffer lives as long as this tap, and only this call uses `buffers`.
        let overflow = unsafe { Span::new(self.overflow.as_mut_ptr(), self.overflow.len() as u32) };
        self.buffers.push(overflow);
        let Ok(len) = usize::try_from(transfer(libc::SYS_readv, &self.file, &self.buffers)) else {
            self.overflow_len = 0;
            return unless_gone(&io::Error::last_os_error()).map(|()| Received::Nothing);
        };
        self.overflow_len = len.saturating_sub(room_len);
        Ok(if len < HEADER_LEN as usize { Received::Dropped } else { Received::Frame(len as u32) })
    }

    fn overflow(&self) -> &[u8] {
        self.overflow.get(..self.overflow_len).unwrap_or_default()
    }

    fn send(&mut self, frame: &mut Buffers) -> Result<Sent, LinkLost> {
        let range = u64::from(HEADER_LEN.saturating_add(MIN_FRAME_LEN))..=u64::from(MAX_LEN);
        let spans = frame.spans();
        if !range.contains(&frame.len()) || spans.len() > MAX_IOVECS {
            return Ok(Sent::Dropped);
        }
        if transfer(libc::SYS_writev, &self.file, spans) >= 0 {
            return Ok(Sent::Done);
        }
        // The header is invalid, the interface is down, or its queue is full.
        unless_gone(&io::Error::last_os_error()).map(|()| Sent::Dropped)
    }
}

/// Calls readv(2) or writev(2), by its number, for one frame in `spans`. The C library's functions of these
/// names are cancellation points, for which they begin and end each call with an atomic operation.
fn transfer(call: libc::c_long, file: &File, spans: &[Span]) -> libc::c_long {
    let iovecs = Span::iovecs(spans);
    // SAFETY: each iovec is guest RAM that its memory keeps mapped, or a buffer of the caller (the contract
    // of `Span`). The three arguments are those of both calls.
    unsafe { libc::syscall(call, file.as_raw_fd(), iovecs.as_ptr(), iovecs.len()) }
}

/// Returns an error if `error` means that the interface no longer exists.
fn unless_gone(error: &io::Error) -> Result<(), LinkLost> {
    match error.raw_os_error() {
        Some(libc::EBADFD | libc::ENODEV | libc::ENOLINK) => Err(LinkLost::TapRemoved),
        _ => Ok(()),
    }
}

fn attach_error(source: io::Error) -> NetOpenError {
    match source.raw_os_error() {
        Some(libc::EPERM) => NetOpenError::Permission,
        Some(libc::EBUSY) => NetOpenError::Busy,
        Some(libc::EINVAL) => NetOpenError::NotATap,
        _ => NetOpenError::Prepare { step: OpenStep::Tap, source },
    }
}

fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    let Offloads { checksum, tso4, tso6, ecn } = offloads.possible();
    let bits = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
    ];
    let bits = bits.iter().filter(|(wanted, _)| *wanted).fold(0, |bits, (_, bit)| bits | bit);
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns a request about the interface `name`; `None` if no interface can have this name.
fn interface_request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte of the name stays zero.
    let field = request.ifr_name.get_mut(..libc::IFNAMSIZ.saturating_sub(1))?.get_mut(..name.len())?;
    field.iter_mut().zip(name.bytes()).for_each(|(target, byte)| *target = byte as libc::c_char);
    Some(request)
}

const TUN: &str = "/dev/net/tun";
const MAX_LEN: u32 = HEADER_LEN + MAX_FRAME_LEN;
/// The largest number of iovecs in a call: IOV_MAX of Linux.
const MAX_IOVECS: usize = 1024;
/// The largest number of frames that are dropped at a time: more than the default queue of a tap (1,000)
/// holds.
const MAX_DISCARDED: u32 = 2000;

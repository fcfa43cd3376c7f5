//! Asks for an address by DHCP, below the kernel's own network layer (`packet(7)`). The interface has no
//! address yet, and a server may send its answer to the address that it offers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use coracle_agent::relay::{poll, poll_entry};

use super::interface::Interface;
use super::lease::{self, ACK, Answer, DISCOVER, Lease, OFFER, REQUEST};

/// Asks until a server gives an address.
///
/// # Errors
/// No server answers within `limit`, or a system call fails.
pub(super) fn ask(interface: &Interface, limit: Duration) -> io::Result<Lease> {
    let line = Line::open(interface)?;
    let hardware = interface.hardware_address()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let transaction =
        now.subsec_nanos() ^ u32::from_be_bytes([hardware[2], hardware[3], hardware[4], hardware[5]]);
    let deadline = Instant::now() + limit.min(LONGEST);
    let mut taken: Option<Answer> = None;
    let mut wait = FIRST_WAIT;
    while Instant::now() < deadline {
        let question = match &taken {
            None => lease::question(DISCOVER, transaction, hardware, None),
            Some(offer) => {
                lease::question(REQUEST, transaction, hardware, Some((offer.lease.address, offer.server)))
            }
        };
        line.send(&question)?;
        let answered = line.receive(deadline.min(Instant::now() + wait), |packet| {
            let answer = lease::answer(packet, transaction, hardware)?;
            let wanted = if taken.is_some() { ACK } else { OFFER };
            (answer.kind == wanted).then_some(answer)
        })?;
        match (answered, &taken) {
            (Some(answer), Some(_)) => return Ok(answer.lease),
            (Some(answer), None) => taken = Some(answer),
            // The server may have gone since its offer.
            (None, _) => {
                taken = None;
                wait = wait.saturating_mul(2);
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
}

/// A socket for the interface's IPv4 packets.
struct Line {
    socket: OwnedFd,
    everybody: libc::sockaddr_ll,
}

impl Line {
    fn open(interface: &Interface) -> io::Result<Self> {
        let protocol = (libc::ETH_P_IP as u16).to_be();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an all-zero address is valid: it is plain data.
        let mut everybody: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        everybody.sll_family = libc::AF_PACKET as u16;
        everybody.sll_protocol = protocol;
        everybody.sll_ifindex = interface.index()?;
        everybody.sll_halen = 6;
        everybody.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        // SAFETY: the address lives through the call and has this size.
        let bound = unsafe { libc::bind(fd, (&raw const everybody).cast(), ADDRESS_LEN) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket, everybody }) }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let (fd, to) = (self.socket.as_raw_fd(), &raw const self.everybody);
        // SAFETY: both pointers are to live data of the given lengths, which the call only reads.
        let sent =
            unsafe { libc::sendto(fd, packet.as_ptr().cast(), packet.len(), 0, to.cast(), ADDRESS_LEN) };
        let error = io::Error::last_os_error();
        // The link is not up yet, so the next round tries again.
        if sent >= 0 || matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENOBUFS)) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Returns the first value that `wanted` makes of a packet, if one comes before `deadline`.
    fn receive<T>(
        &self,
        deadline: Instant,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut packet = [0; 1500];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut entries = [poll_entry(self.socket.as_raw_fd(), libc::POLLIN)];
            poll(&mut entries, i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1))?;
            let fd = self.socket.as_raw_fd();
            // SAFETY: pointer and length are those of a live, exclusively borrowed array.
            let count = unsafe { libc::recv(fd, packet.as_mut_ptr().cast(), packet.len(), 0) };
            let received = usize::try_from(count).ok().and_then(|count| packet.get(..count));
            if let Some(found) = received.and_then(&mut wanted) {
                return Ok(Some(found));
            }
        }
    }
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
/// The first wait. A server on the same host answers at once; the wait doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest limit. A longer one is as good as none, and the clock cannot hold it.
const LONGEST: Duration = Duration::from_secs(1 << 30);

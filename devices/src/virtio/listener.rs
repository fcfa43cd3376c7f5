//! Listeners for the connections that a guest opens: to a port of the host by a socket device, or by a port
//! of the console device.
//!
//! Programs and the agent's thread hold a [`PortListener`]. The device looks it up in its `Listeners` when
//! the guest connects. Every stream is one end of a socket pair.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use super::socket;
use crate::lock;

/// The listeners of one device, by their ports.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    queues: BTreeMap<u32, Arc<Queue>>,
}

/// Listens for the guest's connections to one port. Once it is dropped, they are refused again.
#[derive(Debug)]
pub struct PortListener {
    port: u32,
    queue: Arc<Queue>,
    listeners: Arc<Listeners>,
}

/// Connections that nobody has accepted yet.
#[derive(Debug)]
struct Queue {
    /// Whether only connections from privileged ports are accepted, which only a privileged process of the
    /// guest can use.
    is_privileged: bool,
    /// Whether a connection from another port has been refused. It is reported only once, because an agent of
    /// an older version tries ten times a second.
    has_refused: AtomicBool,
    waiting: Mutex<Waiting>,
    /// A semaphore that counts the connections, and the end.
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: VecDeque<UnixStream>,
    is_closed: bool,
}

/// The reason why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The port has a listener already.
    #[error("port {port} already has a listener; drop it, or use another port")]
    Taken {
        /// The port of the host.
        port: u32,
    },
    /// The machine has ended.
    #[error("port {port}: the machine has ended")]
    Ended {
        /// The port of the host.
        port: u32,
    },
    /// The host has no more descriptors.
    #[error("an event descriptor for a listener cannot be made: {0}")]
    Host(io::Error),
}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> ListenError {
        ListenError::Host(error)
    }
}

/// The guest has connected from a port that any of its processes can use.
#[derive(Debug, thiserror::Error)]
#[error(
    "it comes from port {from}, which any process of the guest can use; an agent uses one below \
     {PRIVILEGED_PORTS}, and an older agent has to be built again with `cargo xtask guest`"
)]
struct Unprivileged {
    from: u32,
}

impl Listeners {
    /// Listens for the guest's connections to `port`.
    ///
    /// # Errors
    /// The port has a listener, the machine has ended, or the host has no more descriptors.
    pub(super) fn listen(self: &Arc<Self>, port: u32) -> Result<PortListener, ListenError> {
        self.listen_to(port, false)
    }

    /// Listens as [`Listeners::listen`] does, but only for connections from ports below
    /// [`PRIVILEGED_PORTS`].
    ///
    /// # Errors
    /// The errors of [`Listeners::listen`].
    pub(super) fn listen_privileged(self: &Arc<Self>, port: u32) -> Result<PortListener, ListenError> {
        self.listen_to(port, true)
    }

    fn listen_to(self: &Arc<Self>, port: u32, is_privileged: bool) -> Result<PortListener, ListenError> {
        let ready = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)?;
        let (waiting, has_refused) = (Mutex::default(), AtomicBool::new(false));
        let queue = Arc::new(Queue { is_privileged, has_refused, waiting, ready });
        let mut state = lock(&self.0);
        if state.is_closed {
            return Err(ListenError::Ended { port });
        }
        if state.queues.contains_key(&port) {
            return Err(ListenError::Taken { port });
        }
        state.queues.insert(port, queue.clone());
        Ok(PortListener { port, queue, listeners: self.clone() })
    }

    /// Returns whether the listener on `port` accepts connections from privileged ports only.
    pub(super) fn is_privileged(&self, port: u32) -> bool {
        lock(&self.0).queues.get(&port).is_some_and(|queue| queue.is_privileged)
    }

    /// Returns the device's end of a new connection from a port of the guest to the listener on `port`;
    /// `None` if there is no listener.
    ///
    /// # Errors
    /// The listener has too many waiting connections or does not accept the port `from`, or the host has no
    /// more sockets.
    pub(super) fn dial(&self, port: u32, from: u32) -> Option<io::Result<UnixStream>> {
        let queue = lock(&self.0).queues.get(&port)?.clone();
        if queue.is_privileged && from >= PRIVILEGED_PORTS {
            let is_first = !queue.has_refused.swap(true, Ordering::Relaxed);
            let refused = io::Error::from(ErrorKind::ConnectionRefused);
            return Some(Err(if is_first { io::Error::other(Unprivileged { from }) } else { refused }));
        }
        Some(queue.push())
    }

    /// Ends all listeners for the end of the machine.
    pub(super) fn close(&self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        std::mem::take(&mut state.queues).values().for_each(|queue| queue.close());
    }
}

impl PortListener {
    /// Returns the port of the host.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionAborted`]: the machine has ended.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            if let Some(stream) = self.accept_within(LONG_TIME)? {
                return Ok(stream);
            }
        }
    }

    /// Returns the next connection; `None` if none comes within `limit`.
    ///
    /// # Errors
    /// The errors of [`PortListener::accept`].
    pub fn accept_within(&self, limit: Duration) -> io::Result<Option<UnixStream>> {
        let start = Instant::now();
        loop {
            if let Some(result) = self.queue.pop() {
                return result.map(Some);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            wait_readable(&self.queue.ready, left)?;
        }
    }
}

impl AsFd for PortListener {
    /// Returns a descriptor that is readable when [`PortListener::accept`] would not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event descriptor is open for as long as the listener, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.queue.ready.as_raw_fd()) }
    }
}

impl Drop for PortListener {
    fn drop(&mut self) {
        let mut state = lock(&self.listeners.0);
        if state.queues.get(&self.port).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            state.queues.remove(&self.port);
        }
        drop(state);
        // A connection that came in between ends.
        self.queue.close();
        lock(&self.queue.waiting).streams.clear();
    }
}

impl Queue {
    fn push(&self) -> io::Result<UnixStream> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed || waiting.streams.len() >= MAX_WAITING {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (theirs, ours) = socket::pair()?;
        waiting.streams.push_back(theirs);
        // The lock is held, so that the semaphore counts the streams in the queue.
        let _ = self.ready.write(1);
        Ok(ours)
    }

    /// Returns the next connection, or the end; `None` if there is neither yet.
    fn pop(&self) -> Option<io::Result<UnixStream>> {
        let mut waiting = lock(&self.waiting);
        if let Some(stream) = waiting.streams.pop_front() {
            let _ = self.ready.read();
            return Some(Ok(stream));
        }
        waiting.is_closed.then(|| Err(ErrorKind::ConnectionAborted.into()))
    }

    fn close(&self) {
        lock(&self.waiting).is_closed = true;
        // The event stays readable from here on, because nobody reads this count.
        let _ = self.ready.write(1);
    }
}

fn wait_readable(event: &EventFd, limit: Duration) -> io::Result<()> {
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
    let mut entry = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd is passed with a count of one.
    if unsafe { libc::poll(&mut entry, 1, millis) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// The first port that any process of the guest can use. Linux reserves the ports below for processes with
/// CAP_NET_BIND_SERVICE (`LAST_RESERVED_PORT` in its `net/vmw_vsock/af_vsock.c`).
pub const PRIVILEGED_PORTS: u32 = 1024;

/// The largest number of the guest's connections that a listener has not accepted yet: the usual backlog of a
/// listening socket.
const MAX_WAITING: usize = 128;
/// The time after which a wait without a limit is begun again; `poll` cannot wait for more than 24 days.
const LONG_TIME: Duration = Duration::from_secs(3600);

//! Connections between ports of the guest and this process, without a path on disk, for programs that embed
//! the machine.
//!
//! The program's threads call [`Switchboard::connect`] and [`Switchboard::listen`]. The device's multiplexer
//! takes the calls, and asks for listeners when the guest connects. Every stream is one end of a socket pair.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use crate::lock;

/// The program's side of a socket device.
#[derive(Debug)]
pub struct Switchboard {
    state: Mutex<State>,
    /// Signals the multiplexer that there are calls.
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    next_call: u64,
    calls: VecDeque<Call>,
    listeners: BTreeMap<u32, Arc<Queue>>,
}

/// A request for a connection to a port of the guest.
#[derive(Debug)]
pub(super) struct Call {
    number: u64,
    pub port: u32,
    pub stream: UnixStream,
    pub caller: Caller,
}

/// Answers a call. A caller that is dropped without an answer makes the call fail with
/// [`ConnectError::Ended`].
#[derive(Debug)]
pub(super) struct Caller {
    port: u32,
    answer: SyncSender<Result<(), ConnectError>>,
}

/// Listens for the guest's connections to one port. Once it is dropped, they are refused again.
#[derive(Debug)]
pub struct PortListener {
    port: u32,
    queue: Arc<Queue>,
    switchboard: Arc<Switchboard>,
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

/// The reason why there is no connection to the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The guest has no listener on the port, or refuses the connection.
    #[error("the guest refuses the connection to its vsock port {port}")]
    Refused {
        /// The port of the guest.
        port: u32,
    },
    /// The guest does not answer: its driver may not have started.
    #[error("the guest does not answer on its vsock port {port} within {} s", limit.as_secs_f64())]
    NoAnswer {
        /// The port of the guest.
        port: u32,
        /// How long the call has waited.
        limit: Duration,
    },
    /// The device has its largest number of connections, or of calls.
    #[error(
        "vsock port {port}: the device already has {} connections, which is its limit",
        super::MAX_CONNECTIONS
    )]
    TooMany {
        /// The port of the guest.
        port: u32,
    },
    /// The machine has ended, or the guest has reset the device.
    #[error("vsock port {port}: the machine has ended, or its guest has reset the device")]
    Ended {
        /// The port of the guest.
        port: u32,
    },
    /// The host has no more sockets.
    #[error("a socket for a vsock connection cannot be made: {0}")]
    Host(io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> ConnectError {
        ConnectError::Host(error)
    }
}

/// The reason why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The port has a listener already.
    #[error("vsock port {port} already has a listener; drop it, or use another port")]
    Taken {
        /// The port of the host.
        port: u32,
    },
    /// The machine has ended.
    #[error("vsock port {port}: the machine has ended")]
    Ended {
        /// The port of the host.
        port: u32,
    },
    /// The host has no more descriptors.
    #[error("an event descriptor for a vsock listener cannot be made: {0}")]
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

impl Switchboard {
    pub(in crate::virtio) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? })
    }

    /// Connects to `port` of the guest, and waits for its answer for at most `limit`. The wait includes a
    /// driver that has not started yet.
    ///
    /// # Errors
    /// The guest refuses or does not answer, the machine has ended, or the device or the host has reached a
    /// limit.
    pub fn connect(&self, port: u32, limit: Duration) -> Result<UnixStream, ConnectError> {
        let (theirs, ours) = pair()?;
        let (answer, answered) = mpsc::sync_channel(1);
        let caller = Caller { port, answer };
        let number = self.call(port, ours, caller)?;
        let no_answer = ConnectError::NoAnswer { port, limit };
        match answered.recv_timeout(limit) {
            Ok(answer) => answer.map(|()| theirs),
            Err(RecvTimeoutError::Disconnected) => Err(ConnectError::Ended { port }),
            Err(RecvTimeoutError::Timeout) => {
                lock(&self.state).calls.retain(|call| call.number != number);
                // A call that the device has already taken ends with the stream.
                Err(no_answer)
            }
        }
    }

    /// Listens for the guest's connections to `port` of the host, instead of a socket on disk.
    ///
    /// # Errors
    /// The port has a listener, the machine has ended, or the host has no more descriptors.
    pub fn listen(self: &Arc<Self>, port: u32) -> Result<PortListener, ListenError> {
        self.listen_to(port, false)
    }

    /// Listens as [`Switchboard::listen`] does, but only for connections from ports below
    /// [`PRIVILEGED_PORTS`]. These may use the connections that are [kept back](super::KEPT_BACK).
    ///
    /// # Errors
    /// The errors of [`Switchboard::listen`].
    pub fn listen_privileged(self: &Arc<Self>, port: u32) -> Result<PortListener, ListenError> {
        self.listen_to(port, true)
    }

    fn listen_to(self: &Arc<Self>, port: u32, is_privileged: bool) -> Result<PortListener, ListenError> {
        let ready = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)?;
        let (waiting, has_refused) = (Mutex::default(), AtomicBool::new(false));
        let queue = Arc::new(Queue { is_privileged, has_refused, waiting, ready });
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(ListenError::Ended { port });
        }
        if state.listeners.contains_key(&port) {
            return Err(ListenError::Taken { port });
        }
        state.listeners.insert(port, queue.clone());
        Ok(PortListener { port, queue, switchboard: self.clone() })
    }

    /// Returns the event that signals calls.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes the calls that wait.
    pub(super) fn take_calls(&self) -> VecDeque<Call> {
        std::mem::take(&mut lock(&self.state).calls)
    }

    /// Returns whether the listener on `port` accepts connections from privileged ports only.
    pub(super) fn is_privileged(&self, port: u32) -> bool {
        lock(&self.state).listeners.get(&port).is_some_and(|queue| queue.is_privileged)
    }

    /// Returns the device's end of a new connection from a port of the guest to the listener on `port`;
    /// `None` if there is no listener.
    ///
    /// # Errors
    /// The listener has too many waiting connections or does not accept the port `from`, or the host has no
    /// more sockets.
    pub(in crate::virtio) fn dial(&self, port: u32, from: u32) -> Option<io::Result<UnixStream>> {
        let queue = lock(&self.state).listeners.get(&port)?.clone();
        if queue.is_privileged && from >= PRIVILEGED_PORTS {
            let is_first = !queue.has_refused.swap(true, Ordering::Relaxed);
            let refused = io::Error::from(ErrorKind::ConnectionRefused);
            return Some(Err(if is_first { io::Error::other(Unprivileged { from }) } else { refused }));
        }
        Some(queue.push())
    }

    /// Ends all waiting calls and listeners for the end of the machine.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.calls.clear();
        std::mem::take(&mut state.listeners).values().for_each(|queue| queue.close());
    }

    fn call(&self, port: u32, stream: UnixStream, caller: Caller) -> Result<u64, ConnectError> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(ConnectError::Ended { port });
        }
        if state.calls.len() >= MAX_CALLS {
            return Err(ConnectError::TooMany { port });
        }
        let number = state.next_call;
        state.next_call = number.wrapping_add(1);
        state.calls.push_back(Call { number, port, stream, caller });
        drop(state);
        // The only failure is a counter at its maximum, and then the event is already readable.
        let _ = self.wake.write(1);
        Ok(number)
    }
}

impl Caller {
    /// Reports that there is a connection.
    pub(super) fn connected(self) {
        self.answer(Ok(()));
    }

    /// Reports that the guest refuses the connection.
    pub(super) fn refused(self) {
        let port = self.port;
        self.answer(Err(ConnectError::Refused { port }));
    }

    /// Reports that the device has its largest number of connections.
    pub(super) fn no_room(self) {
        let port = self.port;
        self.answer(Err(ConnectError::TooMany { port }));
    }

    fn answer(self, answer: Result<(), ConnectError>) {
        // A caller that has stopped waiting does not get the answer.
        let _ = self.answer.try_send(answer);
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
        let mut state = lock(&self.switchboard.state);
        if state.listeners.get(&self.port).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            state.listeners.remove(&self.port);
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
        let (theirs, ours) = pair()?;
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

/// Makes the two ends of a stream: one for the program, which may wait, and one for the device, which never
/// does.
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (theirs, ours) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((theirs, ours))
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

/// The largest number of calls that wait for a guest whose driver has not started.
const MAX_CALLS: usize = 128;
/// The largest number of the guest's connections that a listener has not accepted yet: the usual backlog of a
/// listening socket.
const MAX_WAITING: usize = 128;
/// The time after which a wait without a limit is begun again; `poll` cannot wait for more than 24 days.
const LONG_TIME: Duration = Duration::from_secs(3600);

//! Connections between ports of the guest and this program, without a path on disk: for programs that embed
//! the machine.
//!
//! The program's threads call [`Switchboard::connect`] and [`Switchboard::listen`]; the device's multiplexer
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
    /// Rings for the multiplexer when there are calls.
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    next_call: u64,
    calls: VecDeque<Call>,
    listeners: BTreeMap<u32, Arc<Queue>>,
}

/// Somebody wants a connection to a port of the guest.
#[derive(Debug)]
pub(super) struct Call {
    number: u64,
    pub port: u32,
    pub stream: UnixStream,
    pub caller: Caller,
}

/// Waits for the answer to a call. Without an answer, the call comes back as [`ConnectError::Ended`].
#[derive(Debug)]
pub(super) struct Caller {
    port: u32,
    answer: SyncSender<Result<(), ConnectError>>,
}

/// Takes the guest's connections to one port. Others are refused again once it is dropped.
#[derive(Debug)]
pub struct PortListener {
    port: u32,
    queue: Arc<Queue>,
    switchboard: Arc<Switchboard>,
}

/// Connections that nobody has accepted yet.
#[derive(Debug)]
struct Queue {
    /// Those from ports that only a privileged process of the guest can have, and no others.
    is_privileged: bool,
    /// Others have been refused, which is reported once: an agent of an older version tries ten times a
    /// second.
    has_refused: AtomicBool,
    waiting: Mutex<Waiting>,
    /// Counts them, and the end.
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    streams: VecDeque<UnixStream>,
    is_closed: bool,
}

/// Why there is no connection to the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, or it takes no more.
    #[error("the guest refuses the connection to its vsock port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// The guest says nothing: its driver may not have started.
    #[error("the guest does not answer on its vsock port {port} within {} s", limit.as_secs_f64())]
    NoAnswer {
        /// The port.
        port: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// There are as many connections, or calls, as there can be.
    #[error(
        "vsock port {port}: the device has {} connections already, as many as it can",
        super::MOST_CONNECTIONS
    )]
    TooMany {
        /// The port.
        port: u32,
    },
    /// The machine has ended, or the guest has reset its device.
    #[error("vsock port {port}: the machine has ended, or its guest has reset the device")]
    Ended {
        /// The port.
        port: u32,
    },
    /// The host has too little of something.
    #[error("the host gives no socket for a vsock connection: {0}")]
    Host(io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> ConnectError {
        ConnectError::Host(error)
    }
}

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody does already.
    #[error("vsock port {port} has a listener already; drop it, or take another port")]
    Taken {
        /// The port.
        port: u32,
    },
    /// The machine has ended.
    #[error("vsock port {port}: the machine has ended")]
    Ended {
        /// The port.
        port: u32,
    },
    /// The host has too little of something.
    #[error("the host gives no event descriptor for a vsock listener: {0}")]
    Host(io::Error),
}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> ListenError {
        ListenError::Host(error)
    }
}

/// Any process of the guest can have such a port.
#[derive(Debug, thiserror::Error)]
#[error(
    "it comes from port {from}, which any process of the guest can have, and not from one below {PRIVILEGED_PORTS}, as the \
     agent does; where the guest's agent is of an older version, make it again with `cargo xtask guest`"
)]
struct Unprivileged {
    from: u32,
}

impl Switchboard {
    pub(in crate::virtio) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? })
    }

    /// Connects to `port` of the guest, and waits for its answer: at most for `limit`. A guest whose driver
    /// has not started yet is waited for.
    ///
    /// # Errors
    /// The guest refuses or does not answer, the machine has ended, or the device or the host has no room.
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
                // One that has been taken ends with the stream.
                Err(no_answer)
            }
        }
    }

    /// Takes the guest's connections to `port` of the host from here on, in place of a socket on disk.
    ///
    /// # Errors
    /// The port is taken, the machine has ended, or the host has too little.
    pub fn listen(self: &Arc<Self>, port: u32) -> Result<PortListener, ListenError> {
        self.listen_to(port, false)
    }

    /// The same for connections from ports below [`PRIVILEGED_PORTS`] only. They may take the connections
    /// that are [kept back](super::KEPT_BACK).
    ///
    /// # Errors
    /// As [`Switchboard::listen`].
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

    /// The event that tells of calls.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The calls that nobody has taken.
    pub(super) fn take_calls(&self) -> VecDeque<Call> {
        std::mem::take(&mut lock(&self.state).calls)
    }

    /// Whether whoever listens on `port` takes connections from privileged ports only.
    pub(super) fn is_privileged(&self, port: u32) -> bool {
        lock(&self.state).listeners.get(&port).is_some_and(|queue| queue.is_privileged)
    }

    /// The device's end of a connection from a port of the guest to whoever listens on `port`; `None` when
    /// nobody does.
    ///
    /// # Errors
    /// The listener is behind or does not take that port, or the host has too little.
    pub(in crate::virtio) fn dial(&self, port: u32, from: u32) -> Option<io::Result<UnixStream>> {
        let queue = lock(&self.state).listeners.get(&port)?.clone();
        if queue.is_privileged && from >= PRIVILEGED_PORTS {
            let is_first = !queue.has_refused.swap(true, Ordering::Relaxed);
            let refused = io::Error::from(ErrorKind::ConnectionRefused);
            return Some(Err(if is_first { io::Error::other(Unprivileged { from }) } else { refused }));
        }
        Some(queue.push())
    }

    /// The machine ends: nobody waits for anything any more.
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
        if state.calls.len() >= MOST_CALLS {
            return Err(ConnectError::TooMany { port });
        }
        let number = state.next_call;
        state.next_call = number.wrapping_add(1);
        state.calls.push_back(Call { number, port, stream, caller });
        drop(state);
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.wake.write(1);
        Ok(number)
    }
}

impl Caller {
    /// There is a connection.
    pub(super) fn connected(self) {
        self.answer(Ok(()));
    }

    /// The guest does not want one.
    pub(super) fn refused(self) {
        let port = self.port;
        self.answer(Err(ConnectError::Refused { port }));
    }

    /// There is no place for one.
    pub(super) fn no_room(self) {
        let port = self.port;
        self.answer(Err(ConnectError::TooMany { port }));
    }

    fn answer(self, answer: Result<(), ConnectError>) {
        // Whoever has stopped waiting does not hear it.
        let _ = self.answer.try_send(answer);
    }
}

impl PortListener {
    /// The port of the host.
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

    /// The next connection, if there is one within `limit`.
    ///
    /// # Errors
    /// As [`PortListener::accept`].
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
    /// Readable when [`PortListener::accept`] would not wait.
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
        if waiting.is_closed || waiting.streams.len() >= MOST_WAITING {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (theirs, ours) = pair()?;
        waiting.streams.push_back(theirs);
        // Under the lock, so that it counts what is there.
        let _ = self.ready.write(1);
        Ok(ours)
    }

    /// The next connection, or the end; `None` when there is neither yet.
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
        // Readable from here on: nobody reads this one.
        let _ = self.ready.write(1);
    }
}

/// Two ends of a stream: one for the program, which may wait, and one for the device, which never does.
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

/// Linux gives ports below this one to processes with CAP_NET_BIND_SERVICE only (`LAST_RESERVED_PORT` of its
/// `net/vmw_vsock/af_vsock.c`).
pub const PRIVILEGED_PORTS: u32 = 1024;

/// Calls that wait for a guest whose driver has not started.
const MOST_CALLS: usize = 128;
/// Connections of the guest that a listener has not accepted yet: as many as the kernel gives a socket by
/// default in most programs.
const MOST_WAITING: usize = 128;
const LONG_TIME: Duration = Duration::from_secs(3600);

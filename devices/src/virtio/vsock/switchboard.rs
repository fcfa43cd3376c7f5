//! Connections between ports of the guest and this process, without a path on disk, for programs that embed
//! the machine.
//!
//! The program's threads call [`Switchboard::connect`] and [`Switchboard::listen`]. The device's multiplexer
//! takes the calls, and asks for listeners when the guest connects. Every stream is one end of a socket pair.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;
use crate::virtio::listener::{ListenError, Listeners, PortListener};
use crate::virtio::socket;

/// The program's side of a socket device.
#[derive(Debug)]
pub struct Switchboard {
    listeners: Arc<Listeners>,
    state: Mutex<State>,
    /// Signals the multiplexer that there are calls.
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    next_call: u64,
    calls: VecDeque<Call>,
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
        "vsock port {port}: the device has its largest number of connections, {}, or too many calls wait for an answer",
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

impl Switchboard {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            listeners: Arc::default(),
            state: Mutex::default(),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// Connects to `port` of the guest, and waits for its answer for at most `limit`. The wait includes a
    /// driver that has not started yet.
    ///
    /// # Errors
    /// The guest refuses or does not answer, the machine has ended, or the device or the host has reached a
    /// limit.
    pub fn connect(&self, port: u32, limit: Duration) -> Result<UnixStream, ConnectError> {
        let (theirs, ours) = socket::pair()?;
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
    pub fn listen(&self, port: u32) -> Result<PortListener, ListenError> {
        self.listeners.listen(port)
    }

    /// Listens as [`Switchboard::listen`] does, but only for connections from ports below
    /// [`PRIVILEGED_PORTS`](crate::virtio::listener::PRIVILEGED_PORTS). These may use the connections that
    /// are [kept back](super::KEPT_BACK).
    ///
    /// # Errors
    /// The errors of [`Switchboard::listen`].
    pub fn listen_privileged(&self, port: u32) -> Result<PortListener, ListenError> {
        self.listeners.listen_privileged(port)
    }

    /// Returns the listeners, for the guest's connections.
    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Returns the event that signals calls.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes the calls that wait.
    pub(super) fn take_calls(&self) -> VecDeque<Call> {
        std::mem::take(&mut lock(&self.state).calls)
    }

    /// Ends all waiting calls and listeners for the end of the machine.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.calls.clear();
        drop(state);
        self.listeners.close();
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

/// The largest number of calls that wait for a guest whose driver has not started.
const MAX_CALLS: usize = 128;

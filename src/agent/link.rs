//! The thread of one agent, and the state that it shares with the callers: the session, and each channel's
//! arrivals.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{AgentInfo, HostEvent, HostSession, SavedSession};
use coracle_agent::relay::{poll, poll_entry, set_non_blocking};
use coracle_devices::virtio::listener::PortListener;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::changed::{Changed, Wakers};
use super::channel::ChannelState;
use super::connections::{self, accept};
use super::error::{AgentError, ReadyLimit};
use super::restored::{Identity, Past};
use crate::config::{AgentConfig, VmConfig};
use crate::ending::Ending;
use crate::thread::ThreadKind;

/// The state that the thread and the callers share.
pub(super) struct Link {
    state: Mutex<State>,
    /// Notified when the agent has become ready, or never will be.
    ready: Changed,
    wakers: Arc<Wakers>,
    pub(super) wake: EventFd,
    pub(super) limits: Limits,
}

/// The time limits of callers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For an agent that is not ready yet.
    pub(super) ready: Duration,
    /// For a whole answer, beside the time that its bytes take at the lowest rate.
    pub(super) answer: Duration,
    /// The lowest rate in bytes per second.
    pub(super) min_rate: u32,
}

impl Limits {
    pub(super) fn of(config: &AgentConfig) -> Limits {
        let &AgentConfig { ready_limit, answer_limit, min_rate, .. } = config;
        Limits { ready: ready_limit, answer: answer_limit, min_rate }
    }

    /// Returns the limits in a machine: an agent starts after the init, which has a limit of its own.
    pub(super) fn of_machine(machine: &VmConfig, config: &AgentConfig) -> Limits {
        let boot = machine.boot_timeout.map(|limit| limit.saturating_add(AFTER_INIT));
        let limits = Limits::of(config);
        Limits { ready: boot.map_or(limits.ready, |boot| boot.max(limits.ready)), ..limits }
    }
}

/// The source of connections.
pub(super) enum Peer {
    /// The guest's connections to a port: one at a time.
    Listener(PortListener),
    /// A connection that outlives every agent at its other end.
    Line(OwnedFd),
    /// A connection that lasts as long as its agent.
    Stream(OwnedFd),
}

pub(super) struct State {
    pub(super) session: HostSession,
    info: Option<AgentInfo>,
    /// The guest's progress to the identity that it needs before anybody may use the agent.
    identity: Identity,
    pub(super) channels: HashMap<u32, ChannelState>,
    /// The error of all calls, once there will be no other connection.
    over: Option<AgentError>,
    /// The error of calls while the machine is about to end.
    ending: Option<AgentError>,
    /// Whether nobody wants the agent any more.
    stopped: bool,
}

/// The thread of an agent.
pub(super) struct LinkThread {
    link: Arc<Link>,
    /// Disconnected when the thread ends. A mutex, because a receiver is for one thread at a time.
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LinkThread {
    pub(super) fn start(peer: Peer, limits: Limits, past: Past) -> io::Result<LinkThread> {
        let link = Arc::new(Link::after(past, limits)?);
        let (alive, ended) = mpsc::channel();
        let thread = ThreadKind::Agent.spawn({
            let link = link.clone();
            move || {
                let _alive: Sender<()> = alive;
                run(&link, peer);
            }
        })?;
        Ok(LinkThread { link, ended: Mutex::new(ended), thread: Some(thread) })
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Ends the link of a machine that ends. Bytes that the agent has sent still arrive, and then everything
    /// fails with this ending.
    pub(super) fn machine_ends(&self, ending: &Ending, panic: Option<String>) {
        self.link.machine_ends(ending, panic);
    }

    /// Ends the thread, and waits for it up to [`STOP_LIMIT`].
    pub(super) fn join(&mut self) {
        let mut state = self.link.lock();
        // The end of a machine has its own limit.
        state.stopped = state.ending.is_none();
        drop(state);
        self.link.wake();
        let Some(thread) = self.thread.take() else { return };
        // A thread that a waker of the program blocks is left behind. It holds no lock.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(STOP_LIMIT) != Err(RecvTimeoutError::Timeout) {
            // A thread that panicked has failed every call itself.
            let _ = thread.join();
        }
    }
}

impl Drop for LinkThread {
    fn drop(&mut self) {
        self.join();
    }
}

impl Link {
    #[cfg(test)]
    pub(super) fn new(limits: Limits) -> io::Result<Link> {
        Self::after(Past::default(), limits)
    }

    fn after(past: Past, limits: Limits) -> io::Result<Link> {
        let Past { session, identity } = past;
        let state = State {
            session: session.map(HostSession::restored).unwrap_or_default(),
            info: None,
            identity: identity.into(),
            channels: HashMap::new(),
            over: None,
            ending: None,
            stopped: false,
        };
        let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let wakers = Arc::default();
        let ready = Changed::new(&wakers);
        Ok(Link { state: Mutex::new(state), ready, wakers, wake, limits })
    }

    pub(super) fn machine_ends(&self, ending: &Ending, panic: Option<String>) {
        self.lock().ending = Some(AgentError::MachineEnded { ending: Box::new(ending.clone()), panic });
        self.wake();
    }

    /// Ends everything. Calls fail with the machine's end, if that is the cause, or else with `error`.
    pub(super) fn finish(&self, error: AgentError) {
        let ending = self.lock().ending.clone();
        self.end(ending.unwrap_or(error));
    }

    /// Waits until the agent is ready, at most until `deadline`, and returns the state.
    pub(super) fn wait_ready(
        &self,
        limit: Duration,
        of: ReadyLimit,
    ) -> Result<MutexGuard<'_, State>, AgentError> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if state.is_ready()? {
                return Ok(state);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(AgentError::NotReady { limit, of });
            }
            state = self.ready.wait(state, Some(left)).0;
        }
    }

    /// Returns whether the agent is ready. If not, the task is woken when that changes.
    #[cfg(feature = "tokio")]
    pub(super) fn poll_ready(&self, task: &std::task::Waker) -> Result<bool, AgentError> {
        let state = self.lock();
        let is_ready = state.is_ready()?;
        if !is_ready {
            self.ready.wake_next(task);
        }
        Ok(is_ready)
    }

    /// Locks the state. If a thread panicked with the lock, the session is disconnected.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread send the session's output.
    pub(super) fn wake(&self) {
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.wake.write(1);
    }

    fn end(&self, error: AgentError) {
        let mut state = self.lock();
        state.lose(&error);
        state.over = Some(error);
        self.ready.notify();
        drop(state);
        self.wakers.wake();
    }

    /// Returns the tasks to wake after changes.
    pub(super) fn wakers(&self) -> &Arc<Wakers> {
        &self.wakers
    }
}

impl State {
    /// Returns what a snapshot keeps of the session.
    pub(super) fn save(&self) -> Option<SavedSession> {
        self.session.save()
    }

    /// Returns the agent's properties, once it is ready.
    pub(super) fn info(&self) -> Option<&AgentInfo> {
        self.info.as_ref()
    }

    /// Returns whether the agent is ready, or an error if it never will be.
    fn is_ready(&self) -> Result<bool, AgentError> {
        match &self.over {
            Some(error) => Err(error.clone()),
            None => Ok(self.info.is_some()),
        }
    }

    pub(super) fn has_to_end(&self) -> bool {
        self.stopped || self.ending.is_some()
    }

    /// Starts again. Requests in flight wait for [`State::fail`].
    pub(super) fn disconnect(&mut self) {
        self.info = None;
        self.identity.ask_again();
        self.session = HostSession::after(&self.session);
    }

    /// Fails all requests in flight.
    pub(super) fn fail(&mut self, error: &AgentError) {
        self.channels.values_mut().for_each(|channel| channel.lose(error));
    }

    fn lose(&mut self, error: &AgentError) {
        self.disconnect();
        self.fail(error);
    }

    /// Notifies callers of what has arrived.
    fn dispatch(&mut self, ready: &Changed) {
        while let Some(event) = self.session.next_event() {
            match event {
                HostEvent::Ready(info) => {
                    self.identity.ask(info, &mut self.session);
                    self.advance(ready);
                }
                HostEvent::Message(number, message) if self.identity.is_on(number) => {
                    self.identity.take(message);
                    self.advance(ready);
                }
                HostEvent::Message(number, message) => {
                    if let Some(channel) = self.channels.get_mut(&number) {
                        channel.take(message);
                    }
                }
            }
        }
    }
}

impl State {
    /// Lets callers use the agent once the guest is what it has to be.
    fn advance(&mut self, ready: &Changed) {
        match self.identity.result() {
            None => return,
            Some(Ok(info)) => self.info = Some(info),
            Some(Err(error)) => self.over = Some(error),
        }
        ready.notify();
    }
}

fn run(link: &Arc<Link>, peer: Peer) {
    let _ended = FailOnPanic(link);
    let mut buffer = vec![0; READ_BYTES];
    let error = match peer {
        Peer::Listener(listener) => {
            connections::serve_each(link, |deadline| accept(link, &listener, deadline), &mut buffer)
        }
        Peer::Line(line) => loop {
            let Ok(copy) = line.try_clone() else { break AgentError::Lost };
            let error = serve(link, copy, &mut buffer);
            let mut state = link.lock();
            // A line reports its end as an end of file, which is that of the machine.
            if state.has_to_end() || matches!(error, AgentError::Lost) {
                break error;
            }
            state.lose(&error);
            drop(state);
            link.wakers.wake();
        },
        Peer::Stream(stream) => serve(link, stream, &mut buffer),
    };
    link.finish(error);
}

/// Moves bytes until the connection ends, and returns the reason.
pub(super) fn serve(link: &Link, stream: OwnedFd, buffer: &mut [u8]) -> AgentError {
    if let Err(error) = set_non_blocking(&stream) {
        return AgentError::host("the agent's connection non-blocking")(error);
    }
    let mut stream = File::from(stream);
    let mut deadline = None;
    // The session has begun with it.
    let mut announce_at = Instant::now() + ANNOUNCE;
    loop {
        let (has_output, ends, announces) = {
            let mut state = link.lock();
            if state.stopped {
                return AgentError::Lost;
            }
            let is_due = Instant::now() >= announce_at;
            let announces = state.session.announces();
            if announces && is_due {
                state.session.announce();
                announce_at = Instant::now() + ANNOUNCE;
            }
            (!state.session.output().is_empty(), state.ending.is_some(), announces)
        };
        if ends {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            if Instant::now() >= deadline {
                return AgentError::Lost;
            }
        }
        let wants = libc::POLLIN | if has_output { libc::POLLOUT } else { 0 };
        let mut entries =
            [poll_entry(link.wake.as_raw_fd(), libc::POLLIN), poll_entry(stream.as_raw_fd(), wants)];
        let limit_ms = match (ends, announces) {
            (true, _) => LAST_WORDS_POLL_MS,
            (false, true) => ANNOUNCE.as_millis() as i32,
            (false, false) => -1,
        };
        if let Err(error) = poll(&mut entries, limit_ms) {
            return AgentError::host("a wait for the agent's connection")(error);
        }
        let _ = link.wake.read();
        let exchanged = exchange(link, &mut stream, buffer);
        link.wakers.wake();
        if let Err(error) = exchanged {
            return error;
        }
    }
}

/// Takes available bytes and sends pending ones, without waiting.
fn exchange(link: &Link, stream: &mut File, buffer: &mut [u8]) -> Result<(), AgentError> {
    match stream.read(buffer) {
        Ok(0) => return Err(AgentError::Lost),
        Ok(count) => {
            let mut state = link.lock();
            let received = state.session.receive(buffer.get(..count).unwrap_or_default());
            state.dispatch(&link.ready);
            received?;
        }
        Err(error) if is_temporary(&error) => {}
        Err(_) => return Err(AgentError::Lost),
    }
    let mut state = link.lock();
    let was_clogged = state.session.is_clogged();
    while !state.session.output().is_empty() {
        match stream.write(state.session.output()) {
            Ok(count) => state.session.sent(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Bytes before the end are read first.
            Err(_) => {
                let unsent = state.session.output().len();
                state.session.sent(unsent);
            }
        }
    }
    if was_clogged && !state.session.is_clogged() {
        state.channels.values().for_each(ChannelState::notify);
    }
    Ok(())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A guard against a defect in the thread, which must not leave callers waiting.
struct FailOnPanic<'a>(&'a Link);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(AgentError::Lost);
        }
    }
}

/// The time that a guest's agent may take to start after the init.
const AFTER_INIT: Duration = Duration::from_secs(10);
/// The bytes in a frame of a stream.
const READ_BYTES: usize = 64 << 10;
/// The time that the thread may take to end, its last bytes included.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The time that the last bytes of an agent may take to arrive when its machine has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_WORDS_POLL_MS: i32 = 20;
/// The interval at which an agent that has not greeted yet is told of a snapshot.
const ANNOUNCE: Duration = Duration::from_secs(1);

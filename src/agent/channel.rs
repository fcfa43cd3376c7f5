//! A request in flight: the messages that have arrived for it, and the caller's handle on it.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{
    AgentMessage, Ending, Failure, FileInfo, NetworkInfo, ProcessInfo, Request, Stream, WindowSize,
};

use super::changed::Changed;
use super::error::{AgentError, ExecError, ReadyLimit};
use super::link::{Limits, Link, State};
use super::patience::Patience;

/// Everything that has arrived on a channel.
#[derive(Debug, Default)]
pub(super) struct ChannelState {
    changed: Arc<Changed>,
    pub(super) pid: Option<u32>,
    pub(super) file: Option<FileInfo>,
    pub(super) answer: Option<Answer>,
    /// Whether nobody in the guest reads the input any more.
    pub(super) input_refused: bool,
    outputs: [Output; 2],
    lost: Option<AgentError>,
    /// Whether the caller has abandoned the channel.
    pub(super) abandoned: bool,
    /// The time limit of the command that runs there, if it has one.
    pub(super) time_limit: Option<Duration>,
    /// Whether it was abandoned because the time limit was over.
    pub(super) is_out_of_time: bool,
}

/// The answer that ends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Exited(Ending),
    Network(NetworkInfo),
    Processes(Vec<ProcessInfo>),
    Done,
    Failed(Failure),
}

impl Answer {
    /// Returns the answer to a request for the network. The session lets no other pass.
    pub(super) fn into_network(self) -> Result<NetworkInfo, AgentError> {
        match self {
            Answer::Network(info) => Ok(info),
            Answer::Exited(_) | Answer::Processes(_) | Answer::Done | Answer::Failed(_) => {
                Err(AgentError::Lost)
            }
        }
    }

    /// Returns the answer to a request for the list of commands, likewise.
    pub(super) fn into_processes(self) -> Result<Vec<ProcessInfo>, AgentError> {
        match self {
            Answer::Processes(list) => Ok(list),
            Answer::Exited(_) | Answer::Network(_) | Answer::Done | Answer::Failed(_) => {
                Err(AgentError::Lost)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Output {
    /// Never longer than the stream's window.
    bytes: VecDeque<u8>,
    ended: bool,
}

impl ChannelState {
    /// Takes a message. The session has checked that it may come now.
    pub(super) fn take(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Started { pid } => self.pid = Some(pid),
            AgentMessage::File(info) => self.file = Some(info),
            AgentMessage::Exited(ending) => self.answer = Some(Answer::Exited(ending)),
            AgentMessage::Network(info) => self.answer = Some(Answer::Network(info)),
            AgentMessage::Processes(list) => self.answer = Some(Answer::Processes(list)),
            AgentMessage::Done => self.answer = Some(Answer::Done),
            AgentMessage::Failed(failure) => self.answer = Some(Answer::Failed(failure)),
            AgentMessage::Data(stream, bytes) => {
                if let Some(output) = self.output_mut(stream) {
                    output.bytes.extend(bytes);
                }
            }
            AgentMessage::End(Stream::Stdin) => self.input_refused = true,
            AgentMessage::End(stream) => {
                if let Some(output) = self.output_mut(stream) {
                    output.ended = true;
                }
            }
            AgentMessage::Closed => self.outputs.iter_mut().for_each(|output| output.ended = true),
            AgentMessage::Window(..) | AgentMessage::Ready(_) => {}
        }
        self.changed.notify();
    }

    /// Returns the answer to a request without streams, once it has arrived.
    pub(super) fn answer(&mut self) -> Result<Option<Answer>, AgentError> {
        match (&self.answer, &self.lost) {
            (Some(Answer::Failed(failure)), _) => Err(AgentError::of(failure.clone())),
            (Some(answer), _) => Ok(Some(answer.clone())),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Returns whether a command runs: the agent has reported its start, and not its end.
    pub(super) fn is_running(&self) -> bool {
        self.pid.is_some() && self.answer.is_none()
    }

    /// Notifies callers that the session has space for their bytes.
    pub(super) fn notify(&self) {
        self.changed.notify();
    }

    /// Ends the channel because the connection has ended.
    pub(super) fn lose(&mut self, error: &AgentError) {
        self.lost.get_or_insert_with(|| error.clone());
        self.changed.notify();
    }

    /// Returns whether all bytes of an output have been taken.
    pub(super) fn is_at_end(&self, stream: Stream) -> bool {
        self.output(stream).is_none_or(|output| output.ended && output.bytes.is_empty())
    }

    pub(super) fn lost(&self) -> Option<&AgentError> {
        self.lost.as_ref()
    }

    fn output(&self, stream: Stream) -> Option<&Output> {
        let [stdout, stderr] = &self.outputs;
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(stdout),
            Stream::Stderr => Some(stderr),
        }
    }

    fn output_mut(&mut self, stream: Stream) -> Option<&mut Output> {
        let [stdout, stderr] = &mut self.outputs;
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(stdout),
            Stream::Stderr => Some(stderr),
        }
    }
}

/// A caller's handle on a channel. When the last one is dropped, the request is ended.
pub(super) struct Channel {
    link: Arc<Link>,
    number: u32,
    changed: Arc<Changed>,
    /// The time that the request needs beside the limit of every call.
    own_time: Duration,
}

impl Channel {
    /// Sends a request to the agent, and waits for a guest whose agent is not ready yet.
    pub(super) fn open(link: &Arc<Link>, request: Request) -> Result<Channel, AgentError> {
        Self::open_within(link, request, link.limits.ready)
    }

    /// Sends a request to the agent, and waits at most `limit` for a guest whose agent is not ready yet.
    pub(super) fn open_within(
        link: &Arc<Link>,
        request: Request,
        limit: Duration,
    ) -> Result<Channel, AgentError> {
        let own_time = match &request {
            Request::Network(network) if network.address.is_none() => network.limit,
            _ => Duration::ZERO,
        };
        let mut state = link.wait_ready(limit, ReadyLimit::Config)?;
        let number = state.session.open(request)?;
        let changed = Arc::new(Changed::new(link.wakers()));
        let channel = ChannelState { changed: changed.clone(), ..ChannelState::default() };
        state.channels.insert(number, channel);
        drop(state);
        link.wake();
        Ok(Channel { link: link.clone(), number, changed, own_time })
    }

    /// Returns the time limit of a call on the channel.
    pub(super) fn patience(&self) -> Patience {
        let limits = self.link.limits;
        Patience::new(Limits { answer: limits.answer.saturating_add(self.own_time), ..limits })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { channel: self, state: self.link.lock() }
    }

    /// Sends a signal to the command.
    pub(super) fn signal(&self, signal: u8) {
        self.link.lock().session.signal(self.number, signal);
        self.link.wake();
    }

    /// Sets the size of its terminal.
    pub(super) fn resize(&self, size: WindowSize) {
        self.link.lock().session.resize(self.number, size);
        self.link.wake();
    }

    /// Records the time limit of the command that runs there.
    pub(super) fn set_time_limit(&self, limit: Option<Duration>) {
        if let Some(channel) = self.link.lock().channels.get_mut(&self.number) {
            channel.time_limit = limit;
        }
    }

    /// Ends the request. Readers of its outputs get the rest, and then the end.
    pub(super) fn abandon(&self) {
        self.end(false);
    }

    /// Ends the request because the command's time limit is over.
    pub(super) fn run_out_of_time(&self) {
        self.end(true);
    }

    fn end(&self, is_out_of_time: bool) {
        let mut state = self.link.lock();
        state.session.close(self.number);
        if let Some(channel) = state.channels.get_mut(&self.number) {
            channel.is_out_of_time |= is_out_of_time && !channel.abandoned;
            channel.abandoned = true;
            channel.outputs.iter_mut().for_each(|output| output.ended = true);
            channel.changed.notify();
        }
        drop(state);
        self.link.wake();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        let state = &mut *state;
        // If the request has ended already, this sends nothing.
        state.session.close(self.number);
        state.channels.remove(&self.number);
        self.link.wake();
    }
}

/// A channel while its session is locked.
pub(super) struct Locked<'a> {
    channel: &'a Channel,
    state: MutexGuard<'a, State>,
}

impl<'a> Locked<'a> {
    /// Returns what has arrived.
    pub(super) fn seen(&mut self) -> &mut ChannelState {
        self.state.channels.entry(self.channel.number).or_default()
    }

    /// Moves the first bytes of an output into `buffer`. Returns the number of bytes.
    pub(super) fn take(&mut self, stream: Stream, buffer: &mut [u8]) -> usize {
        let Some(output) = self.seen().output_mut(stream) else { return 0 };
        let (first, _) = output.bytes.as_slices();
        let count = first.len().min(buffer.len());
        if let (Some(space), Some(bytes)) = (buffer.get_mut(..count), first.get(..count)) {
            space.copy_from_slice(bytes);
        }
        output.bytes.drain(..count);
        self.taken(stream, count);
        count
    }

    /// Appends all bytes of an output to `all`. Returns the number of bytes.
    pub(super) fn take_all(&mut self, stream: Stream, all: &mut Vec<u8>) -> usize {
        let Some(output) = self.seen().output_mut(stream) else { return 0 };
        let (first, second) = output.bytes.as_slices();
        all.extend_from_slice(first);
        all.extend_from_slice(second);
        let count = output.bytes.len();
        output.bytes.clear();
        self.taken(stream, count);
        count
    }

    /// Sends the first of `bytes`, as many as the agent has space for. Returns the number of bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        let number = self.channel.number;
        self.update(|state| state.session.send(number, bytes))
    }

    /// Ends the input.
    pub(super) fn end_input(&mut self) {
        let number = self.channel.number;
        self.update(|state| state.session.end_input(number));
    }

    /// Waits until something has arrived. Returns false if that has not happened by `deadline`.
    pub(super) fn wait(self, deadline: Option<Instant>) -> (Locked<'a>, bool) {
        let channel = self.channel;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return (self, false);
        }
        let (state, _) = channel.changed.wait(self.state, left.map(|left| left.min(LONG_TIME)));
        (Locked { channel, state }, true)
    }

    /// Waits until something has arrived for a command, within its own limit. Without one, a command may run
    /// forever, and `patience` limits what the agent must send before and after that.
    pub(super) fn wait_for_command(
        mut self,
        limit: Option<(Duration, Instant)>,
        patience: &mut Patience,
    ) -> Result<Locked<'a>, ExecError> {
        let Some((limit, deadline)) = limit else {
            return match self.seen().is_running() {
                true => Ok(self.wait(None).0),
                false => Ok(self.wait_answer(patience)?),
            };
        };
        let (locked, in_time) = self.wait(Some(deadline));
        if in_time { Ok(locked) } else { Err(ExecError::timed_out(limit)) }
    }

    /// Waits until something has arrived, as long as `patience` allows.
    pub(super) fn wait_answer(self, patience: &mut Patience) -> Result<Locked<'a>, AgentError> {
        let end = patience.wait()?;
        let (locked, _) = self.wait(Some(end));
        patience.pause();
        Ok(locked)
    }

    /// Makes the next arrival wake a task.
    #[cfg(feature = "tokio")]
    pub(super) fn wake_next(&self, task: &std::task::Waker) {
        self.channel.changed.wake_next(task);
    }

    fn taken(&mut self, stream: Stream, count: usize) {
        let number = self.channel.number;
        self.update(|state| state.session.taken(number, stream, count));
    }

    /// Changes the session, and makes the thread send the session's output. If there was output before, the
    /// thread knows.
    fn update<T>(&mut self, step: impl FnOnce(&mut State) -> T) -> T {
        let was_empty = self.state.session.output().is_empty();
        let result = step(&mut self.state);
        if was_empty && !self.state.session.output().is_empty() {
            self.channel.link.wake();
        }
        result
    }
}

/// The longest single wait: some systems refuse very long ones, so longer waits are split.
const LONG_TIME: Duration = Duration::from_secs(3600);

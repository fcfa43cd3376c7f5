//! The agent's end of a session. The host controls the guest anyway. The checks here keep a defect of one end
//! from spreading to the other.

use std::collections::{BTreeMap, VecDeque};

use super::flow::{Receiver, Sender};
use super::hello::RestoreScanner;
use super::link::{Input, Link, common_version};
use super::message::data_frame;
use super::{
    AgentInfo, AgentMessage, AttachRequest, Failure, Hello, HostMessage, MAX_CHANNELS, MAX_DATA,
    MAX_HOST_FRAME, Request, SessionError, Step, Stream, WindowSize,
};

/// The agent's end of a session.
#[derive(Debug)]
pub struct AgentSession {
    link: Link,
    token: u64,
    /// The token of the session before this one.
    previous: Option<u64>,
    restored: RestoreScanner,
    is_continued: bool,
    info: AgentInfo,
    channels: BTreeMap<u32, Channel>,
    events: VecDeque<AgentEvent>,
}

/// An event from the host.
#[derive(Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// A new request. It is answered once, and ends with [`AgentSession::closed`].
    Open(u32, Request),
    /// Bytes of stdin. Once they have been consumed, [`AgentSession::taken`] acknowledges them.
    Data(u32, Vec<u8>),
    /// Stdin has ended.
    End(u32),
    /// A signal for the command.
    Signal(u32, u8),
    /// A new size for the command's terminal.
    Resize(u32, WindowSize),
    /// The host closes the channel.
    Close(u32),
}

#[derive(Debug)]
struct Channel {
    input: Receiver,
    outputs: [Sender; 2],
}

impl AgentSession {
    /// Makes a session that greets with `token` and then describes the agent by `info`.
    pub fn new(token: u64, info: AgentInfo) -> Self {
        Self::after(None, token, info)
    }

    /// Makes a session like [`AgentSession::new`] that follows the one with the token `previous`.
    pub fn after(previous: Option<u64>, token: u64, info: AgentInfo) -> Self {
        let mut session = Self {
            link: Link::new(MAX_HOST_FRAME),
            token,
            previous,
            restored: RestoreScanner::default(),
            is_continued: false,
            info,
            channels: BTreeMap::new(),
            events: VecDeque::new(),
        };
        session.greet();
        session
    }

    /// Returns the token of the session.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Returns whether the host has said that the machine goes on from a snapshot of the session before this
    /// one. If so, it has said that by the time the session is open.
    pub fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Returns whether the host has answered the greeting.
    pub fn is_open(&self) -> bool {
        self.link.is_open()
    }

    /// Greets, and again if nobody has answered. A line that does not show whether anybody is at its other
    /// end needs this.
    pub fn greet(&mut self) {
        if !self.is_open() {
            self.link.send(&Hello::new(self.token).to_bytes());
        }
    }

    /// Takes bytes that arrived. Take all events before adding more.
    ///
    /// # Errors
    /// The host has broken a rule of the protocol, or the machine goes on from a snapshot of this session
    /// ([`SessionError::Restored`]): then another one begins with a new greeting.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        // The rest of a frame may be before it, which nothing follows.
        let known = [Some(self.token), self.previous];
        match self.restored.push(bytes, |token| known.contains(&Some(token))) {
            Some(token) if token == self.token => return Err(SessionError::Restored),
            Some(_) if !self.is_continued => {
                self.is_continued = true;
                // The host of this machine has not seen the first one.
                self.greet();
            }
            _ => {}
        }
        let mut greeting = self.link.push(bytes);
        // Answers to earlier greetings may still be on the line.
        while let Some(hello) = greeting {
            if hello.token == self.token {
                common_version(hello)?;
                self.link.send(&AgentMessage::Ready(self.info.clone()).to_frame(0));
                break;
            }
            greeting = self.link.greet_on();
        }
        while let Some(input) = self.link.next()? {
            match input {
                Input::Hello(hello) if hello.token == self.token => {}
                Input::Hello(_) => return Err(SessionError::Restarted),
                Input::Frame(frame) => self.take(&frame)?,
            }
        }
        Ok(())
    }

    /// Returns the next event.
    pub fn next_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// Returns the bytes to send to the host.
    pub fn output(&self) -> &[u8] {
        self.link.output()
    }

    /// Removes the first `count` bytes of the output, which were sent.
    pub fn sent(&mut self, count: usize) {
        self.link.sent(count);
    }

    /// Answers on a channel.
    pub fn answer(&mut self, number: u32, message: &AgentMessage) {
        if self.channels.contains_key(&number) {
            self.link.send(&message.to_frame(number));
        }
    }

    /// Returns the number of bytes that may be sent on an output of a channel. Callers read no more than
    /// that.
    pub fn credit(&self, number: u32, stream: Stream) -> usize {
        let channel = self.channels.get(&number);
        channel.and_then(|channel| channel.output(stream)).map_or(0, Sender::credit).min(MAX_DATA)
    }

    /// Sends bytes on an output of a channel: no more than its credit.
    pub fn send(&mut self, number: u32, stream: Stream, bytes: &[u8]) {
        let Some(output) = self.channels.get_mut(&number).and_then(|channel| channel.output_mut(stream))
        else {
            return;
        };
        if bytes.is_empty() || output.has_ended() {
            return;
        }
        output.spend(bytes.len());
        self.link.send(&data_frame(number, stream, bytes));
    }

    /// Ends an output of a channel.
    pub fn end(&mut self, number: u32, stream: Stream) {
        let channel = self.channels.get_mut(&number);
        if channel.and_then(|channel| channel.output_mut(stream)).is_some_and(Sender::end) {
            self.link.send(&AgentMessage::End(stream).to_frame(number));
        }
    }

    /// Acknowledges bytes of stdin that were consumed: the host may send as many again.
    pub fn taken(&mut self, number: u32, count: usize) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.input.take(count);
        if let Some(grant) = channel.input.grant() {
            self.link.send(&AgentMessage::Window(Stream::Stdin, grant).to_frame(number));
        }
    }

    /// Stops taking the channel's stdin. Bytes that the host still sends are dropped.
    pub fn refuse_input(&mut self, number: u32) {
        self.answer(number, &AgentMessage::End(Stream::Stdin));
    }

    /// Ends a channel: nothing more is sent on it.
    pub fn closed(&mut self, number: u32) {
        self.answer(number, &AgentMessage::Closed);
        self.channels.remove(&number);
    }

    fn take(&mut self, frame: &[u8]) -> Result<(), SessionError> {
        let (number, message) = HostMessage::parse(frame)?;
        if let HostMessage::Open(request) = message {
            return self.open(number, request);
        }
        // The host sent this before it heard of the channel's end.
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let no_stream = |stream| SessionError::NoStream { channel: number, stream };
        match message {
            HostMessage::Open(_) => {}
            HostMessage::Data(stream, bytes) => {
                if stream != Stream::Stdin || channel.input.has_ended() {
                    return Err(no_stream(stream));
                }
                let (count, allowed) = (bytes.len(), channel.input.allowed());
                if !channel.input.accept(count) {
                    return Err(SessionError::Overrun { channel: number, stream, count, allowed });
                }
                self.events.push_back(AgentEvent::Data(number, bytes));
            }
            HostMessage::End(stream) => {
                if stream != Stream::Stdin || !channel.input.end() {
                    return Err(no_stream(stream));
                }
                self.events.push_back(AgentEvent::End(number));
            }
            HostMessage::Window(stream, bytes) => {
                let output = channel.output_mut(stream).ok_or(no_stream(stream))?;
                if bytes == 0 {
                    return Err(SessionError::EmptyGrant { channel: number, stream });
                }
                if !output.grant(bytes) {
                    return Err(SessionError::Grant { channel: number, stream });
                }
            }
            HostMessage::Signal(signal) => self.events.push_back(AgentEvent::Signal(number, signal)),
            HostMessage::Resize(size) => self.events.push_back(AgentEvent::Resize(number, size)),
            HostMessage::Close => self.events.push_back(AgentEvent::Close(number)),
        }
        Ok(())
    }

    fn open(&mut self, number: u32, request: Request) -> Result<(), SessionError> {
        if number == 0 || self.channels.contains_key(&number) {
            return Err(SessionError::Channel { channel: number });
        }
        let is_full = self.channels.len() >= MAX_CHANNELS;
        self.channels.insert(number, Channel::of(&request));
        if is_full {
            let failure = Failure { step: Step::Channel, subject: "".into(), errno: libc::EAGAIN };
            self.answer(number, &AgentMessage::Failed(failure));
            self.closed(number);
        } else {
            self.events.push_back(AgentEvent::Open(number, request));
        }
        Ok(())
    }
}

impl Channel {
    fn of(request: &Request) -> Self {
        let (input, outputs) = match request {
            Request::Exec(exec) => (exec.stdin, [true, exec.terminal.is_none()]),
            Request::Attach(AttachRequest { stdin, terminal, .. }) => (*stdin, [true, !terminal]),
            Request::Put(_) => (true, [false; 2]),
            Request::Get(_) | Request::List(_) | Request::Stat { .. } | Request::ReadLink(_) => {
                (false, [true, false])
            }
            Request::Path(_)
            | Request::SetClock(_)
            | Request::Network(_)
            | Request::Shutdown(_)
            | Request::Identify(_)
            | Request::Processes
            | Request::BranchPoint { .. } => (false, [false; 2]),
        };
        Self { input: Receiver::new(input), outputs: outputs.map(Sender::new) }
    }

    fn output(&self, stream: Stream) -> Option<&Sender> {
        let [stdout, stderr] = &self.outputs;
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(stdout),
            Stream::Stderr => Some(stderr),
        }
    }

    fn output_mut(&mut self, stream: Stream) -> Option<&mut Sender> {
        let [stdout, stderr] = &mut self.outputs;
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(stdout),
            Stream::Stderr => Some(stderr),
        }
    }
}

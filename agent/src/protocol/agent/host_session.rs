//! The host's end of a session. Its input comes from whoever controls the guest. Anything that breaks a rule
//! is an error, which ends the session and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::flow::Receiver;
use super::host_channel::Channel;
use super::link::{Input, Link, common_version};
use super::message::data_frame;
use super::{
    AgentInfo, AgentMessage, Hello, HostMessage, MAX_AGENT_FRAME, MAX_CHANNELS, MAX_DATA, MAX_HOST_FRAME,
    MAX_WAITING, OLDEST_VERSION, Request, SavedSession, SessionError, Stream, WindowSize,
};

/// The host's end of a session.
#[derive(Debug)]
pub struct HostSession {
    link: Link,
    /// The version that both ends speak.
    version: u32,
    /// The token of the last greeting that was answered.
    token: Option<u64>,
    /// The session of the snapshot from which the machine goes on, until the agent has heard of that.
    restored: Option<u64>,
    is_ready: bool,
    channels: BTreeMap<u32, Channel>,
    next_channel: u32,
    /// Outputs for which a grant is due: channels and descriptor numbers of streams. It is sent once the
    /// agent reads.
    due: BTreeSet<(u32, usize)>,
    events: VecDeque<HostEvent>,
}

/// An event from the agent.
#[derive(Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The agent takes requests.
    Ready(AgentInfo),
    /// A message on an open channel. Once bytes of a stream have been consumed, [`HostSession::taken`]
    /// acknowledges them. A window means that more can be sent.
    Message(u32, AgentMessage),
}

/// The reason why a channel cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The largest number of channels is open.
    #[error(
        "{MAX_CHANNELS} commands and transfers are under way in this guest, which is the limit; wait until one ends"
    )]
    TooMany,
    /// The agent does not read its input.
    #[error("{waiting} bytes wait for the guest's agent, which does not read them")]
    Clogged {
        /// The number of bytes that wait.
        waiting: usize,
    },
    /// The agent's version does not know the request.
    #[error(
        "the guest's agent speaks version {theirs} of its protocol, and this needs version {needed}; build the agent \
         again with `cargo xtask guest`"
    )]
    Version {
        /// The agent's version.
        theirs: u32,
        /// The lowest version that has the request.
        needed: u32,
    },
    /// The request does not fit into a frame.
    #[error(
        "arguments and variables have {length} bytes in all, and the limit is {MAX_HOST_FRAME}; pass less"
    )]
    TooLong {
        /// Bytes of arguments and variables.
        length: usize,
    },
}

impl Default for HostSession {
    fn default() -> Self {
        Self {
            link: Link::new(MAX_AGENT_FRAME),
            version: OLDEST_VERSION,
            token: None,
            restored: None,
            is_ready: false,
            channels: BTreeMap::new(),
            next_channel: 1,
            due: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }
}

impl HostSession {
    /// Makes the session that follows `last`. Its channels have other numbers, so that nobody takes them for
    /// the old ones.
    pub fn after(last: &Self) -> Self {
        let restored = last.restored.filter(|_| last.token.is_none());
        let mut next = Self { next_channel: last.next_channel, restored, ..Self::default() };
        next.announce();
        next
    }

    /// Makes the first session of a machine that goes on from a snapshot of `saved`. It tells the agent so.
    pub fn restored(saved: SavedSession) -> Self {
        let mut session = Self { restored: Some(saved.token), ..Self::default() };
        session.announce();
        session
    }

    /// Returns what a snapshot of this session has to keep; `None` if no agent has greeted.
    pub fn save(&self) -> Option<SavedSession> {
        self.token.or(self.restored).map(|token| SavedSession { token })
    }

    /// Returns whether the agent has not greeted yet since the machine goes on from a snapshot.
    pub fn announces(&self) -> bool {
        self.restored.is_some() && self.token.is_none()
    }

    /// Tells the agent that the machine goes on from a snapshot, unless that waits to be sent already. A
    /// line that loses bytes needs this again while [`HostSession::announces`].
    pub fn announce(&mut self) {
        let token = self.restored.filter(|_| self.announces() && self.link.output().is_empty());
        if let Some(token) = token {
            self.link.send(&Hello::new(token).to_restored_bytes());
        }
    }

    /// Takes bytes that arrived. Take all events before adding more, so that the bytes kept stay bounded.
    ///
    /// # Errors
    /// The agent has broken a rule of the protocol.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let mut greeting = self.link.push(bytes);
        while let Some(hello) = greeting {
            // A greeting that was on its way before the snapshot has its answer.
            greeting = match self.restored == Some(hello.token) {
                true => self.link.greet_on(),
                false => {
                    self.greet(hello)?;
                    None
                }
            };
        }
        while let Some(input) = self.link.next()? {
            match input {
                Input::Hello(hello) => self.greet(hello)?,
                Input::Frame(frame) => self.take(&frame)?,
            }
        }
        Ok(())
    }

    /// Returns the next event.
    pub fn next_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    /// Returns whether the agent has reported that it is ready.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Returns the bytes to send to the agent.
    pub fn output(&self) -> &[u8] {
        self.link.output()
    }

    /// Returns whether so many bytes wait for the agent that only one-time messages may still be added; see
    /// [`MAX_WAITING`].
    pub fn is_clogged(&self) -> bool {
        self.link.output().len() >= MAX_WAITING
    }

    /// Removes the first `count` bytes of the output, which were sent.
    pub fn sent(&mut self, count: usize) {
        self.link.sent(count);
        while !self.is_clogged()
            && let Some((number, index)) = self.due.pop_first()
        {
            let stream = Stream::ALL.into_iter().find(|stream| stream.index() == index);
            stream.into_iter().for_each(|stream| self.grant(number, stream));
        }
    }

    /// Sends a request. Its answers come on the channel whose number is returned.
    ///
    /// # Errors
    /// The request cannot be made now, or at all.
    pub fn open(&mut self, request: Request) -> Result<u32, OpenError> {
        if self.channels.len() >= MAX_CHANNELS {
            return Err(OpenError::TooMany);
        }
        if self.is_clogged() {
            return Err(OpenError::Clogged { waiting: self.link.output().len() });
        }
        let needed = request.version();
        if needed > self.version {
            return Err(OpenError::Version { theirs: self.version, needed });
        }
        let number = self.free_number();
        let channel = Channel::of(&request);
        let frame = HostMessage::Open(request).to_frame(number);
        let length = frame.len();
        if length > MAX_HOST_FRAME {
            return Err(OpenError::TooLong { length });
        }
        self.link.send(&frame);
        self.channels.insert(number, channel);
        Ok(number)
    }

    /// Sends the first of `bytes` on the channel's stdin: as many as the agent has granted, and none while it
    /// does not read. Returns their number.
    pub fn send(&mut self, number: u32, bytes: &[u8]) -> usize {
        let room = MAX_WAITING.saturating_sub(self.link.output().len());
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.is_closing) else {
            return 0;
        };
        let count = bytes.len().min(channel.input.credit()).min(room);
        let bytes = bytes.get(..count).unwrap_or_default();
        for piece in bytes.chunks(MAX_DATA) {
            self.link.send(&data_frame(number, Stream::Stdin, piece));
        }
        channel.input.spend(count);
        count
    }

    /// Returns the number of bytes that can be sent on the channel's stdin.
    pub fn credit(&self, number: u32) -> usize {
        self.channels.get(&number).map_or(0, |channel| channel.input.credit())
    }

    /// Ends the channel's stdin.
    pub fn end_input(&mut self, number: u32) {
        if self.channels.get_mut(&number).is_some_and(|channel| !channel.is_closing && channel.input.end()) {
            self.say(number, &HostMessage::End(Stream::Stdin));
        }
    }

    /// Acknowledges bytes of an output that were consumed: the agent may send as many again.
    pub fn taken(&mut self, number: u32, stream: Stream, count: usize) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.is_closing) else {
            return;
        };
        let is_due = channel.output(stream).is_some_and(|output| output.take(count));
        if is_due && self.is_clogged() {
            self.due.insert((number, stream.index()));
        } else if is_due {
            self.grant(number, stream);
        }
    }

    fn grant(&mut self, number: u32, stream: Stream) {
        let channel = self.channels.get_mut(&number).filter(|channel| !channel.is_closing);
        if let Some(grant) = channel.and_then(|channel| channel.output(stream)).and_then(Receiver::grant) {
            self.say(number, &HostMessage::Window(stream, grant));
        }
    }

    /// Sends a signal to the channel's command.
    pub fn signal(&mut self, number: u32, signal: u8) {
        self.say_if_open(number, &HostMessage::Signal(signal));
    }

    /// Gives the terminal of the channel's command a new size.
    pub fn resize(&mut self, number: u32, size: WindowSize) {
        self.say_if_open(number, &HostMessage::Resize(size));
    }

    /// Closes a channel, which ends what runs there. [`AgentMessage::Closed`] still comes.
    pub fn close(&mut self, number: u32) {
        self.say_if_open(number, &HostMessage::Close);
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.is_closing = true;
        }
    }

    fn greet(&mut self, hello: Hello) -> Result<(), SessionError> {
        self.version = common_version(hello)?;
        // An agent that greets again and again must read the answers.
        if self.link.output().len() >= MAX_GREETINGS * Hello::LEN {
            return Err(SessionError::NotReady);
        }
        self.link.send(&Hello::new(hello.token).to_bytes());
        self.token = Some(hello.token);
        Ok(())
    }

    fn take(&mut self, frame: &[u8]) -> Result<(), SessionError> {
        let (number, message) = AgentMessage::parse(frame)?;
        if !self.is_ready {
            let AgentMessage::Ready(info) = message else { return Err(SessionError::NotReady) };
            self.is_ready = true;
            self.events.push_back(HostEvent::Ready(info));
            return Ok(());
        }
        let Some(channel) = self.channels.get_mut(&number) else {
            return Err(SessionError::Channel { channel: number });
        };
        channel.check(number, &message)?;
        let is_wanted = !channel.is_closing;
        let is_closed = message == AgentMessage::Closed;
        if is_closed {
            self.channels.remove(&number);
            self.due.retain(|(channel, _)| *channel != number);
        }
        if is_wanted || is_closed {
            self.events.push_back(HostEvent::Message(number, message));
        }
        Ok(())
    }

    fn say_if_open(&mut self, number: u32, message: &HostMessage) {
        if self.channels.get(&number).is_some_and(|channel| !channel.is_closing) {
            self.say(number, message);
        }
    }

    fn say(&mut self, number: u32, message: &HostMessage) {
        self.link.send(&message.to_frame(number));
    }

    /// Returns a number that was not used for as long as possible, so that the agent's last messages on an
    /// earlier channel of that number have arrived.
    fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next_channel;
            self.next_channel = number.checked_add(1).unwrap_or(1);
            if !self.channels.contains_key(&number) {
                return number;
            }
        }
    }
}

/// The largest number of answers to greetings that wait for an agent to read them.
const MAX_GREETINGS: usize = 100;

//! A channel of the host's end: what the agent may send on it now.

use super::flow::{Receiver, Sender};
use super::{AgentMessage, AttachRequest, Request, SessionError, Stream};

/// ```text
/// Opened --started, file--> Started --exited, done--> Answered --closed--> (removed)
///    \--done, network, failed--> Answered
/// ```
#[derive(Debug)]
pub(super) struct Channel {
    kind: Kind,
    stage: Stage,
    /// Whether the host has closed the channel and only waits for the agent's last message.
    pub(super) is_closing: bool,
    pub(super) input: Sender,
    outputs: [Receiver; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Exec,
    Get,
    Network,
    Processes,
    BranchPoint,
    /// The answer is "done".
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opened,
    Started,
    Answered,
}

impl Channel {
    /// Makes the channel of a request.
    pub(super) fn of(request: &Request) -> Self {
        let (kind, input, outputs) = match request {
            Request::Exec(exec) => (Kind::Exec, exec.stdin, [true, exec.terminal.is_none()]),
            Request::Attach(AttachRequest { stdin, terminal, .. }) => (Kind::Exec, *stdin, [true, !terminal]),
            Request::Put(_) => (Kind::Plain, true, [false; 2]),
            Request::Get(_) => (Kind::Get, false, [true, false]),
            Request::List(_) | Request::Stat { .. } | Request::ReadLink(_) => {
                (Kind::Plain, false, [true, false])
            }
            Request::Network(_) => (Kind::Network, false, [false; 2]),
            Request::Path(_) | Request::SetClock(_) | Request::Shutdown(_) | Request::Identify(_) => {
                (Kind::Plain, false, [false; 2])
            }
            Request::Processes => (Kind::Processes, false, [false; 2]),
            Request::BranchPoint { .. } => (Kind::BranchPoint, false, [false; 2]),
        };
        Self {
            kind,
            stage: Stage::Opened,
            is_closing: false,
            input: Sender::new(input),
            outputs: outputs.map(Receiver::new),
        }
    }

    pub(super) fn output(&mut self, stream: Stream) -> Option<&mut Receiver> {
        let [stdout, stderr] = &mut self.outputs;
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(stdout),
            Stream::Stderr => Some(stderr),
        }
    }

    /// Checks whether the agent may send this now, and applies it.
    pub(super) fn check(&mut self, channel: u32, message: &AgentMessage) -> Result<(), SessionError> {
        let unexpected = SessionError::Unexpected { channel, what: message.name() };
        let (kind, stage) = (self.kind, self.stage);
        let next = match message {
            AgentMessage::Started { .. }
                if matches!(kind, Kind::Exec | Kind::BranchPoint) && stage == Stage::Opened =>
            {
                Stage::Started
            }
            AgentMessage::Processes(_) if kind == Kind::Processes && stage == Stage::Opened => {
                Stage::Answered
            }
            AgentMessage::File(_) if kind == Kind::Get && stage == Stage::Opened => Stage::Started,
            AgentMessage::Exited(_) if kind == Kind::Exec && stage == Stage::Started => Stage::Answered,
            AgentMessage::Done if kind == Kind::Get && stage == Stage::Started => Stage::Answered,
            AgentMessage::Done if kind == Kind::Plain && stage == Stage::Opened => Stage::Answered,
            AgentMessage::Network(_) if kind == Kind::Network && stage == Stage::Opened => Stage::Answered,
            AgentMessage::Failed(_) if stage != Stage::Answered => Stage::Answered,
            AgentMessage::Closed if stage == Stage::Answered || self.is_closing => Stage::Answered,
            AgentMessage::Data(stream, bytes) => {
                let count = bytes.len();
                let output = self.open_output(channel, *stream)?;
                let allowed = output.allowed();
                if !output.accept(count) {
                    return Err(SessionError::Overrun { channel, stream: *stream, count, allowed });
                }
                stage
            }
            // Nobody reads it any more.
            AgentMessage::End(Stream::Stdin) => {
                self.input.end();
                stage
            }
            AgentMessage::End(stream) => {
                self.open_output(channel, *stream)?.end();
                stage
            }
            AgentMessage::Window(stream, bytes) => {
                if *stream != Stream::Stdin {
                    return Err(SessionError::NoStream { channel, stream: *stream });
                }
                if *bytes == 0 {
                    return Err(SessionError::EmptyGrant { channel, stream: *stream });
                }
                if !self.input.grant(*bytes) {
                    return Err(SessionError::Grant { channel, stream: *stream });
                }
                stage
            }
            _ => return Err(unexpected),
        };
        self.stage = next;
        Ok(())
    }

    fn open_output(&mut self, channel: u32, stream: Stream) -> Result<&mut Receiver, SessionError> {
        let output = self.output(stream).filter(|output| !output.has_ended());
        output.ok_or(SessionError::NoStream { channel, stream })
    }
}

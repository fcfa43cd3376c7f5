//! The handling of bytes that both sessions share: greeting, cutting frames, and keeping output.

use super::hello::{Hello, HelloScanner, MAGIC};
use super::{OLDEST_VERSION, SessionError, VERSION};
use crate::protocol::wire::FrameReader;

/// The bytes of one end.
///
/// ```text
/// Greeting --the other's greeting, with the right token--> Open
/// ```
#[derive(Debug)]
pub(super) struct Link {
    stage: Stage,
    frame_limit: usize,
    /// Whether no frame has come yet: the other end may still be repeating its greeting.
    is_fresh: bool,
    output: Vec<u8>,
    sent: usize,
}

#[derive(Debug)]
enum Stage {
    Greeting(HelloScanner),
    Open(FrameReader),
}

/// A frame or greeting that came.
#[derive(Debug)]
pub(super) enum Input {
    Hello(Hello),
    Frame(Vec<u8>),
}

impl Link {
    /// Makes a link that waits for the other end's greeting, and then takes frames of up to `frame_limit`
    /// bytes.
    pub(super) fn new(frame_limit: usize) -> Self {
        Self {
            stage: Stage::Greeting(HelloScanner::default()),
            frame_limit,
            is_fresh: true,
            output: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Adds bytes. Call [`Link::next`] until it returns none before adding more.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Hello> {
        match &mut self.stage {
            Stage::Open(reader) => {
                reader.push(bytes);
                None
            }
            Stage::Greeting(scanner) => {
                let found = scanner.push(bytes)?;
                self.open(&found.rest);
                Some(found.hello)
            }
        }
    }

    /// Looks for another greeting, because the one that was found is not for this session.
    pub(super) fn greet_on(&mut self) -> Option<Hello> {
        let Stage::Open(reader) =
            std::mem::replace(&mut self.stage, Stage::Greeting(HelloScanner::default()))
        else {
            return None;
        };
        self.push(&reader.into_waiting())
    }

    fn open(&mut self, rest: &[u8]) {
        let mut reader = FrameReader::new(self.frame_limit);
        reader.push(rest);
        self.stage = Stage::Open(reader);
    }

    /// Returns the next frame, or a greeting in place of a frame.
    pub(super) fn next(&mut self) -> Result<Option<Input>, SessionError> {
        let Stage::Open(reader) = &mut self.stage else { return Ok(None) };
        if let Some(start) = reader.waiting().first_chunk::<4>()
            && *start == MAGIC[..4]
        {
            if !self.is_fresh {
                return Err(SessionError::Restarted);
            }
            if reader.waiting().len() < Hello::LEN {
                return Ok(None);
            }
            return Ok(self.greet_on().map(Input::Hello));
        }
        let frame = reader.next_frame()?;
        self.is_fresh &= frame.is_none();
        Ok(frame.map(Input::Frame))
    }

    /// Queues bytes for the other end.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Returns the bytes to send.
    pub(super) fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// Removes the first `count` bytes of the output, which were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.output.len());
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Returns the version that both ends speak: the lower of their highest ones.
pub(super) fn common_version(hello: Hello) -> Result<u32, SessionError> {
    match hello.version {
        theirs if theirs >= OLDEST_VERSION => Ok(theirs.min(VERSION)),
        theirs => Err(SessionError::Version { theirs }),
    }
}

/// Bytes that were sent are dropped in pieces of this size, so that the rest is not moved at each write.
const COMPACT: usize = 256 << 10;

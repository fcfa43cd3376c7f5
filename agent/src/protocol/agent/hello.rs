//! The greeting, which finds the start of a session in whatever a line carries: output of a kernel, or the
//! rest of an earlier session.

use super::{ProtocolError, VERSION};
use crate::protocol::wire::Decoder;

/// The first bytes of a greeting. As the length of a frame, they would be far too large. A line that converts
/// line ends or drops control characters damages them.
pub const MAGIC: [u8; 12] = *b"\xf3coracle\r\n\x1a\xf4";

/// The first bytes of the host's greeting after a snapshot, in place of [`MAGIC`].
const RESTORED: [u8; 12] = *b"\xf3coracle\r\n\x1a\xf5";

/// The first message of each end. Its form is the same in all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The highest version that this end speaks.
    pub version: u32,
    /// A number that the agent chooses for this session. The host repeats it, so that answers to earlier
    /// greetings can be recognised.
    pub token: u64,
}

impl Hello {
    /// The length of a greeting in bytes.
    pub const LEN: usize = MAGIC.len() + 12;

    /// Returns a greeting of this version.
    pub fn new(token: u64) -> Self {
        Self { version: VERSION, token }
    }

    /// Returns the greeting as it is sent.
    pub fn to_bytes(self) -> Vec<u8> {
        [MAGIC.as_slice(), &self.version.to_le_bytes(), &self.token.to_le_bytes()].concat()
    }

    /// Returns the greeting by which a host says that the machine goes on from a snapshot of the session with
    /// this token.
    pub(super) fn to_restored_bytes(self) -> Vec<u8> {
        [RESTORED.as_slice(), &self.version.to_le_bytes(), &self.token.to_le_bytes()].concat()
    }

    fn parse(fields: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Decoder::new(fields);
        Ok(Self { version: fields.u32("version")?, token: fields.u64("token")? })
    }
}

/// Looks for a greeting in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct HelloScanner {
    /// The last bytes that arrived, which may be the start of a greeting.
    seen: Vec<u8>,
}

/// A greeting and the bytes after it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) hello: Hello,
    pub(super) rest: Vec<u8>,
}

impl HelloScanner {
    /// Takes the next bytes. Those before a greeting are dropped.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Found> {
        self.seen.extend_from_slice(bytes);
        let start = self.seen.windows(MAGIC.len()).position(|window| window == MAGIC);
        let Some(start) = start else {
            let keep = self.seen.len().min(MAGIC.len() - 1);
            self.seen.drain(..self.seen.len() - keep);
            return None;
        };
        self.seen.drain(..start);
        let (greeting, rest) = self.seen.split_at_checked(Hello::LEN)?;
        let hello = Hello::parse(greeting.get(MAGIC.len()..)?).ok()?;
        let rest = rest.to_vec();
        self.seen.clear();
        Some(Found { hello, rest })
    }
}

/// Looks for the greeting after a snapshot in all bytes, because it may come in the middle of a frame. Only
/// the two ends know the session's token, so no content of a frame looks like it.
#[derive(Debug, Default)]
pub(super) struct RestoreScanner {
    /// The last bytes that arrived, fewer than a greeting has.
    tail: Vec<u8>,
}

impl RestoreScanner {
    /// Takes the next bytes. Returns the token of a greeting for which `is_known` returns true.
    pub(super) fn push(&mut self, bytes: &[u8], is_known: impl Fn(u64) -> bool) -> Option<u64> {
        self.tail.extend_from_slice(bytes);
        let token = find_restored(&self.tail, is_known);
        let passed = self.tail.len().saturating_sub(Hello::LEN - 1);
        self.tail.drain(..passed);
        if token.is_some() {
            self.tail.clear();
        }
        token
    }
}

fn find_restored(mut bytes: &[u8], is_known: impl Fn(u64) -> bool) -> Option<u64> {
    let [first, ..] = RESTORED;
    while let Some(at) = bytes.iter().position(|byte| *byte == first) {
        bytes = bytes.get(at..)?;
        let fields = bytes.get(..Hello::LEN)?.strip_prefix(&RESTORED);
        let token = fields.and_then(|fields| Hello::parse(fields).ok()).map(|hello| hello.token);
        if let Some(token) = token.filter(|token| is_known(*token)) {
            return Some(token);
        }
        bytes = bytes.get(1..)?;
    }
    None
}

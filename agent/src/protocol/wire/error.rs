//! Errors in messages.

/// A message that breaks the protocol.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The length of a frame is zero or over the limit of its direction.
    #[error("a message has {length} bytes; 1 to {limit} are allowed")]
    FrameLength {
        /// The length in the frame's header.
        length: usize,
        /// The limit of the direction, in bytes.
        limit: usize,
    },
    /// A list is longer than any that is sent.
    #[error("a message has {count} {what}; up to {limit} are allowed")]
    ListLength {
        /// The name of the list.
        what: &'static str,
        /// The number of its items.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A message ends before its last field.
    #[error("a message ends inside the field '{field}'")]
    Truncated {
        /// The name of the field.
        field: &'static str,
    },
    /// A message goes on after its last field.
    #[error("a message has {count} bytes after its last field")]
    TrailingBytes {
        /// The number of bytes.
        count: usize,
    },
    /// A field has a value that this version does not know.
    #[error("a message has the unknown {what} {value}")]
    UnknownValue {
        /// The name of the field.
        what: &'static str,
        /// The value of the field.
        value: u8,
    },
    /// The name of a directory's entry is empty, `.` or `..`, or has a `/` or a zero byte. Joined to a path,
    /// it would lead out of the directory.
    #[error("an entry of a directory has a name that no entry can have")]
    EntryName,
    /// The first message is not a greeting.
    #[error("the first message is not an agent's greeting")]
    NotHello,
}

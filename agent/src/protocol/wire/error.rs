//! What is wrong with a message.

/// A message that breaks the protocol.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The length of a frame is zero or over the limit of its direction.
    #[error("a message of {length} bytes: the limit is {limit}, the least is 1")]
    FrameLength {
        /// Length in the frame's header.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A message ends before its last field.
    #[error("a message ends inside the field '{field}'")]
    Truncated {
        /// Name of the field.
        field: &'static str,
    },
    /// A message goes on after its last field.
    #[error("a message has {count} bytes after its last field")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A field has a value that this version does not know.
    #[error("a message has the unknown {what} {value}")]
    UnknownValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u8,
    },
    /// The name of a folder's entry is empty, `.` or `..`, or has a `/` or a zero byte: joined to a path, it would
    /// lead out of the folder.
    #[error("an entry of a folder has a name that no entry can have")]
    EntryName,
    /// The first message is not a greeting.
    #[error("the first message is not an agent's greeting")]
    NotHello,
}

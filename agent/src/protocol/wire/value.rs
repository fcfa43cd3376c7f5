//! Values that messages of both protocols carry.

use super::{Decoder, Encoder, ProtocolError};

/// A standard stream of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 0.
    Stdin,
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

impl Stream {
    /// All three streams, in the order of their file descriptors.
    pub const ALL: [Self; 3] = [Self::Stdin, Self::Stdout, Self::Stderr];

    /// Returns the file descriptor number, which is also the stream's index in arrays of three.
    pub fn index(self) -> usize {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    /// The element of `array` for this stream.
    pub fn of<T>(self, array: &[T; 3]) -> &T {
        let [stdin, stdout, stderr] = array;
        match self {
            Self::Stdin => stdin,
            Self::Stdout => stdout,
            Self::Stderr => stderr,
        }
    }

    /// The element of `array` for this stream, to change it.
    pub fn of_mut<T>(self, array: &mut [T; 3]) -> &mut T {
        let [stdin, stdout, stderr] = array;
        match self {
            Self::Stdin => stdin,
            Self::Stdout => stdout,
            Self::Stderr => stderr,
        }
    }

    pub(crate) fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        Self::ALL
            .into_iter()
            .find(|stream| stream.index() == usize::from(value))
            .ok_or(ProtocolError::UnknownValue { what: "stream", value })
    }
}

/// The exit code or signal with which a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command exited with this code.
    Code(u8),
    /// The command was killed by this signal.
    Signal(u8),
}

impl Ending {
    /// Returns the ending that `status` describes, as `waitpid(2)` reports it for a process that has ended.
    pub fn of_status(status: libc::c_int) -> Ending {
        let number = |value: libc::c_int| u8::try_from(value).unwrap_or(u8::MAX);
        if libc::WIFSIGNALED(status) {
            Ending::Signal(number(libc::WTERMSIG(status)))
        } else {
            Ending::Code(number(libc::WEXITSTATUS(status)))
        }
    }
}

/// The size of a terminal, in character cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl WindowSize {
    pub(crate) fn encode(&self, message: Encoder) -> Encoder {
        let Self { rows, columns } = *self;
        message.u16(rows).u16(columns)
    }

    pub(crate) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self { rows: fields.u16("rows")?, columns: fields.u16("columns")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_takes_the_element_at_its_descriptor() {
        let mut array = [0, 1, 2];
        for stream in Stream::ALL {
            assert_eq!(*stream.of(&array), stream.index());
            *stream.of_mut(&mut array) += 10;
        }
        assert_eq!(array, [10, 11, 12]);
    }
}

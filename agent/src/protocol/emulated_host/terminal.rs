//! The modes of a terminal as they cross the control port, which are the fields of `termios(3)`. Both
//! machines run Linux on x86-64, so the bits mean the same on either side.

use crate::protocol::wire::{Decoder, Encoder, ProtocolError};

/// The modes of a terminal (`tcgetattr(3)`), without its line speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalModes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_cc`.
    pub characters: [u8; libc::NCCS],
}

impl TerminalModes {
    /// Reads the modes from the C structure.
    pub fn from_termios(termios: &libc::termios) -> Self {
        Self {
            input: termios.c_iflag,
            output: termios.c_oflag,
            control: termios.c_cflag,
            local: termios.c_lflag,
            characters: termios.c_cc,
        }
    }

    /// Writes the modes to a terminal's C structure. Its line speed stays.
    pub fn apply_to(&self, termios: &mut libc::termios) {
        let Self { input, output, control, local, characters } = *self;
        let speed = libc::CBAUD | libc::CBAUDEX;
        termios.c_iflag = input;
        termios.c_oflag = output;
        termios.c_cflag = (control & !speed) | (termios.c_cflag & speed);
        termios.c_lflag = local;
        termios.c_cc = characters;
    }

    pub(crate) fn encode(&self, message: Encoder) -> Encoder {
        let Self { input, output, control, local, characters } = *self;
        message.u32(input).u32(output).u32(control).u32(local).raw(&characters)
    }

    pub(crate) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            input: fields.u32("input modes")?,
            output: fields.u32("output modes")?,
            control: fields.u32("control modes")?,
            local: fields.u32("local modes")?,
            characters: fields.array("control characters")?,
        })
    }
}

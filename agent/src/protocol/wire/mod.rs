//! The parts of both protocols: frames, fields and shared values.
//!
//! A frame is a little-endian `u32` length and then that many bytes. The first of them is the kind of the
//! message.

mod codec;
mod error;
mod frame;
mod value;

pub(super) use codec::{Decoder, Encoder};
pub use error::ProtocolError;
pub use frame::FrameReader;
pub use value::{Ending, Stream, WindowSize};

//! Decompresses consecutive Zstandard frames with a window as large as the caller has room for, whatever a
//! frame's header requests. A frame that then refers back further is an error; most frames do not.
//!
//! Source: RFC 8878, 3.1.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{
    DecodeBlockContentError, DecompressBlockError, ExecuteSequencesError, FrameDecoderError,
};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::room::no_room;

/// The decompressed content of a sequence of frames.
pub(crate) struct ZstdFrames<R: BufRead> {
    source: R,
    frame: FrameDecoder,
    /// How many bytes the decoder may allocate for its window.
    room: u64,
    /// The size of the window that the decoder has allocated.
    allocated: u64,
    /// Whether the frame requested more than it got.
    is_short: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    /// Decompresses the frames of `source`, with a window of at most `room` bytes, which must be at least
    /// some MiB.
    pub(crate) fn new(source: R, room: u64) -> ZstdFrames<R> {
        ZstdFrames { source, frame: FrameDecoder::new(), room, allocated: 0, is_short: false }
    }

    /// Advances to the next frame; `false` if there is none.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match u32::from_le_bytes(self.bytes()?) {
                MAGIC => {
                    self.begin()?;
                    return Ok(true);
                }
                SKIPPABLE_FIRST..=SKIPPABLE_LAST => {
                    let len = u64::from(u32::from_le_bytes(self.bytes()?));
                    if io::copy(&mut self.source.by_ref().take(len), &mut io::sink())? < len {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                magic => return Err(invalid(format!("{magic:#x} is not the start of a Zstandard frame"))),
            }
        }
        Ok(false)
    }

    /// Reads the header of a frame and begins to decode it, with a window for which there is room.
    fn begin(&mut self) -> io::Result<()> {
        let [descriptor] = self.bytes()?;
        let asked = self.window(descriptor)?;
        let most = most_window(self.room);
        // An eighth more than requested holds a block before it is taken out; without it the decoder would
        // double its buffer.
        let window = asked.saturating_add(asked / 8).min(most);
        self.is_short = asked > most;
        let header =
            [&MAGIC.to_le_bytes()[..], &[descriptor & KEPT_FLAGS, window_descriptor(window)]].concat();
        if window > self.allocated {
            // Drop the old window before a new one is allocated; and make sure that the allocation, at whose
            // failure the decoder would panic, succeeds.
            self.frame = FrameDecoder::new();
            self.frame.set_max_window_size(most);
            self.allocated = window;
            try_allocate(window.next_power_of_two().saturating_add(BLOCKS))?;
            // The first call allocates nothing, the second one the whole window, which is then reused.
            self.frame.init(&header[..]).map_err(io::Error::other)?;
        }
        self.frame.init(&header[..]).map_err(io::Error::other)
    }

    /// Reads the window size that the rest of a header requests (3.1.1.1), in bytes.
    fn window(&mut self, descriptor: u8) -> io::Result<u64> {
        let is_single = descriptor & 0x20 != 0;
        let mut window = 0;
        if !is_single {
            let [descriptor] = self.bytes()?;
            let base = MIN_WINDOW << (descriptor >> 3);
            window = base.saturating_add((base / 8).saturating_mul((descriptor & 7).into()));
        }
        let dictionary_len = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or_default();
        if self.number(dictionary_len)? != 0 {
            return Err(invalid("it was compressed with a dictionary, which it does not contain"));
        }
        let content_len = match (descriptor >> 6, is_single) {
            (0, false) => 0,
            (0, true) => 1,
            (1, _) => 2,
            (2, _) => 4,
            _ => 8,
        };
        let content = self.number(content_len)?;
        let content = if content_len == 2 { content.saturating_add(256) } else { content };
        Ok(if is_single { content } else { window })
    }

    fn bytes<const LEN: usize>(&mut self) -> io::Result<[u8; LEN]> {
        let mut bytes = [0; LEN];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a number of up to 8 bytes.
    fn number(&mut self, len: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.source.read_exact(bytes.get_mut(..len).unwrap_or_default())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn decode_block(&mut self) -> io::Result<()> {
        let source: &mut dyn Read = &mut self.source;
        match self.frame.decode_blocks(source, BlockDecodingStrategy::UptoBlocks(1)) {
            Ok(_) => Ok(()),
            Err(error) if self.is_short && is_reference(&error) => Err(no_room(most_window(self.room))),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Take out everything that has left the window before the next block.
        while self.frame.can_collect() == 0 {
            if !self.frame.is_finished() {
                self.decode_block()?;
                continue;
            }
            let (read, made) = (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum());
            if read.is_some() && read != made {
                return Err(invalid("a checksum is wrong"));
            }
            if !self.next_frame()? {
                return Ok(0);
            }
        }
        self.frame.read(buffer)
    }
}

/// Returns whether a block refers to data that is no longer in the window.
fn is_reference(error: &FrameDecoderError) -> bool {
    use DecodeBlockContentError::DecompressBlockError as Block;
    let FrameDecoderError::FailedToReadBlockBody(Block(DecompressBlockError::ExecuteSequencesError(error))) =
        error
    else {
        return false;
    };
    matches!(error, ExecuteSequencesError::DecodebufferError(_))
}

/// Returns the largest window within `room`. The decoder allocates a power of two plus [`BLOCKS`], into which
/// a block is added to a full window. A hostile block has slightly more than one MiB, a sixteenth of the
/// smallest power of two that is used.
fn most_window(room: u64) -> u64 {
    let allocated = 1_u64 << room.saturating_sub(BLOCKS).checked_ilog2().unwrap_or_default();
    allocated.saturating_sub(allocated / 16).max(MIN_WINDOW)
}

/// Returns the descriptor of the smallest window with at least `window` bytes (3.1.1.1.2), which must not
/// exceed [`MAX_ROOM`].
///
/// [`MAX_ROOM`]: super::room::MAX_ROOM
fn window_descriptor(window: u64) -> u8 {
    let window = window.max(MIN_WINDOW);
    let exponent = window.ilog2();
    let base = 1_u64 << exponent;
    let eighths = window.saturating_sub(base).div_ceil(base / 8);
    let descriptor = u64::from(exponent).saturating_sub(10).saturating_mul(8).saturating_add(eighths);
    u8::try_from(descriptor).unwrap_or(u8::MAX)
}

/// Checks that the host has this much memory for a single allocation, at whose failure the decoder would
/// panic.
fn try_allocate(bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE_FIRST: u32 = 0x184d_2a50;
const SKIPPABLE_LAST: u32 = 0x184d_2a5f;

/// The bits of a frame descriptor that are kept: whether a checksum follows the frame, and the bit that must
/// be 0.
const KEPT_FLAGS: u8 = 0x0c;
const MIN_WINDOW: u64 = 1 << 10;
/// The number of bytes that the decoder adds to a power of two.
const BLOCKS: u64 = 257 << 10;

//! The "legacy" LZ4 frame that Linux uses for its kernels, decompressed block by block.
//!
//! Source: "LZ4 Frame Format Description", section "Legacy frame".

use std::io::{self, BufRead, Read};

/// The decompressed content of a legacy frame.
pub(super) struct Lz4Legacy<R: BufRead> {
    source: R,
    is_begun: bool,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// The number of decompressed bytes in the block, and how many of them were read.
    made: usize,
    read: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    pub(super) fn new(source: R) -> Lz4Legacy<R> {
        Lz4Legacy { source, is_begun: false, packed: Vec::new(), block: Vec::new(), made: 0, read: 0 }
    }

    /// Decompresses the next block; `false` if there is none.
    fn next_block(&mut self) -> io::Result<bool> {
        if !self.is_begun {
            self.source.read_exact(&mut [0; 4])?;
            self.is_begun = true;
        }
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut len = [0; 4];
        self.source.read_exact(&mut len).map_err(|_| cut_off("the length of a block"))?;
        let len = u64::from(u32::from_le_bytes(len));
        if len > MAX_PACKED {
            return Err(io::Error::other(format!("a block of {len} bytes is longer than any, or cut off")));
        }
        self.packed.clear();
        if self.source.by_ref().take(len).read_to_end(&mut self.packed)? as u64 != len {
            return Err(cut_off("a block"));
        }
        // Pages of the buffer cost no memory before they are written to.
        if self.block.is_empty() {
            self.block = vec![0; BLOCK];
        }
        self.made =
            lz4_flex::block::decompress_into(&self.packed, &mut self.block).map_err(io::Error::other)?;
        self.read = 0;
        Ok(true)
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.made {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = self.block.get(self.read..self.made).unwrap_or_default().read(buffer)?;
        self.read = self.read.saturating_add(count);
        Ok(count)
    }
}

fn cut_off(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("{what} is cut off"))
}

/// The block size, in bytes, which the legacy frame fixes.
pub(super) const BLOCK: usize = 8 << 20;
/// The longest compressed block, in bytes: an incompressible one grows by one byte in 255, and a few more.
const MAX_PACKED: u64 = (BLOCK + BLOCK / 255 + 16) as u64;

//! Files with holes in place of zeroes. Decompressed files and images of roots are written this way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Writes the blocks that are not all zero: the image starts as a hole.
pub(crate) fn write_unless_zero(image: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let zeroes = rest.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum::<usize>();
        let rest = rest.get(zeroes..).unwrap_or_default();
        let data = rest.chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum::<usize>();
        at = at.saturating_add(zeroes);
        let start = offset.saturating_add(at as u64);
        image.write_all_at(rest.get(..data).unwrap_or_default(), start)?;
        at = at.saturating_add(data);
    }
    Ok(())
}

/// The block size of most file systems, in which holes are made, in bytes.
const BLOCK: usize = 4096;

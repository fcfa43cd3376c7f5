//! Tars that no tar program writes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// A tar that is written member by member, with only one of them in memory.
pub(super) struct Tar {
    file: BufWriter<File>,
}

impl Tar {
    /// Creates the file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { file: BufWriter::new(file) })
    }

    /// Writes a member with this content, whose header claims `size`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn member(&mut self, name: &str, kind: u8, size: u64, content: &[u8]) -> Result<()> {
        let mut header = [0; BLOCK];
        put(&mut header, 0, name.as_bytes());
        for (offset, field) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0")] {
            put(&mut header, offset, field.as_bytes());
        }
        put(&mut header, 124, format!("{size:011o}\0").as_bytes());
        put(&mut header, 136, b"00000000000\0        ");
        put(&mut header, 156, &[kind]);
        put(&mut header, 257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
        self.file.write_all(&header)?;
        self.file.write_all(content)?;
        let padding = content.len().next_multiple_of(BLOCK) - content.len();
        Ok(self.file.write_all(&vec![0; padding])?)
    }

    /// Writes a global pax header with these records.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn global(&mut self, records: &[u8]) -> Result<()> {
        self.member("global", b'g', records.len() as u64, records)
    }

    /// Writes empty files.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn empty_files(&mut self, count: u32) -> Result<()> {
        (0..count).try_for_each(|number| self.member(&format!("f{number}"), b'0', 0, b""))
    }

    /// Writes the end mark.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn end(mut self) -> Result<()> {
        self.file.write_all(&[0; 2 * BLOCK])?;
        Ok(self.file.flush()?)
    }
}

/// Returns a record of a pax header: its length, which includes the length itself, the key and the value.
pub(super) fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

#[expect(clippy::indexing_slicing, reason = "the offsets are constants of this file")]
fn put(header: &mut [u8; BLOCK], offset: usize, bytes: &[u8]) {
    header[offset..offset + bytes.len()].copy_from_slice(bytes);
}

const BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_a_record_counts_itself() {
        assert_eq!(record("a", "b"), "6 a=b\n");
        assert_eq!(record("path", &"x".repeat(90)).split(' ').next(), Some("99"));
        assert_eq!(record("path", &"x".repeat(91)).split(' ').next(), Some("101"));
    }
}

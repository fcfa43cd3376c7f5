//! `cargo xtask dist`: the binary for users, checked against what the README promises: small and static.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::static_build;
use crate::workspace::Workspace;

/// Builds the binary, checks it and prints its path and size.
///
/// # Errors
/// It does not build, is too large or needs a dynamic linker.
pub(crate) fn make(workspace: &Workspace) -> Result<()> {
    let path = static_build::coracle(workspace)?;
    let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let has_interpreter =
        has_interpreter(&image).with_context(|| format!("{} is not ELF64", path.display()))?;
    ensure!(!has_interpreter, "{} is not static: it names a dynamic linker", path.display());
    let size = image.len();
    println!("{}: {size} bytes, static", path.display());
    ensure!(size <= MAX_SIZE, "{size} bytes are more than the {MAX_SIZE} that are promised");
    Ok(())
}

/// Returns whether a little-endian ELF64 file has a PT_INTERP segment (ELF-64 Object File Format 1.5, section
/// 6); `None` for other files.
fn has_interpreter(image: &[u8]) -> Option<bool> {
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(*image.get(E_PHOFF..)?.first_chunk()?)).ok()?;
    let count = usize::from(u16::from_le_bytes(*image.get(E_PHNUM..)?.first_chunk()?));
    let headers = image.get(table..)?.get(..count * PROGRAM_HEADER)?;
    Some(headers.chunks_exact(PROGRAM_HEADER).any(|header| header.starts_with(&PT_INTERP.to_le_bytes())))
}

/// The limit that CONTRIBUTING.md promises, in bytes, including the agent.
const MAX_SIZE: usize = 4_000_000;

const E_PHOFF: usize = 0x20;
const E_PHNUM: usize = 0x38;
const PROGRAM_HEADER: usize = 56;
const PT_INTERP: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_program_has_an_interpreter() {
        let myself = fs::read("/proc/self/exe").unwrap();
        assert_eq!(has_interpreter(&myself), Some(true));
    }

    #[test]
    fn program_without_interp_segment_has_none() {
        let mut image = vec![0; 64 + PROGRAM_HEADER];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[E_PHOFF] = 64;
        image[E_PHNUM] = 1;
        image[64] = 1; // PT_LOAD
        assert_eq!(has_interpreter(&image), Some(false));
        image[64] = 3;
        assert_eq!(has_interpreter(&image), Some(true));
    }

    #[test]
    fn other_or_truncated_file_is_refused() {
        assert_eq!(has_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(has_interpreter(b"\x7fELF\x02\x01\0\0"), None);
    }
}

//! Loads a payload: an ELF64 file with one loadable segment and a PVH note, as `coracle-payload` makes them.
//! Called by whoever makes a guest here; it takes no other ELF file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Reads the file into the guest's RAM and returns the address of its 32-bit entry.
///
/// # Errors
/// The file cannot be read, is not a payload, or does not fit.
pub fn load(file: &mut File, ram: &mut [u8]) -> io::Result<u32> {
    let mut head = [0; HEAD];
    file.read_exact(&mut head)?;
    let segment = PROGRAM_HEADERS;
    let place = ram.get_mut(number(&head, segment + 24, 8)?..).ok_or_else(not_a_payload)?;
    let place = place.get_mut(..number(&head, segment + 32, 8)?).ok_or_else(not_a_payload)?;
    file.read_exact_at(place, number(&head, segment + 8, 8)? as u64)?;
    // The content of the note comes after three numbers and the name, which take 16 bytes.
    let note = number(&head, segment + PROGRAM_HEADER + 8, 8)?;
    u32::try_from(number(&head, note.saturating_add(16), 4)?).map_err(|_| not_a_payload())
}

/// Returns the little-endian number of `len` bytes at `offset`.
fn number(head: &[u8], offset: usize, len: usize) -> io::Result<usize> {
    let bytes = head.get(offset..).and_then(|rest| rest.get(..len)).ok_or_else(not_a_payload)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

fn not_a_payload() -> io::Error {
    io::Error::other("the file is not a payload, or the memory is too small for it")
}

/// The size of the ELF header, where the program headers begin (ELF-64, "File Header").
const PROGRAM_HEADERS: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More than the ELF header, both program headers and the note take.
const HEAD: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_another_kind_or_size_is_refused() {
        let path = std::env::temp_dir().join(format!("floor-{}-other.elf", std::process::id()));
        for (content, ram) in [
            (vec![0; 100], 1 << 20),
            (vec![0xff; 300], 1 << 20),
            (coracle_payload::Payload::named("hello-exit").unwrap().elf(), 1 << 20),
        ] {
            std::fs::write(&path, &content).unwrap();
            assert!(load(&mut File::open(&path).unwrap(), &mut vec![0; ram]).is_err());
        }
        std::fs::remove_file(path).unwrap();
    }
}

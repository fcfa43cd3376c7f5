//! Wraps a body or a whole image as a bzImage (Linux, Documentation/arch/x86/boot.rst). Called by
//! `Payload::bzimage` and `Payload::real_mode_bzimage`.

use crate::bodies;
use crate::tables::{self, Image};

/// Builds the file: two sectors of set-up with the header, then the protected-mode part, whose 64-bit entry
/// is `body`, and then `packed`. At 16 MiB, with 8 MiB to unpack.
pub(crate) fn file(body: &[u8], packed: &[u8]) -> Vec<u8> {
    let payload_offset = (ENTRY_64 + body.len()).next_multiple_of(16);
    let mut kernel = vec![0x90; payload_offset];
    tables::put(&mut kernel, ENTRY_64, body);
    kernel.extend_from_slice(packed);
    kernel.resize(kernel.len().next_multiple_of(16), 0);

    let mut file = setup(kernel.len());
    let mut put = |offset: usize, bytes: &[u8]| tables::put(&mut file, offset, bytes);
    put(0x20e, &((RELEASE_AT - 0x200) as u16).to_le_bytes()); // kernel_version
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: a 64-bit entry
    put(0x248, &(payload_offset as u32).to_le_bytes());
    put(0x24c, &(packed.len() as u32).to_le_bytes()); // payload_length
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x80_0000_u32.to_le_bytes()); // init_size
    put(RELEASE_AT, b"0.0.0-payload (a bare guest) #1\0");
    file.extend_from_slice(&kernel);
    file
}

/// Builds a file for a loader that enters the set-up code in real mode, as BIOS loaders and kvmtool do. The
/// set-up code only switches to protected mode and enters the image, which lies where the loader puts the
/// protected-mode part.
pub(crate) fn real_mode(image: &Image) -> Vec<u8> {
    let mut file = setup(image.bytes.len().next_multiple_of(16));
    tables::put(&mut file, SETUP_CODE, bodies::real_mode_code());
    file.extend_from_slice(&image.bytes);
    file.resize(file.len().next_multiple_of(16), 0);
    file
}

/// Returns the two sectors of set-up, with a header of protocol 2.15.
fn setup(kernel_len: usize) -> Vec<u8> {
    let mut setup = vec![0; SETUP];
    let mut put = |offset: usize, bytes: &[u8]| tables::put(&mut setup, offset, bytes);
    put(0x1f1, &[1]); // setup_sects, without the first
    put(0x1f4, &(kernel_len as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x200, &[0xeb, (SETUP_CODE - 0x202) as u8]); // a jump, whose distance gives the header's length
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    setup
}

const SETUP: usize = 1024;
/// The offset of the 64-bit entry in the protected-mode part.
const ENTRY_64: usize = 0x200;
const RELEASE_AT: usize = 0x300;
/// The end of the header. `src/asm/start.s` has the same figure.
const SETUP_CODE: usize = 0x26c;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_says_where_the_packed_data_is() {
        let file = file(&[0xf4; 7], b"packed");
        let field = |offset: usize| u32::from_le_bytes(file[offset..offset + 4].try_into().unwrap()) as usize;
        assert_eq!(&file[SETUP + field(0x248)..][..field(0x24c)], b"packed");
        assert_eq!(file.len(), SETUP + 16 * field(0x1f4));
        assert_eq!(file[SETUP + ENTRY_64], 0xf4);
    }
}

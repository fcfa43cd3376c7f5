//! Wraps a body and packed data as a bzImage (Linux, Documentation/arch/x86/boot.rst). Called by
//! `Payload::bzimage`.

use crate::tables;

/// Builds the file: two sectors of set-up with the header, then the protected-mode part, whose 64-bit entry
/// is `body`, and then `packed`. Protocol 2.15, at 16 MiB, with 8 MiB to unpack.
pub(crate) fn file(body: &[u8], packed: &[u8]) -> Vec<u8> {
    let payload_offset = (ENTRY_64 + body.len()).next_multiple_of(16);
    let mut kernel = vec![0x90; payload_offset];
    tables::put(&mut kernel, ENTRY_64, body);
    kernel.extend_from_slice(packed);
    kernel.resize(kernel.len().next_multiple_of(16), 0);

    let mut file = vec![0; SETUP];
    let mut put = |offset: usize, bytes: &[u8]| tables::put(&mut file, offset, bytes);
    put(0x1f1, &[1]); // setup_sects, without the first
    put(0x1f4, &(kernel.len() as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]); // a jump, whose distance gives the header's length
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x20e, &((RELEASE_AT - 0x200) as u16).to_le_bytes()); // kernel_version
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: a 64-bit entry
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x248, &(payload_offset as u32).to_le_bytes());
    put(0x24c, &(packed.len() as u32).to_le_bytes()); // payload_length
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x80_0000_u32.to_le_bytes()); // init_size
    put(RELEASE_AT, b"0.0.0-payload (a bare guest) #1\0");
    file.extend_from_slice(&kernel);
    file
}

const SETUP: usize = 1024;
/// The offset of the 64-bit entry in the protected-mode part.
const ENTRY_64: usize = 0x200;
const RELEASE_AT: usize = 0x300;

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

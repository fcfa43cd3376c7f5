//! Small images that tests make by hand, and a way to open bytes as an image.
#![allow(clippy::arithmetic_side_effects)]

use std::io::Write;

use vmm_sys_util::tempfile::TempFile;

use super::{ImageError, KernelImage};

/// Opens `bytes` as a kernel image, by way of a file.
pub(crate) fn open_bytes(bytes: &[u8]) -> Result<KernelImage, ImageError> {
    KernelImage::open(file_with(bytes).as_path())
}

/// A temporary file that holds `bytes`.
pub(crate) fn file_with(bytes: &[u8]) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(bytes).unwrap();
    file
}

/// A bzImage of protocol 2.15: 1 KiB of set-up, 4 KiB of kernel (bytes of 0xcc), at 16 MiB, with 2 MiB to
/// unpack.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image.resize(1024 + 4096, 0xcc);
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x1f1, &[1]);
    put(0x1f4, &256u32.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    image
}

/// A program header of a sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) virtual_address: u64,
    pub(crate) address: u64,
    pub(crate) file_len: u64,
    pub(crate) memory_len: u64,
    pub(crate) align: u64,
}

/// An ELF file that a test can bend before it becomes bytes.
#[derive(Debug, Clone)]
pub(crate) struct Elf {
    pub(crate) entry: u64,
    pub(crate) headers: Vec<Header>,
    /// The bytes that follow the headers, from [`Elf::BODY`] on.
    pub(crate) body: Vec<u8>,
}

impl Elf {
    /// File offset of the body.
    pub(crate) const BODY: u64 = 0x400;
    /// The address at which the first segment of [`Elf::payload`] is loaded.
    pub(crate) const ADDRESS: u64 = 0x20_0000;

    /// A payload of 256 bytes and as much zero memory, entered at its first byte, without a note.
    pub(crate) fn payload() -> Self {
        let load = Header {
            kind: 1,
            offset: Self::BODY,
            virtual_address: Self::ADDRESS,
            address: Self::ADDRESS,
            file_len: 256,
            memory_len: 512,
            align: 4096,
        };
        Self { entry: Self::ADDRESS, headers: vec![load], body: vec![0xf4; 256] }
    }

    /// Adds a note segment after the body.
    pub(crate) fn with_notes(mut self, notes: &[u8], align: u64) -> Self {
        let offset = Self::BODY + self.body.len() as u64;
        let len = notes.len() as u64;
        self.body.extend(notes);
        let address = 0;
        self.headers.push(Header {
            kind: 4,
            offset,
            virtual_address: 0,
            address,
            file_len: len,
            memory_len: len,
            align,
        });
        self
    }

    /// Adds a note with a PVH entry of 4 bytes.
    pub(crate) fn with_pvh_entry(self, entry: u32) -> Self {
        self.with_notes(&note(b"Xen\0", 18, &entry.to_le_bytes()), 4)
    }

    /// Links the first segment where Linux is, and puts the banner at `offset` of it.
    pub(crate) fn linked_as_linux(mut self, offset: usize) -> Self {
        const BANNER: &[u8] = b"Linux version 6.1.0 (test)";
        self.headers[0].virtual_address = 0xffff_ffff_8100_0000;
        self.body[offset..offset + BANNER.len()].copy_from_slice(BANNER);
        self
    }

    /// The same as a 32-bit file.
    pub(crate) fn bytes_32(&self) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0];
        file.resize(16, 0);
        file.extend([2u16, 3].map(u16::to_le_bytes).concat());
        file.extend([1u32, self.entry as u32, 52, 0, 0].map(u32::to_le_bytes).concat());
        file.extend([52u16, 32, self.headers.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
        for header in &self.headers {
            let Header { kind, offset, virtual_address, address, file_len, memory_len, align } = *header;
            let before = [u64::from(kind), offset, virtual_address, address, file_len, memory_len];
            file.extend(before.map(|number| (number as u32).to_le_bytes()).concat());
            file.extend([7u32, align as u32].map(u32::to_le_bytes).concat());
        }
        file.resize(Self::BODY as usize, 0);
        file.extend(&self.body);
        file
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for number in [64, 56, self.headers.len() as u16, 0, 0, 0] {
            file.extend(number.to_le_bytes());
        }
        for header in &self.headers {
            file.extend(header.kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            let Header { offset, virtual_address, address, file_len, memory_len, align, .. } = *header;
            for number in [offset, virtual_address, address, file_len, memory_len, align] {
                file.extend(number.to_le_bytes());
            }
        }
        assert!(file.len() as u64 <= Self::BODY);
        file.resize(Self::BODY as usize, 0);
        file.extend(&self.body);
        file
    }
}

/// Encodes a note: owner (with its NUL), type and content, padded to 4.
pub(crate) fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((owner.len() as u32).to_le_bytes());
    note.extend((content.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    note.extend(owner);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(content);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

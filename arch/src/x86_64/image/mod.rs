//! Kernel images: what a file is, whether it can boot here, and which bytes of it go where.
//!
//! The builder opens the user's kernel here before it makes a machine; [`crate::x86_64::load`] then copies
//! the segments. The content decides the format, never the name. Everything in the file is untrusted: a
//! length in it sizes no allocation, and an image that was accepted has only segments inside the file and
//! below 3 GiB. Nothing is decompressed here. The caller that unpacks the payload of a bzImage makes a second
//! image of the bytes.

mod bzimage;
mod elf;
mod foreign;
mod release;
#[cfg(test)]
pub(crate) mod samples;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use bzimage::BzImageHeader;
pub use elf::ElfDefect;
pub use foreign::{Foreign, Home};

use super::bytes::has_at;
use super::input_file::{FileRole, InputFile, InputFileError};
use crate::field::{KERNEL, PROTOCOL};

/// Bytes of a file that are read to find its format. The last mark, ext4's, lies at 1080.
const HEAD_LEN: u64 = 4096;

/// An open kernel image that was checked and can be loaded. A clone reads from the same open file.
#[derive(Debug, Clone)]
pub struct KernelImage {
    file: InputFile,
    contents: Contents,
    protocol: BootProtocol,
}

/// The two image formats that boot here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// ELF64 for x86-64: an unpacked `vmlinux`, another kernel or a payload. ELF32 with a PVH entry.
    Elf,
    /// A packed Linux kernel, `vmlinuz`, with a 64-bit entry.
    BzImage,
}

/// How the first CPU enters the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// 64-bit mode with a zero page in RSI (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64,
    /// 32-bit protected mode with `hvm_start_info` in EBX (Xen, docs/misc/pvh.pandoc).
    Pvh,
}

/// A range of the file, and the range of guest memory that it fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSegment {
    /// The offset at which the bytes start in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes in guest memory, at least `file_len`. Those after the file's bytes are zero.
    pub memory_len: u64,
}

/// The reason why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be opened, is not a regular file, or is empty.
    #[error(transparent)]
    File(#[from] InputFileError),
    /// Reading the file failed.
    #[error("{KERNEL} {path:?}: cannot read it: {source}")]
    Read {
        /// The kernel's path.
        path: PathBuf,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The file ends before what its header announces.
    #[error(
        "{KERNEL} {path:?} is truncated: its header says {needed} bytes, the file has {len}; copy or build it again"
    )]
    Truncated {
        /// The kernel's path.
        path: PathBuf,
        /// Bytes the header announces, at least.
        needed: u64,
        /// Bytes of the file.
        len: u64,
    },
    /// The file is of another kind.
    #[error("{KERNEL} {path:?} is not a kernel that boots here: it is {found}")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The kind of the file.
        found: Foreign,
    },
    /// The bzImage uses a boot protocol that has no 64-bit entry.
    #[error(
        "{KERNEL} {path:?}: this bzImage uses boot protocol {major}.{minor:02}, and 2.12 (Linux 3.8) is the oldest \
         that works"
    )]
    BzImageTooOld {
        /// The kernel's path.
        path: PathBuf,
        /// Major version of its protocol.
        major: u8,
        /// Minor version of its protocol.
        minor: u8,
    },
    /// The bzImage is a 32-bit kernel.
    #[error(
        "{KERNEL} {path:?}: this bzImage has no 64-bit entry: it is a 32-bit kernel, build it with CONFIG_64BIT=y"
    )]
    BzImageNot64Bit {
        /// The kernel's path.
        path: PathBuf,
    },
    /// A field of the bzImage header has an impossible value.
    #[error(
        "{KERNEL} {path:?}: the header of this bzImage is damaged: {field} is {value:#x}; copy or build it again"
    )]
    BzImageField {
        /// The kernel's path.
        path: PathBuf,
        /// The field, as the boot protocol names it.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The image has no entry for the PVH protocol.
    #[error("{KERNEL} {path:?} has no PVH entry: {fix}")]
    NoPvhEntry {
        /// The kernel's path.
        path: PathBuf,
        /// The fix.
        fix: String,
    },
    /// A 32-bit ELF file, which has a PVH entry only, was to be entered at a 64-bit entry.
    #[error("{KERNEL} {path:?} is a 32-bit ELF file, which has a PVH entry only; leave {PROTOCOL} linux out")]
    No64BitEntry {
        /// The kernel's path.
        path: PathBuf,
    },
    /// The ELF headers are damaged or ask for something impossible.
    #[error("{KERNEL} {path:?}: this ELF file cannot be loaded: {defect}")]
    Elf {
        /// The kernel's path.
        path: PathBuf,
        /// The defect.
        defect: ElfDefect,
    },
}

impl KernelImage {
    /// Opens `path` and checks that it is an image that boots here.
    ///
    /// # Errors
    /// The file cannot be read, is of another kind, or is damaged. The message names the kind and what would
    /// work.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::new(InputFile::open(FileRole::Kernel, path)?)
    }

    /// Checks that `bytes`, which were made of the file `path`, are an image that boots here.
    ///
    /// # Errors
    /// As [`KernelImage::open`]; the messages name `path`.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ImageError> {
        Self::new(InputFile::from_bytes(FileRole::Kernel, path, bytes)?)
    }

    /// Checks that `unpacked`, which was made of the file `path`, is an image that boots here.
    ///
    /// # Errors
    /// As [`KernelImage::open`]; the messages name `path`.
    pub fn from_file(path: &Path, unpacked: File) -> Result<Self, ImageError> {
        Self::new(InputFile::from_file(FileRole::Kernel, path, unpacked)?)
    }

    fn new(file: InputFile) -> Result<Self, ImageError> {
        let contents = Contents::parse(&file).map_err(|defect| defect.at(&file))?;
        let protocol = contents.usual_protocol();
        Ok(Self { file, contents, protocol })
    }

    /// Returns the same image, entered by `protocol` instead of the protocol that suits it best.
    ///
    /// # Errors
    /// The image has no such entry.
    pub fn with_protocol(self, protocol: BootProtocol) -> Result<Self, ImageError> {
        let image = Self { protocol, ..self };
        if protocol == BootProtocol::Pvh && image.contents.pvh_entry.is_none() {
            let fix = match image.format() {
                ImageFormat::BzImage => {
                    format!("a bzImage has a 64-bit entry only; leave {PROTOCOL} pvh out")
                }
                ImageFormat::Elf => format!("leave {PROTOCOL} pvh out, or build it with CONFIG_PVH=y"),
            };
            return Err(ImageError::NoPvhEntry { path: image.path().to_owned(), fix });
        }
        if protocol == BootProtocol::Linux64 && !image.contents.has_64_bit_entry {
            return Err(ImageError::No64BitEntry { path: image.path().to_owned() });
        }
        let entry = image.entry();
        if image.contents.has_file_bytes_at(entry) {
            return Ok(image);
        }
        Err(Defect::Elf(ElfDefect::EntryOutside(entry)).at(&image.file))
    }

    /// Returns the path of the file that the image is in, or was made from.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns the format of the file.
    pub fn format(&self) -> ImageFormat {
        match self.contents.bzimage {
            Some(_) => ImageFormat::BzImage,
            None => ImageFormat::Elf,
        }
    }

    /// Returns whether the image is a Linux kernel. Each bzImage counts as one. An ELF file is one if it is
    /// linked at Linux's address and has Linux's version text.
    pub fn is_linux(&self) -> bool {
        self.contents.is_linux
    }

    /// Returns whether the image is a bzImage whose version text is not Linux's (memtest86+). It starts like
    /// a Linux, but advice about Linux does not apply to it.
    pub fn names_other_program(&self) -> bool {
        self.contents.names_other
    }

    /// Returns how the image is entered. Unless a protocol was set, that is the 64-bit entry for Linux. For
    /// another ELF file it is the PVH entry if there is one, and the 64-bit entry otherwise.
    pub fn protocol(&self) -> BootProtocol {
        self.protocol
    }

    /// Returns the guest-physical address of the first instruction under [`KernelImage::protocol`].
    pub fn entry(&self) -> u64 {
        match (self.protocol, self.contents.pvh_entry) {
            (BootProtocol::Pvh, Some(entry)) => u64::from(entry),
            _ => self.contents.entry,
        }
    }

    /// Returns the release of a Linux kernel as `uname -r` prints it, which names the directory of its
    /// modules. It never contains a `/`. A bzImage has it in its header, an ELF file in its version text.
    pub fn release(&self) -> Option<&str> {
        self.contents.release.as_deref()
    }

    /// Returns the 32-bit entry of the PVH protocol, if an ELF note names one.
    pub fn pvh_entry(&self) -> Option<u32> {
        self.contents.pvh_entry
    }

    /// Returns the segments, sorted by address: never empty, never overlapping.
    pub fn segments(&self) -> &[ImageSegment] {
        &self.contents.segments
    }

    /// Returns the first address after the memory that the kernel uses before it reads its memory map: its
    /// segments and, for a bzImage, the area in which it unpacks itself.
    pub fn memory_end(&self) -> u64 {
        self.contents.memory_end
    }

    /// Returns the header fields of a bzImage.
    pub fn bzimage(&self) -> Option<&BzImageHeader> {
        self.contents.bzimage.as_ref()
    }

    /// Returns the length in bytes of the packed kernel inside a bzImage, including the unpacked length that
    /// may follow it. `None` if the image is not a bzImage or its header names no payload.
    pub fn payload_len(&self) -> Option<u64> {
        self.bzimage().and_then(|bzimage| bzimage.payload).map(|payload| payload.len)
    }

    /// Fills `buf` from `offset` of the packed kernel.
    ///
    /// # Errors
    /// It ends before `buf` is full, there is none, or the file cannot be read.
    pub fn read_payload(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let payload = self.bzimage().and_then(|bzimage| bzimage.payload);
        let place = payload.and_then(|payload| {
            let end = offset.checked_add(buf.len() as u64)?;
            (end <= payload.len).then(|| payload.file_offset.checked_add(offset))?
        });
        let read = match place {
            Some(place) => self.file.read_at(place, buf),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        read.map_err(|source| Defect::Read(source).at(&self.file))
    }

    /// Returns the file itself.
    pub fn file(&self) -> &InputFile {
        &self.file
    }
}

/// The facts from the headers of an accepted image.
#[derive(Debug, Clone)]
struct Contents {
    segments: Vec<ImageSegment>,
    memory_end: u64,
    entry: u64,
    /// Whether `entry` is one for 64-bit mode.
    has_64_bit_entry: bool,
    pvh_entry: Option<u32>,
    is_linux: bool,
    /// Whether the version text of a bzImage is not Linux's.
    names_other: bool,
    release: Option<String>,
    bzimage: Option<BzImageHeader>,
}

/// An [`ImageError`] before it knows its path.
#[derive(Debug)]
enum Defect {
    Read(io::Error),
    Truncated { needed: u64 },
    Foreign(Foreign),
    BzImageTooOld { major: u8, minor: u8 },
    BzImageNot64Bit,
    BzImageField { field: &'static str, value: u64 },
    Elf(ElfDefect),
}

impl Contents {
    fn parse(file: &InputFile) -> Result<Self, Defect> {
        let mut buffer = [0; HEAD_LEN as usize];
        let head_len = usize::try_from(file.len().min(HEAD_LEN)).unwrap_or_default();
        let head = buffer.get_mut(..head_len).unwrap_or_default();
        file.read_at(0, head)?;
        if elf::is_elf(head) {
            elf::parse(file, head)
        } else if has_at(head, bzimage::MAGIC_OFFSET, bzimage::MAGIC) {
            bzimage::parse(file, head)
        } else {
            Err(Defect::Foreign(foreign::identify(head)))
        }
    }

    fn usual_protocol(&self) -> BootProtocol {
        match self.pvh_entry {
            Some(_) if !self.is_linux => BootProtocol::Pvh,
            Some(_) | None => BootProtocol::Linux64,
        }
    }

    /// Returns whether bytes of the file, and not only zeros, are loaded at `address`.
    fn has_file_bytes_at(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            address.checked_sub(segment.address).is_some_and(|offset| offset < segment.file_len)
        })
    }
}

impl Defect {
    fn at(self, file: &InputFile) -> ImageError {
        let path = file.path().to_owned();
        match self {
            Self::Read(source) => ImageError::Read { path, source },
            Self::Truncated { needed } => ImageError::Truncated { path, needed, len: file.len() },
            Self::Foreign(found) => ImageError::Foreign { path, found },
            Self::BzImageTooOld { major, minor } => ImageError::BzImageTooOld { path, major, minor },
            Self::BzImageNot64Bit => ImageError::BzImageNot64Bit { path },
            Self::BzImageField { field, value } => ImageError::BzImageField { path, field, value },
            Self::Elf(defect) => ImageError::Elf { path, defect },
        }
    }
}

impl From<io::Error> for Defect {
    fn from(source: io::Error) -> Self {
        Self::Read(source)
    }
}

impl From<ElfDefect> for Defect {
    fn from(defect: ElfDefect) -> Self {
        Self::Elf(defect)
    }
}

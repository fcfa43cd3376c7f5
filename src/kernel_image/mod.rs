//! The user's kernel, ready to be loaded: told apart by content, unpacked here where that is faster than letting the
//! guest do it, entered as asked for. The builder calls [`open`]; `xtask` and other programs that want the `vmlinux` in
//! a `vmlinuz` call [`unpack`].
//!
//! What can be loaded at all, and how, is [`coracle_arch`]'s knowledge.

mod unpack;

use std::path::{Path, PathBuf};

use coracle_arch::x86_64::image::{BootProtocol, ImageError, ImageFormat, KernelImage};

pub use self::unpack::{UnpackError, unpack};
use crate::compression::Compression;
use crate::config::KernelProtocol;

/// What is to be done with a kernel file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelRequest<'a> {
    pub path: &'a Path,
    pub protocol: KernelProtocol,
    /// Whether the kernel is to unpack itself, to an address of its own choice.
    pub kaslr: bool,
}

/// Why a kernel file cannot be booted as asked for.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It is no kernel, or damaged, or cannot be entered in that way.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel packed in it is damaged.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// An unpacked kernel cannot choose its address.
    #[error(
        "--kaslr needs a kernel that unpacks itself, but {path:?} is an ELF file; give its bzImage (vmlinuz)"
    )]
    KaslrOfElf {
        /// The kernel's path.
        path: PathBuf,
    },
}

/// Opens the kernel, and unpacks it when that is the faster way or the only one to the wanted entry.
///
/// # Errors
/// The file is no kernel, is damaged, or has no such entry.
pub(crate) fn open(request: KernelRequest<'_>) -> Result<KernelImage, KernelError> {
    let KernelRequest { path, protocol, kaslr } = request;
    let packed = KernelImage::open(path)?;
    let unpacked = match packed.format() {
        ImageFormat::Elf if kaslr => return Err(KernelError::KaslrOfElf { path: path.to_owned() }),
        ImageFormat::Elf => None,
        ImageFormat::BzImage if kaslr => None,
        ImageFormat::BzImage if protocol == KernelProtocol::Pvh => unpack::unpack_if(&packed, |_| true)?,
        ImageFormat::BzImage => unpack::unpack_if(&packed, is_faster_here)?,
    };
    let image = match unpacked {
        Some(elf) => KernelImage::from_bytes(path, elf)?,
        None => packed,
    };
    Ok(match protocol {
        KernelProtocol::Auto => image,
        KernelProtocol::Linux => image.with_protocol(BootProtocol::Linux64)?,
        KernelProtocol::Pvh => image.with_protocol(BootProtocol::Pvh)?,
    })
}

/// Whether the host unpacks a kernel sooner than the guest would. As measured (`docs/kernel-formats.md`).
fn is_faster_here(compression: Compression) -> bool {
    match compression {
        Compression::Lz4Legacy | Compression::Gzip => true,
        Compression::Xz | Compression::Zstd => false,
    }
}

//! Prepares the user's kernel for loading: recognizes it by its content, decompresses it if its entry point
//! requires that, and chooses the entry point. The builder calls `open`; `xtask` and other programs that want
//! the `vmlinux` in a `vmlinuz` call [`unpack`].
//!
//! [`coracle_arch`] knows what can be loaded, and how.

mod unpack;

use std::path::{Path, PathBuf};

use coracle_arch::field::KASLR;
use coracle_arch::x86_64::image::{BootProtocol, ImageError, ImageFormat, KernelImage};

pub use self::unpack::{UnpackError, unpack};

/// A kernel file, and how to enter it.
#[derive(Debug, Clone, Copy)]
pub struct KernelRequest<'a> {
    /// The path of the file.
    pub path: &'a Path,
    /// The entry point. `None` selects for Linux the 64-bit entry, and for any other ELF image its PVH entry,
    /// if it has one.
    pub protocol: Option<BootProtocol>,
    /// Whether the kernel must be one that can randomize its address (KASLR).
    pub kaslr: bool,
}

/// Why a kernel file cannot be booted as requested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file is not a kernel, is damaged, or has no such entry point.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The compressed kernel in it is damaged.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// An uncompressed kernel cannot randomize its address.
    #[error(
        "{KASLR} needs a kernel that decompresses itself, but {path:?} is an ELF file; give its bzImage (vmlinuz)"
    )]
    KaslrOfElf {
        /// The path of the kernel.
        path: PathBuf,
    },
}

/// Opens the kernel, and decompresses it if only that leads to the requested entry point. Otherwise Linux
/// decompresses itself, which is faster and lets it randomize its address.
///
/// # Errors
/// The file is not a kernel, is damaged, or has no such entry point.
pub fn open(request: KernelRequest<'_>) -> Result<KernelImage, KernelError> {
    let KernelRequest { path, protocol, kaslr } = request;
    let packed = KernelImage::open(path)?;
    let unpacked = match packed.format() {
        ImageFormat::Elf if kaslr => return Err(KernelError::KaslrOfElf { path: path.to_owned() }),
        ImageFormat::BzImage if protocol == Some(BootProtocol::Pvh) && !kaslr => {
            unpack::unpack_known(&packed)?
        }
        ImageFormat::Elf | ImageFormat::BzImage => None,
    };
    let image = match unpacked {
        Some(elf) => KernelImage::from_file(path, elf)?,
        None => packed,
    };
    Ok(match protocol {
        Some(protocol) => image.with_protocol(protocol)?,
        None => image,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use coracle_payload::Payload;

    use super::*;
    use crate::compression::Compression;
    use crate::compression::samples::{ALL, pack};

    /// A file that is removed on drop.
    struct Kernel(PathBuf);

    impl Kernel {
        fn new(name: &str, bytes: &[u8]) -> Kernel {
            let path = std::env::temp_dir().join(format!("coracle-kernel-{name}-{}", std::process::id()));
            fs::write(&path, bytes).unwrap();
            Kernel(path)
        }

        /// Creates a bzImage whose compressed payload is not Linux.
        fn packed(name: &str, compression: Compression) -> Kernel {
            let elf = Payload::named("hello-exit").unwrap().elf();
            let mut packed = pack(compression, &elf);
            if compression != Compression::Gzip {
                packed.extend_from_slice(&(elf.len() as u32).to_le_bytes());
            }
            Kernel::new(name, &Payload::named("exit-7").unwrap().bzimage(&packed))
        }

        fn open(
            &self,
            protocol: impl Into<Option<BootProtocol>>,
            kaslr: bool,
        ) -> Result<KernelImage, KernelError> {
            open(KernelRequest { path: &self.0, protocol: protocol.into(), kaslr })
        }
    }

    impl Drop for Kernel {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn bzimage_is_left_to_unpack_itself() {
        for (compression, kaslr) in
            ALL.into_iter().flat_map(|compression| [(compression, false), (compression, true)])
        {
            let kernel = Kernel::packed("auto", compression);
            let image = kernel.open(None, kaslr).unwrap();
            assert_eq!((image.format(), image.path()), (ImageFormat::BzImage, &*kernel.0), "{compression}");
            assert_eq!(image.release(), Some("0.0.0-payload"));
        }
    }

    #[test]
    fn pvh_entry_of_a_packed_kernel_is_reached_by_unpacking() {
        for compression in ALL {
            let kernel = Kernel::packed("pvh", compression);
            let image = kernel.open(BootProtocol::Pvh, false).unwrap();
            assert_eq!(image.protocol(), BootProtocol::Pvh, "{compression}");
            let error = kernel.open(BootProtocol::Pvh, true).unwrap_err().to_string();
            assert!(error.contains("has no PVH entry"), "{error}");
        }
    }

    #[test]
    fn bzimage_that_cannot_be_unpacked_has_its_own_entry_only() {
        let kernel = Kernel::new("own", &Payload::named("exit-7").unwrap().bzimage(b"BZh9"));
        let image = kernel.open(BootProtocol::Linux64, false).unwrap();
        assert_eq!((image.format(), image.entry()), (ImageFormat::BzImage, 0x100_0200));
        let error = kernel.open(BootProtocol::Pvh, false).unwrap_err().to_string();
        assert!(error.contains("has no PVH entry"), "{error}");
    }

    #[test]
    fn elf_file_cannot_move_itself() {
        let kernel = Kernel::new("elf", &Payload::named("hello-exit").unwrap().elf());
        assert_eq!(kernel.open(BootProtocol::Linux64, false).unwrap().protocol(), BootProtocol::Linux64);
        let error = kernel.open(None, true).unwrap_err().to_string();
        assert!(error.contains("kaslr") && error.contains(kernel.0.to_str().unwrap()), "{error}");
    }

    #[test]
    fn payload_that_unpacks_to_no_kernel_is_refused_with_the_user_s_path() {
        let kernel = Kernel::new(
            "text",
            &Payload::named("exit-7").unwrap().bzimage(&pack(Compression::Gzip, b"text")),
        );
        let error = kernel.open(BootProtocol::Pvh, false).unwrap_err().to_string();
        assert!(error.contains(kernel.0.to_str().unwrap()) && error.contains("a text file"), "{error}");
    }
}

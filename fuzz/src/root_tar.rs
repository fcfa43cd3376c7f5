//! A tar as the root of a guest: read, and written as an image.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use coracle::config::{RootConfig, RootKind};
use coracle_arch::nameless_file;
use coracle_image::rootfs::write_image;

/// `data` is the tar, not packed: what unpacks it are the decoders of others. One that is taken gives an
/// image, which says its own length where the format has it.
pub fn root_tar(data: &[u8]) {
    if PACKED.iter().any(|magic| data.starts_with(magic)) {
        return;
    }
    let file = |content: &[u8]| -> File {
        let file = nameless_file::create_in(&std::env::temp_dir()).unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    };
    let (source, image) = (file(data), file(&[]));
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let root = RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) };
    let Ok(report) = write_image(&root, &image) else { return };
    assert!(report.files >= 2, "there is a file in it");
    assert_eq!(report.bytes, image.metadata().unwrap().len());
    let mut block = [0; 128];
    image.read_exact_at(&mut block, 1024).unwrap();
    assert_eq!(block[..4], 0xe0f5_e1e2_u32.to_le_bytes());
    let blocks = u32::from_le_bytes(block[36..40].try_into().unwrap());
    assert_eq!(u64::from(blocks) * 4096, report.bytes);
}

/// How packed tars begin: gzip, xz, Zstandard, LZ4.
pub(super) const PACKED: [&[u8]; 4] = [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"];

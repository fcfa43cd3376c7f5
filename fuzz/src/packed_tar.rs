//! A packed tar as the root of a guest: unpacked by the decoders of others, within the limits that are set
//! here.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use coracle::config::{RootConfig, RootKind};
use coracle_arch::nameless_file;
use coracle_image::rootfs::write_image;

/// `data` is the tar, packed by what its first bytes say. What is not packed is for the target `root_tar`.
pub fn packed_tar(data: &[u8]) {
    if !super::root_tar::PACKED.iter().any(|magic| data.starts_with(magic)) {
        return;
    }
    let source = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    source.write_all_at(data, 0).unwrap();
    let image = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let root = RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) };
    if let Ok(report) = write_image(&root, &image) {
        assert!(report.files >= 2, "there is a file in it");
        assert_eq!(report.bytes, image.metadata().unwrap().len());
    }
}

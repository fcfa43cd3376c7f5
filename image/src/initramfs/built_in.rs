//! Recognizes the drivers that are built into an uncompressed kernel by their names among its strings. This
//! is used only if the kernel's modules cannot be found, to decide whether that matters.

use std::io::Read;
use std::path::Path;

use coracle_arch::regular_file;
use memchr::memmem;

/// Returns the modules that are not known to be built into the kernel at `path`; for a compressed kernel, all
/// of them. A driver has the name of its module, with `-` or `_`, between zero bytes.
pub(super) fn missing_of<'a>(path: &Path, modules: &[&'a str]) -> Vec<&'a str> {
    let mut missing = modules.to_vec();
    let Ok((file, _)) = regular_file::open(path) else { return missing };
    let mut file = file.take(MOST_BYTES);
    let mut piece = Vec::new();
    while !missing.is_empty() {
        // A name may begin at the end of a piece and continue in the next.
        let kept = piece.len().min(LONGEST);
        piece.drain(..piece.len().saturating_sub(kept));
        match (&mut file).take(PIECE).read_to_end(&mut piece) {
            Ok(1..) => missing.retain(|module| !has_name(&piece, module)),
            Ok(0) | Err(_) => break,
        }
    }
    missing
}

fn has_name(bytes: &[u8], module: &str) -> bool {
    let forms = [module.to_owned(), module.replace('_', "-")];
    forms.iter().any(|name| memmem::find(bytes, format!("\0{name}\0").as_bytes()).is_some())
}

/// The largest kernel that is searched, in bytes; no uncompressed kernel is larger.
const MOST_BYTES: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;
/// Longer than the longest name of a module with two zero bytes.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn names_are_found_alone_and_across_pieces() {
        let file = TempFile::new().unwrap();
        let mut bytes = vec![b'x'; PIECE as usize - 4];
        bytes.extend_from_slice(b"\0virtio-mmio\0 \0virtio_blk\0 virtio_net\0 \0virtio_rng_x\0");
        std::fs::write(file.as_path(), &bytes).unwrap();
        let modules = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"];
        assert_eq!(missing_of(file.as_path(), &modules), ["virtio_net", "virtio_rng"]);
        assert_eq!(missing_of(Path::new("/no/such/kernel"), &modules), modules);
    }
}

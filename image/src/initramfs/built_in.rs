//! Recognizes the drivers that are built into an uncompressed kernel by their names among its strings. This
//! is used only if the kernel's modules cannot be found, to decide whether that matters.

use coracle_arch::x86_64::input_file::InputFile;
use memchr::memmem;

/// Returns the modules that are not known to be built into the kernel in `file`; for a compressed kernel, all
/// of them. A driver has the name of its module, with `-` or `_`, between zero bytes.
pub(super) fn missing_of<'a>(file: &InputFile, modules: &[&'a str]) -> Vec<&'a str> {
    let mut missing = modules.to_vec();
    let len = file.len().min(MAX_BYTES);
    let (mut at, mut piece) = (0, Vec::new());
    while at < len && !missing.is_empty() {
        // A name may begin at the end of a piece and continue in the next.
        let kept = piece.len().min(LONGEST);
        piece.drain(..piece.len().saturating_sub(kept));
        let next = PIECE.min(len.saturating_sub(at));
        piece.resize(kept.saturating_add(usize::try_from(next).unwrap_or(0)), 0);
        if piece.get_mut(kept..).is_none_or(|new| file.read_at(at, new).is_err()) {
            break;
        }
        missing.retain(|module| !has_name(&piece, module));
        at = at.saturating_add(next);
    }
    missing
}

fn has_name(bytes: &[u8], module: &str) -> bool {
    let forms = [module.to_owned(), module.replace('_', "-")];
    forms.iter().any(|name| memmem::find(bytes, format!("\0{name}\0").as_bytes()).is_some())
}

/// The largest kernel that is searched, in bytes; no uncompressed kernel is larger.
const MAX_BYTES: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;
/// Longer than the longest name of a module with two zero bytes.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use coracle_arch::x86_64::input_file::FileRole;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn names_are_found_alone_and_across_pieces() {
        let file = TempFile::new().unwrap();
        let mut bytes = vec![b'x'; PIECE as usize - 4];
        bytes.extend_from_slice(b"\0virtio-mmio\0 \0virtio_blk\0 virtio_net\0 \0virtio_rng_x\0");
        std::fs::write(file.as_path(), &bytes).unwrap();
        let modules = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"];
        let open = || InputFile::open(FileRole::Kernel, file.as_path()).unwrap();
        assert_eq!(missing_of(&open(), &modules), ["virtio_net", "virtio_rng"]);
        // A file that has become shorter shows no names.
        let open = open();
        file.as_file().set_len(1).unwrap();
        assert_eq!(missing_of(&open, &modules), modules);
    }
}

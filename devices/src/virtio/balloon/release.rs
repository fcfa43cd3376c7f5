//! Returns pages of guest RAM to the host.

use crate::memory::{GuestMemory, MappingKind, Span};
use crate::virtio::StopFlag;

/// Returns pages by the `madvise` that suits the mapping of the memory.
#[derive(Debug)]
pub(super) struct Releaser {
    stop: StopFlag,
}

impl Releaser {
    pub(super) fn new(stop: StopFlag) -> Self {
        Self { stop }
    }

    /// Returns whether no more work may be begun.
    pub(super) fn has_to_stop(&self) -> bool {
        self.stop.is_raised()
    }

    /// Allows work again after a stop was given up.
    pub(super) fn go_on(&self) {
        self.stop.lower();
    }

    /// Returns the whole pages in `span`, which is a range of `memory`, to the host, until it has to stop.
    /// Returns the number of bytes. The guest then reads zeroes there, or the content of the file below a
    /// private mapping.
    pub(super) fn release(&self, memory: &GuestMemory, span: Span) -> u64 {
        let Some(mut pages) = whole_pages(span) else { return 0 };
        let mut released = 0_u64;
        while pages.iov_len > 0 && !self.has_to_stop() {
            let step = STEP.wrapping_sub(pages.iov_base.addr() & STEP.wrapping_sub(1)).min(pages.iov_len);
            if !release_pages(libc::iovec { iov_len: step, ..pages }, memory.kind()) {
                break;
            }
            released = released.saturating_add(step as u64);
            pages.iov_base = pages.iov_base.wrapping_byte_add(step);
            pages.iov_len = pages.iov_len.saturating_sub(step);
        }
        released
    }
}

/// Returns false if these pages cannot be returned: reserved huge pages can only be returned as a whole.
fn release_pages(pages: libc::iovec, kind: MappingKind) -> bool {
    let how = match kind {
        // Drops the pages of this mapping alone. A file below it keeps its content.
        MappingKind::Private => libc::MADV_DONTNEED,
        // Punches a hole into the file, which would keep pages that are only unmapped.
        MappingKind::SharedFile => libc::MADV_REMOVE,
    };
    // SAFETY: the pages lie inside guest RAM, which stays mapped and which no reference in this process
    // points to. The guest has declared their content to be of no use.
    unsafe { libc::madvise(pages.iov_base, pages.iov_len, how) == 0 }
}

/// Returns the pages that lie in `span` as a whole.
fn whole_pages(span: Span) -> Option<libc::iovec> {
    let [iovec] = Span::iovecs(std::slice::from_ref(&span)) else { return None };
    let start = iovec.iov_base.addr();
    let first = start.checked_next_multiple_of(PAGE)?;
    let end = start.checked_add(iovec.iov_len)? & !PAGE.wrapping_sub(1);
    let len = end.checked_sub(first).filter(|len| *len > 0)?;
    Some(libc::iovec { iov_base: iovec.iov_base.with_addr(first), iov_len: len })
}

/// The size of the host's smallest pages in bytes.
const PAGE: usize = 4096;
/// The bytes between two looks at the stop flag: the host's largest page, which can only be returned as a
/// whole. The host frees as much in some ten milliseconds.
const STEP: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

    use super::*;
    use crate::virtio::testing::{BUFFERS, memory};

    const PAGES: usize = 8;
    const BYTES: usize = PAGES * PAGE;

    fn releaser() -> Releaser {
        Releaser::new(StopFlag::default())
    }

    /// Makes a file in memory, whose pages are full of ones, of twos and so on.
    fn file() -> File {
        // SAFETY: the name is a string with an end.
        let fd =
            unsafe { libc::memfd_create(c"release".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.write_all_at(&(0..BYTES).map(original).collect::<Vec<u8>>(), 0).unwrap();
        file
    }

    fn original(at: usize) -> u8 {
        (at / PAGE) as u8 + 1
    }

    /// Maps the file as guest RAM from address 0.
    fn map(file: &File, kind: MappingKind) -> GuestMemory {
        let flags = match kind {
            MappingKind::Private => libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            MappingKind::SharedFile => libc::MAP_SHARED,
        };
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let region = MmapRegion::build(Some(offset), BYTES, prot, flags).unwrap();
        let region = GuestRegionMmap::<()>::new(region, GuestAddress(0)).unwrap();
        GuestMemory::new(GuestMemoryMmap::from_regions(vec![region]).unwrap(), kind)
    }

    fn content(memory: &GuestMemory) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        memory.mmap().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn fill(memory: &GuestMemory, byte: u8) {
        memory.mmap().write_slice(&[byte; BYTES], GuestAddress(0)).unwrap();
    }

    #[test]
    fn only_whole_pages_go_back_and_the_rest_stays() {
        let memory = memory();
        let all = |byte: u8| vec![byte; 5 * PAGE];
        let cases = [
            (0, 5 * PAGE, 5),
            (1, 5 * PAGE - 1, 4),
            (1, 5 * PAGE - 2, 3),
            (PAGE, PAGE, 1),
            (100, PAGE, 0),
            (0, 1, 0),
        ];
        for (offset, len, pages) in cases {
            memory.mmap().write_slice(&all(7), GuestAddress(BUFFERS)).unwrap();
            let span = memory.span(BUFFERS + offset as u64, len as u32).unwrap();
            assert_eq!(releaser().release(&memory, span), (pages * PAGE) as u64, "{offset} + {len}");
            let mut after = all(0);
            memory.mmap().read_slice(&mut after, GuestAddress(BUFFERS)).unwrap();
            assert_eq!(after.iter().filter(|byte| **byte == 0).count(), pages * PAGE);
            assert!(after[..offset].iter().chain(&after[offset + len..]).all(|byte| *byte == 7));
        }
    }

    #[test]
    fn pages_of_a_shared_file_leave_the_file() {
        let file = file();
        let memory = map(&file, MappingKind::SharedFile);
        let before = file.metadata().unwrap().blocks();
        let span = memory.span(PAGE as u64, 3 * PAGE as u32).unwrap();
        assert_eq!(releaser().release(&memory, span), 3 * PAGE as u64);
        assert_eq!(before - file.metadata().unwrap().blocks(), 3 * PAGE as u64 / 512);
        let expected = |at: usize| if (1..4).contains(&(at / PAGE)) { 0 } else { original(at) };
        assert!(content(&memory).into_iter().eq((0..BYTES).map(expected)));
    }

    /// A machine that shares its content with others, by private mappings of one file, gives pages back.
    #[test]
    fn pages_of_a_private_mapping_change_neither_the_file_nor_other_mappings() {
        for is_sealed in [false, true] {
            let file = file();
            if is_sealed {
                // SAFETY: the call changes nothing but the file.
                let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
                assert_eq!(sealed, 0);
            }
            let [giver, other, untouched] = [(); 3].map(|()| map(&file, MappingKind::Private));
            fill(&giver, 0xaa);
            fill(&other, 0xbb);
            let before = file.metadata().unwrap().blocks();
            let span = giver.span(PAGE as u64, 3 * PAGE as u32).unwrap();
            assert_eq!(releaser().release(&giver, span), 3 * PAGE as u64);
            let expected = |at: usize| if (1..4).contains(&(at / PAGE)) { original(at) } else { 0xaa };
            assert!(content(&giver).into_iter().eq((0..BYTES).map(expected)), "{is_sealed}");
            assert!(content(&other).into_iter().all(|byte| byte == 0xbb), "{is_sealed}");
            assert!(content(&untouched).into_iter().eq((0..BYTES).map(original)), "{is_sealed}");
            let mut bytes = vec![0; BYTES];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.into_iter().eq((0..BYTES).map(original)), "{is_sealed}");
            assert_eq!(file.metadata().unwrap().blocks(), before, "{is_sealed}");
        }
    }
}

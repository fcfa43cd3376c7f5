//! Returns pages of guest RAM to the host.

use crate::memory::Span;
use crate::virtio::StopFlag;

/// Returns pages by the `madvise` that suits the mapping of the memory.
#[derive(Debug)]
pub(super) struct Releaser {
    how: libc::c_int,
    stop: StopFlag,
}

impl Releaser {
    pub(super) fn new(stop: StopFlag) -> Self {
        Self { how: libc::MADV_REMOVE, stop }
    }

    /// Returns whether no more work may be begun.
    pub(super) fn has_to_stop(&self) -> bool {
        self.stop.is_raised()
    }

    /// Allows work again after a stop was given up.
    pub(super) fn go_on(&self) {
        self.stop.lower();
    }

    /// Returns the whole pages in `span` to the host, until it has to stop. Returns the number of bytes. The
    /// guest then reads zeroes there, or the content of the file below a private mapping.
    pub(super) fn release(&mut self, span: Span) -> u64 {
        let Some(mut pages) = whole_pages(span) else { return 0 };
        let mut released = 0_u64;
        while pages.iov_len > 0 && !self.has_to_stop() {
            let step = STEP.wrapping_sub(pages.iov_base.addr() & STEP.wrapping_sub(1)).min(pages.iov_len);
            if !self.release_pages(libc::iovec { iov_len: step, ..pages }) {
                break;
            }
            released = released.saturating_add(step as u64);
            pages.iov_base = pages.iov_base.wrapping_byte_add(step);
            pages.iov_len = pages.iov_len.saturating_sub(step);
        }
        released
    }

    /// Returns false if these pages cannot be returned.
    fn release_pages(&mut self, pages: libc::iovec) -> bool {
        loop {
            // SAFETY: the pages lie inside guest RAM, which stays mapped and which no reference in this
            // process points to. The guest has declared their content to be of no use.
            if unsafe { libc::madvise(pages.iov_base, pages.iov_len, self.how) } == 0 {
                return true;
            }
            if self.how != libc::MADV_REMOVE {
                // Huge pages can only be returned as a whole.
                return false;
            }
            // A hole can only be punched into a file that is mapped shared, not private.
            self.how = libc::MADV_DONTNEED;
        }
    }
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
    use super::*;
    use crate::virtio::testing::{BUFFERS, memory};

    #[test]
    fn only_whole_pages_go_back_and_the_rest_stays() {
        use vm_memory::{Bytes, GuestAddress};
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
            assert_eq!(
                Releaser::new(StopFlag::default()).release(span),
                (pages * PAGE) as u64,
                "{offset} + {len}"
            );
            let mut after = all(0);
            memory.mmap().read_slice(&mut after, GuestAddress(BUFFERS)).unwrap();
            assert_eq!(after.iter().filter(|byte| **byte == 0).count(), pages * PAGE);
            assert!(after[..offset].iter().chain(&after[offset + len..]).all(|byte| *byte == 7));
        }
    }
}

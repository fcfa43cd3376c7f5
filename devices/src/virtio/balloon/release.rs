//! Gives pages of guest RAM back to the host.

use crate::memory::Span;
use crate::virtio::StopFlag;

/// Gives pages back in the way that the memory is made for.
#[derive(Debug)]
pub(super) struct Releaser {
    how: libc::c_int,
    stop: StopFlag,
}

impl Releaser {
    pub(super) fn new(stop: StopFlag) -> Self {
        Self { how: libc::MADV_REMOVE, stop }
    }

    /// True when no more work is to be begun.
    pub(super) fn has_to_stop(&self) -> bool {
        self.stop.is_raised()
    }

    /// The wish to stop has been given up.
    pub(super) fn go_on(&self) {
        self.stop.lower();
    }

    /// Gives the whole pages in `span` back, until it has to stop; returns how many bytes. The guest finds
    /// zeroes there, or what the file below a private mapping has.
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

    /// False when these pages cannot be given back.
    fn release_pages(&mut self, pages: libc::iovec) -> bool {
        loop {
            // SAFETY: the pages lie inside guest RAM, which nothing in this process refers to, and which
            // stays mapped; the guest has said that their content is of no use.
            if unsafe { libc::madvise(pages.iov_base, pages.iov_len, self.how) } == 0 {
                return true;
            }
            if self.how != libc::MADV_REMOVE {
                // Huge pages can be given back as a whole only.
                return false;
            }
            // Only memory that is a file, shared and not private, has a hole to be punched.
            self.how = libc::MADV_DONTNEED;
        }
    }
}

/// The pages that lie in `span` as a whole.
fn whole_pages(span: Span) -> Option<libc::iovec> {
    let [iovec] = Span::iovecs(std::slice::from_ref(&span)) else { return None };
    let start = iovec.iov_base.addr();
    let first = start.checked_next_multiple_of(PAGE)?;
    let end = start.checked_add(iovec.iov_len)? & !PAGE.wrapping_sub(1);
    let len = end.checked_sub(first).filter(|len| *len > 0)?;
    Some(libc::iovec { iov_base: iovec.iov_base.with_addr(first), iov_len: len })
}

/// Bytes of the host's smallest pages.
const PAGE: usize = 4096;
/// Bytes between two looks for the wish to stop: the host's largest pages, which go back as a whole only. The
/// host frees as much in some ten milliseconds.
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

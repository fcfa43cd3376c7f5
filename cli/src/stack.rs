//! The memory that reading the command line leaves behind: its parser's frames take 60 KiB of stack, which a
//! process keeps to its end. `main` calls it once, before the command's work.

use std::ffi::c_void;

/// Gives the pages of this thread's stack that nothing uses back to the system. Called on the main thread
/// only.
#[inline(never)]
pub(crate) fn give_back() {
    let here = 0_u8;
    let here = (&raw const here).expose_provenance();
    let end = here.saturating_sub(IN_USE) / PAGE * PAGE;
    let start = end.saturating_sub(PARSER);
    // SAFETY: nothing lives below the frame of this function, the last of its thread, and what it calls; a
    // signal's handler has returned before this thread goes on. Below the stack of a process's first thread
    // Linux keeps one MiB free of mappings (`stack_guard_gap`). A page that is given back reads as zeroes and
    // is writable as before.
    unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut::<c_void>(start),
            end - start,
            libc::MADV_DONTNEED,
        )
    };
}

/// More than the call itself and a signal's handler need.
const IN_USE: usize = 16 << 10;
/// More than the parser takes.
const PARSER: usize = 256 << 10;
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills `LEN` bytes of the stack and returns where.
    #[inline(never)]
    fn fill() -> usize {
        let bytes = std::hint::black_box([7_u8; LEN]);
        (&raw const bytes).expose_provenance()
    }

    /// Whether the page is in memory.
    fn is_resident(address: usize) -> bool {
        let mut answer = 0_u8;
        let page = std::ptr::with_exposed_provenance_mut::<c_void>(address / PAGE * PAGE);
        // SAFETY: a page of this thread's stack; the answer has room for it.
        let result = unsafe { libc::mincore(page, PAGE, &raw mut answer) };
        result == 0 && answer & 1 == 1
    }

    #[test]
    fn pages_below_the_frames_in_use_are_given_back_and_can_be_used_again() {
        // The middle of what was filled is below what stays.
        let filled = fill() + LEN / 2;
        assert!(is_resident(filled));
        give_back();
        assert!(!is_resident(filled));
        assert!(is_resident(fill() + LEN / 2));
    }

    const LEN: usize = 128 << 10;
}

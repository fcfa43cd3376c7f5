//! Frees memory that parsing the command line leaves behind: the parser's frames use 60 KiB of stack, which a
//! process would keep to its end. `main` calls this once, before the command's work.
//!
//! Parsing on another thread, whose stack would go with it, needs no such call but costs more than it saves:
//! the C library's allocator keeps memory for a second thread, and a waiting machine had 428 KiB of dirty
//! memory instead of 384.

use std::ffi::c_void;

/// Returns unused pages of this thread's stack to the system. Call it on the main thread only.
#[inline(never)]
pub(crate) fn give_back() {
    let here = 0_u8;
    let here = (&raw const here).expose_provenance();
    let end = here.saturating_sub(IN_USE) / PAGE * PAGE;
    let start = end.saturating_sub(PARSER);
    // SAFETY: nothing lives below the frame of this function, the innermost of its thread, and of what it
    // calls; a signal handler has returned before this thread continues. Below the stack of a process's first
    // thread, Linux keeps 1 MiB free of mappings (`stack_guard_gap`). A page that is returned reads as zeroes
    // and stays writable.
    unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut::<c_void>(start),
            end - start,
            libc::MADV_DONTNEED,
        )
    };
}

/// The part of the stack below this frame that stays: more than the call itself and a signal handler need.
const IN_USE: usize = 16 << 10;
/// The part that is returned: more than the parser uses.
const PARSER: usize = 256 << 10;
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills `LEN` bytes of the stack and returns their address.
    #[inline(never)]
    fn fill() -> usize {
        let bytes = std::hint::black_box([7_u8; LEN]);
        (&raw const bytes).expose_provenance()
    }

    /// Returns whether the page is resident in memory.
    fn is_resident(address: usize) -> bool {
        let mut answer = 0_u8;
        let page = std::ptr::with_exposed_provenance_mut::<c_void>(address / PAGE * PAGE);
        // SAFETY: the address is that of a page of this thread's stack, and `answer` has room for its one
        // byte.
        let result = unsafe { libc::mincore(page, PAGE, &raw mut answer) };
        result == 0 && answer & 1 == 1
    }

    #[test]
    fn pages_below_the_frames_in_use_are_given_back_and_can_be_used_again() {
        // The middle of the filled range is below the part that stays.
        let filled = fill() + LEN / 2;
        assert!(is_resident(filled));
        give_back();
        assert!(!is_resident(filled));
        assert!(is_resident(fill() + LEN / 2));
    }

    const LEN: usize = 128 << 10;
}

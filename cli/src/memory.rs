//! The memory of a process that waits for a guest: one heap for all threads, and nothing kept of what parsing
//! the command line and building the machine have used. For the command only: a library must not touch the
//! allocator of its program.

use std::ffi::c_void;
use std::time::Duration;

/// Lets all threads allocate from one heap. By default the C library gives each thread a heap of its own, for
/// which it reserves 128 MiB of addresses with four system calls, and whose first page is dirty at once. The
/// threads of a machine allocate little while a guest runs, so that they do not wait for one another. Call it
/// before the first thread starts.
pub(crate) fn share_heap() {
    // SAFETY: sets a number of the allocator; a refusal leaves the default.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Returns unused memory to the system: some 60 KiB of the heap, and as much of this thread's stack. Call it
/// on the main thread only, once the machine runs: before that, the memory would be used again.
pub(crate) fn give_back() {
    give_back_heap();
    give_back_stack();
}

/// Returns unused pages of the heap to the system.
pub(crate) fn give_back_heap() {
    // SAFETY: the allocator returns only pages in which nothing is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Returns unused pages of this thread's stack to the system. Call it on the main thread only.
#[inline(never)]
pub(crate) fn give_back_stack() {
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

/// A guest that ends within this time does not pay for [`give_back_heap`]: its process frees everything
/// anyway.
pub(crate) const SHORT_LIFE: Duration = Duration::from_millis(20);

/// The part of the stack below this frame that stays: more than the call itself needs.
const IN_USE: usize = 1 << 10;
/// The part that is returned: more than the parser and the builder use.
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
        give_back_stack();
        assert!(!is_resident(filled));
        assert!(is_resident(fill() + LEN / 2));
    }

    const LEN: usize = 128 << 10;
}

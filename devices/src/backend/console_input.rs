//! What the host's end of a console feeds: a device that takes input as far as its guest reads it.

use vmm_sys_util::eventfd::EventFd;

/// Takes input from the host. The I/O thread calls it.
pub trait ConsoleInput: Send + Sync {
    /// Takes bytes of `input` and returns how many: 0 while there is no room. When it takes fewer than offered,
    /// [`room_event`](Self::room_event) fires later.
    fn enqueue_input(&self, input: &[u8]) -> usize;

    /// Whether [`enqueue_input`](Self::enqueue_input) would take a byte now. After the answer `false`,
    /// [`room_event`](Self::room_event) fires once that changes; the caller stops reading its input until then.
    fn has_input_room(&self) -> bool;

    /// Becomes readable when input was held back and there is room again. The reader clears it by reading it.
    fn room_event(&self) -> &EventFd;
}

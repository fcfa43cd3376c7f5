//! The input side of a console device, which takes bytes as fast as its guest reads them.

use vmm_sys_util::eventfd::EventFd;

/// Takes input from the host. The I/O thread calls it.
pub trait ConsoleInput: Send + Sync {
    /// Takes bytes of `input` and returns how many: 0 while there is no space. After it has taken fewer than
    /// offered, [`room_event`](Self::room_event) fires later.
    fn enqueue_input(&self, input: &[u8]) -> usize;

    /// Returns whether [`enqueue_input`](Self::enqueue_input) would take a byte now. After the result
    /// `false`, [`room_event`](Self::room_event) fires once that changes. The caller stops reading its input
    /// until then.
    fn has_input_room(&self) -> bool;

    /// Returns the event that fires when input was held back and there is space again. The reader clears it
    /// by reading it.
    fn room_event(&self) -> &EventFd;
}

//! The host side of devices: where console bytes go and where they come from.

pub mod chardev;
pub mod console_buffer;
pub mod console_tail;
mod matcher;
mod panic_watch;

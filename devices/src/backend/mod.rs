//! The host side of devices: where console bytes go and where they come from, and what disks keep their blocks in.

pub mod chardev;
pub mod console_buffer;
pub mod console_input;
pub mod console_tail;
pub mod disk;
mod matcher;
pub mod net;
mod panic_watch;
pub mod unix_socket;

//! The host side of devices: destinations and sources of console bytes, storage of disks, and networks.

pub mod chardev;
pub mod console_buffer;
pub mod console_input;
pub mod console_tail;
pub mod disk;
mod matcher;
pub mod net;
mod panic_watch;
pub mod unix_socket;

//! The host side of devices: destinations and sources of console bytes, storage of disks, and networks.

pub mod chardev;
pub mod console_buffer;
pub mod console_input;
pub mod disk;
pub mod net;
pub mod unix_socket;

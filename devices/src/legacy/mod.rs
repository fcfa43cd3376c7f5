//! The fixed devices of a PC that a kernel expects at well-known ports and addresses.

pub mod acpi;
pub mod debug_exit;
pub mod event;
pub mod i8042;
pub mod ioapic;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

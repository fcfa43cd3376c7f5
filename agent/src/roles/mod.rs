//! The three roles of the first process.

pub(crate) mod default_guest;
pub(crate) mod emulated_host;
pub(crate) mod loader;

//! The threads that run vCPUs, and what each exit of a guest leads to.

mod counts;
mod dispatch;
mod thread;

pub use counts::ExitCounts;
pub(crate) use dispatch::Buses;
pub(crate) use thread::{VcpuHandle, VcpuThread};

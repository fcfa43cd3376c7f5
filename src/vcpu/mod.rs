//! The threads that run vCPUs, and the handling of each exit.

pub(crate) mod affinity;
mod counts;
mod cpu_clock;
mod dispatch;
mod mailbox;
mod thread;

pub use affinity::AffinityError;
pub use counts::ExitCounts;
pub(crate) use dispatch::Buses;
pub(crate) use mailbox::SavedVcpu;
pub(crate) use thread::{VcpuHandle, VcpuThread};

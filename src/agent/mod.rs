//! The host's end of the guest agent: runs commands in a guest, moves files, and sets the guest up. [`Exec`]
//! is a command, [`AgentClient`] has all requests, and [`AgentConfig`](crate::config::AgentConfig) sets up
//! the agent of a machine.
//!
//! One thread per machine moves the bytes and waits for nothing else. Callers wait on their own threads, with
//! limits of their own. A guest can affect no more than its connection: an agent that breaks the protocol is
//! disconnected, and every request in flight returns that error.

#[cfg(feature = "tokio")]
mod async_calls;
#[cfg(feature = "tokio")]
mod async_files;
#[cfg(feature = "tokio")]
mod async_io;
#[cfg(feature = "tokio")]
mod async_snapshots;
mod attach;
mod branch;
mod changed;
mod channel;
mod client;
mod collect;
mod connections;
mod copy;
mod error;
mod exec;
mod file_streams;
mod files;
mod limits;
mod link;
mod paths;
mod patience;
mod process;
mod restored;
mod serial;
mod streams;
#[cfg(feature = "tokio")]
mod tasks;
mod waits;

#[cfg(feature = "tokio")]
pub use async_io::Async;
pub use attach::AttachError;
pub(crate) use attach::{AgentAttachment, has_system, prepared, with_words};
pub use branch::BranchPoint;
pub use client::{AgentClient, NetworkSettings};
pub use copy::{Copied, CopyLimits};
pub use coracle_agent::protocol::agent::{
    AgentInfo, DirEntry, FileInfo, FileKind, NetworkInfo, Place as AgentPlaceInGuest, ProcessInfo, WindowSize,
};
pub use error::{AgentError, CopyWay, ExecError, FileError, ReadyLimit, Written};
pub use exec::{Exec, ExecInput, ExecStatus, Output};
pub use file_streams::{FileReader, FileWriter};
pub use limits::Rlimit;
pub use paths::FileStat;
pub use process::Process;
pub(crate) use restored::Past;
pub(crate) use serial::{AgentSerial, connect_serial, serial_console};
pub use streams::{ProcessInput, ProcessOutput};

//! The host's end of the guest agent: run commands in a guest, move files, set it up. [`Exec`] is a command,
//! [`AgentClient`] everything that can be asked for, [`AgentConfig`](crate::config::AgentConfig) how the machine has
//! its agent.
//!
//! One thread per machine moves the bytes and never waits for anything but them; callers wait on their own threads,
//! with limits of their own. Nothing that a guest does can reach further than its connection: an agent that breaks the
//! rules is cut off, and every call that is under way says so.

#[cfg(feature = "tokio")]
mod async_calls;
#[cfg(feature = "tokio")]
mod async_files;
#[cfg(feature = "tokio")]
mod async_io;
mod attach;
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
mod serial;
mod streams;
#[cfg(feature = "tokio")]
mod tasks;
mod waits;

#[cfg(feature = "tokio")]
pub use async_io::Async;
pub use attach::AttachError;
pub(crate) use attach::{AgentAttachment, has_system, prepared, with_words};
pub use client::{AgentClient, NetworkSettings};
pub use copy::{Copied, CopyLimits};
pub use coracle_agent::protocol::agent::{
    AgentInfo, DirEntry, FileInfo, FileKind, NetworkInfo, Place as AgentPlaceInGuest, WindowSize,
};
pub use error::{AgentError, CopyWay, ExecError, FileError, ReadyLimit, Written};
pub use exec::{Exec, ExecInput, ExecStatus, Output};
pub use file_streams::{FileReader, FileWriter};
pub use limits::Rlimit;
pub use paths::FileStat;
pub use process::Process;
pub(crate) use serial::{AgentSerial, connect_serial, serial_console};
pub use streams::{ProcessInput, ProcessOutput};

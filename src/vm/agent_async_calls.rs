//! The agent's calls on machines and their handles, for tasks.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::outcome::Outcome;
use super::{Vm, VmHandle};
use crate::agent::{AgentError, AgentInfo, DirEntry, FileError, NetworkInfo, NetworkSettings};

macro_rules! calls_on {
    ($machine:ty) => {
        /// The calls on the guest's agent for tasks. They need the feature `tokio`, and a runtime with its
        /// timer.
        impl $machine {
            /// See [`AgentClient::wait_ready_async`](crate::agent::AgentClient::wait_ready_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn wait_ready_async(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
                self.agent()?.wait_ready_async(limit).await
            }

            /// See [`AgentClient::read_file_async`](crate::agent::AgentClient::read_file_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn read_file_async(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
                self.agent()?.read_file_async(path).await
            }

            /// See [`AgentClient::write_file_async`](crate::agent::AgentClient::write_file_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn write_file_async(
                &self,
                path: impl AsRef<Path>,
                content: impl AsRef<[u8]>,
            ) -> Result<(), FileError> {
                self.agent()?.write_file_async(path, content).await
            }

            /// See [`AgentClient::list_dir_async`](crate::agent::AgentClient::list_dir_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn list_dir_async(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
                self.agent()?.list_dir_async(path).await
            }

            /// See [`AgentClient::set_clock_async`](crate::agent::AgentClient::set_clock_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn set_clock_async(&self, time: SystemTime) -> Result<(), AgentError> {
                self.agent()?.set_clock_async(time).await
            }

            /// See [`AgentClient::network_up_async`](crate::agent::AgentClient::network_up_async).
            ///
            /// # Errors
            /// As there, or there is no agent.
            pub async fn network_up_async(
                &self,
                settings: NetworkSettings,
            ) -> Result<NetworkInfo, AgentError> {
                self.agent()?.network_up_async(settings).await
            }
        }
    };
}

calls_on!(VmHandle);
calls_on!(Vm);

/// Needs the feature `tokio`, and a runtime with its timer and its I/O.
impl VmHandle {
    /// As [`VmHandle::shut_down`], for a task.
    ///
    /// # Errors
    /// As [`VmHandle::wait_async`].
    pub async fn shut_down_async(&self, grace: Duration) -> std::io::Result<Option<Outcome>> {
        let grace = if self.ask_to_power_off() { grace } else { Duration::ZERO };
        // Over time is no error: it runs on.
        tokio::time::timeout(grace, self.wait_async()).await.ok().transpose()
    }
}

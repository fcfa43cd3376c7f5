//! The calls on the guest's agent for async tasks, on [`Vm`] and [`VmHandle`].

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::outcome::Outcome;
use super::{Vm, VmHandle};
use crate::agent::{
    AgentError, AgentInfo, BranchPoint, DirEntry, ExecError, FileError, NetworkInfo, NetworkSettings,
    Process, ProcessInfo,
};

macro_rules! calls_on {
    ($machine:ty) => {
        /// Calls on the guest's agent for async tasks. They need the feature `tokio` and a runtime with its
        /// timer enabled.
        impl $machine {
            /// See [`AgentClient::wait_ready_async`](crate::agent::AgentClient::wait_ready_async).
            ///
            /// # Errors
            /// The errors of that call, and [`AgentError`] if the machine has no agent.
            pub async fn wait_ready_async(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
                self.agent()?.wait_ready_async(limit).await
            }

            /// See [`AgentClient::read_file_async`](crate::agent::AgentClient::read_file_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn read_file_async(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
                self.agent()?.read_file_async(path).await
            }

            /// See [`AgentClient::write_file_async`](crate::agent::AgentClient::write_file_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
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
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn list_dir_async(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
                self.agent()?.list_dir_async(path).await
            }

            /// See [`AgentClient::set_clock_async`](crate::agent::AgentClient::set_clock_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn set_clock_async(&self, time: SystemTime) -> Result<(), AgentError> {
                self.agent()?.set_clock_async(time).await
            }

            /// See [`AgentClient::network_up_async`](crate::agent::AgentClient::network_up_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn network_up_async(
                &self,
                settings: NetworkSettings,
            ) -> Result<NetworkInfo, AgentError> {
                self.agent()?.network_up_async(settings).await
            }

            /// See [`AgentClient::processes_async`](crate::agent::AgentClient::processes_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn processes_async(&self) -> Result<Vec<ProcessInfo>, AgentError> {
                self.agent()?.processes_async().await
            }

            /// See [`AgentClient::attach_async`](crate::agent::AgentClient::attach_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn attach_async(&self, process: &ProcessInfo) -> Result<Process, ExecError> {
                self.agent()?.attach_async(process).await
            }

            /// See
            /// [`AgentClient::wait_branch_point_async`](crate::agent::AgentClient::wait_branch_point_async).
            ///
            /// # Errors
            /// The errors of that call; it also fails if the machine has no agent.
            pub async fn wait_branch_point_async(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
                self.agent()?.wait_branch_point_async(limit).await
            }
        }
    };
}

calls_on!(VmHandle);
calls_on!(Vm);

/// Needs the feature `tokio` and a runtime with its timer and I/O enabled.
impl VmHandle {
    /// [`VmHandle::shut_down`] for async tasks.
    ///
    /// # Errors
    /// See [`VmHandle::wait_async`].
    pub async fn shut_down_async(&self, grace: Duration) -> std::io::Result<Option<Outcome>> {
        let grace = if self.ask_to_power_off() { grace } else { Duration::ZERO };
        // A guest that takes longer than `grace` is not an error: it keeps running, and the result is `None`.
        tokio::time::timeout(grace, self.wait_async()).await.ok().transpose()
    }
}

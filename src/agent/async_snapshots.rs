//! The calls about snapshots on an agent, for tasks.

use std::time::Duration;

use coracle_agent::protocol::agent::Request;

use super::ProcessInfo;
use super::branch::{self, BranchPoint};
use super::channel::ChannelState;
use super::client::AgentClient;
use super::error::{AgentError, ExecError};
use super::process::Process;
use super::tasks::{answer, come};

/// Needs the feature `tokio`, and a runtime with its timer.
impl AgentClient {
    /// Lists the commands that run on since before the snapshot. This is the asynchronous form of
    /// [`AgentClient::processes`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::processes`].
    pub async fn processes_async(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        let channel = self.open_async(Request::Processes).await?;
        answer(&channel, |locked, _| ChannelState::answer(locked.seen())).await?.into_processes()
    }

    /// Takes up one of these commands. This is the asynchronous form of [`AgentClient::attach`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::attach`].
    pub async fn attach_async(&self, process: &ProcessInfo) -> Result<Process, ExecError> {
        let channel = self.open_async(Request::Attach(process.attach_request())).await?;
        let process = Process::attached(channel, process);
        answer(process.channel(), |locked, _| Process::started(locked)).await?;
        Ok(process)
    }

    /// Waits until a process of root in the guest has reached its branch point. This is the asynchronous
    /// form of [`AgentClient::wait_branch_point`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::wait_branch_point`].
    pub async fn wait_branch_point_async(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
        self.branch_point_async(limit, false).await
    }

    /// Waits for a process of any user. This is the asynchronous form of
    /// [`AgentClient::wait_branch_point_of_any_user`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::wait_branch_point`].
    pub async fn wait_branch_point_of_any_user_async(
        &self,
        limit: Duration,
    ) -> Result<BranchPoint, AgentError> {
        self.branch_point_async(limit, true).await
    }

    async fn branch_point_async(&self, limit: Duration, any_user: bool) -> Result<BranchPoint, AgentError> {
        let wait = async {
            let channel = self.open_async(Request::BranchPoint { any_user }).await?;
            let pid = come(&channel, branch::reached).await?;
            Ok(BranchPoint::new(channel, pid))
        };
        tokio::time::timeout(limit, wait).await.unwrap_or(Err(AgentError::NoBranchPoint { limit }))
    }
}

//! The calls on the guest's agent, on [`Vm`] and [`VmHandle`].

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Vm, VmHandle};
use crate::agent::{
    AgentClient, AgentError, AgentInfo, BranchPoint, DirEntry, Exec, ExecError, FileError, NetworkInfo,
    NetworkSettings, Process, ProcessInfo,
};
use crate::outcome::Outcome;

/// Calls on the guest's agent. If the guest is still booting, each call waits for it, for at most the
/// [`ready_limit`](crate::config::AgentConfig::ready_limit). [`VmHandle::agent`] gives access to the agent's
/// other calls.
impl VmHandle {
    /// Prepares a command to run in the guest: see [`AgentClient::exec`](AgentClient::exec).
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        Exec::new(self.agent(), argv)
    }

    /// Reads a file of the guest: see [`AgentClient::read_file`](AgentClient::read_file).
    ///
    /// # Errors
    /// The machine has no agent, the guest refuses, or the file is too large.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.agent()?.read_file(path)
    }

    /// Writes a file of the guest: see [`AgentClient::write_file`](AgentClient::write_file).
    ///
    /// # Errors
    /// The machine has no agent, or the guest refuses.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.agent()?.write_file(path, content)
    }

    /// Lists the entries of a directory of the guest: see [`AgentClient::list_dir`](AgentClient::list_dir).
    ///
    /// # Errors
    /// The machine has no agent, or the guest refuses.
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.agent()?.list_dir(path)
    }

    /// Sets the guest's wall clock to `time`.
    ///
    /// # Errors
    /// The machine has no agent, or the guest refuses.
    pub fn set_clock(&self, time: SystemTime) -> Result<(), AgentError> {
        self.agent()?.set_clock(time)
    }

    /// Brings up the guest's network: see [`AgentClient::network_up`](AgentClient::network_up).
    ///
    /// # Errors
    /// The machine has no agent, or the guest refuses.
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        self.agent()?.network_up(settings)
    }

    /// Waits for the guest's agent to be ready, for at most `limit`, and returns what the agent reports about
    /// itself.
    ///
    /// # Errors
    /// The machine has no agent, or the agent is not ready in time.
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        self.agent()?.wait_ready(limit)
    }

    /// Lists the commands that run on since before the snapshot from which the machine goes on: see
    /// [`AgentClient::processes`](AgentClient::processes).
    ///
    /// # Errors
    /// The machine has no agent, or it has ended.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        self.agent()?.processes()
    }

    /// Takes up one of these commands: see [`AgentClient::attach`](AgentClient::attach).
    ///
    /// # Errors
    /// The machine has no agent, or the command has been taken up already.
    pub fn attach(&self, process: &ProcessInfo) -> Result<Process, ExecError> {
        self.agent()?.attach(process)
    }

    /// Waits until a process of root in the guest has reached its branch point: see
    /// [`AgentClient::wait_branch_point`](AgentClient::wait_branch_point).
    ///
    /// # Errors
    /// The machine has no agent, or no process has reached one within `limit`.
    pub fn wait_branch_point(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
        self.agent()?.wait_branch_point(limit)
    }

    /// Asks the guest to power off and waits up to `grace` for it to end. The request goes to the agent if it
    /// is ready, otherwise to the power button. Returns `None` if the guest cannot be asked or has not ended
    /// in time; it then keeps running.
    pub fn shut_down(&self, grace: Duration) -> Option<Outcome> {
        let grace = if self.ask_to_power_off() { grace } else { Duration::ZERO };
        self.wait_for(grace)
    }

    /// Asks the guest to power off, by its agent or its power button; `false` if it has neither.
    pub(crate) fn ask_to_power_off(&self) -> bool {
        let by_agent = self.agent().and_then(|agent| agent.power_off_within(Duration::ZERO));
        by_agent.is_ok() || self.press_power_button()
    }
}

/// The calls of [`VmHandle`] on the guest's agent.
impl Vm {
    /// See [`VmHandle::exec`].
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        self.handle().exec(argv)
    }

    /// See [`VmHandle::read_file`].
    ///
    /// # Errors
    /// See [`VmHandle::read_file`].
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.handle().read_file(path)
    }

    /// See [`VmHandle::write_file`].
    ///
    /// # Errors
    /// See [`VmHandle::write_file`].
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.handle().write_file(path, content)
    }

    /// See [`VmHandle::list_dir`].
    ///
    /// # Errors
    /// See [`VmHandle::list_dir`].
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.handle().list_dir(path)
    }

    /// See [`VmHandle::set_clock`].
    ///
    /// # Errors
    /// See [`VmHandle::set_clock`].
    pub fn set_clock(&self, time: SystemTime) -> Result<(), AgentError> {
        self.handle().set_clock(time)
    }

    /// See [`VmHandle::network_up`].
    ///
    /// # Errors
    /// See [`VmHandle::network_up`].
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        self.handle().network_up(settings)
    }

    /// See [`VmHandle::agent`].
    ///
    /// # Errors
    /// See [`VmHandle::agent`].
    pub fn agent(&self) -> Result<AgentClient, AgentError> {
        self.handle().agent()
    }

    /// See [`VmHandle::processes`].
    ///
    /// # Errors
    /// See [`VmHandle::processes`].
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        self.handle().processes()
    }

    /// See [`VmHandle::attach`].
    ///
    /// # Errors
    /// See [`VmHandle::attach`].
    pub fn attach(&self, process: &ProcessInfo) -> Result<Process, ExecError> {
        self.handle().attach(process)
    }

    /// See [`VmHandle::wait_branch_point`].
    ///
    /// # Errors
    /// See [`VmHandle::wait_branch_point`].
    pub fn wait_branch_point(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
        self.handle().wait_branch_point(limit)
    }

    /// See [`VmHandle::wait_ready`].
    ///
    /// # Errors
    /// See [`VmHandle::wait_ready`].
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        self.handle().wait_ready(limit)
    }
}

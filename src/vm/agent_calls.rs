//! The agent's calls on machines and their handles.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Vm, VmHandle};
use crate::agent::{
    AgentClient, AgentError, AgentInfo, DirEntry, Exec, FileError, NetworkInfo, NetworkSettings,
};
use crate::outcome::Outcome;

/// Calls on the guest's agent. Each waits for a guest that is still booting, for the
/// [`ready_limit`](crate::config::AgentConfig::ready_limit); [`VmHandle::agent`] has more of them.
impl VmHandle {
    /// A command to run in the guest: see [`AgentClient::exec`](AgentClient::exec).
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        Exec::new(self.agent(), argv)
    }

    /// Reads a file of the guest: see [`AgentClient::read_file`](AgentClient::read_file).
    ///
    /// # Errors
    /// There is no agent, the guest refuses, or the file is too large.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.agent()?.read_file(path)
    }

    /// Writes a file of the guest: see [`AgentClient::write_file`](AgentClient::write_file).
    ///
    /// # Errors
    /// There is no agent, or the guest refuses.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.agent()?.write_file(path, content)
    }

    /// The entries of a folder of the guest: see [`AgentClient::list_dir`](AgentClient::list_dir).
    ///
    /// # Errors
    /// There is no agent, or the guest refuses.
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.agent()?.list_dir(path)
    }

    /// Sets the guest's clock.
    ///
    /// # Errors
    /// There is no agent, or the guest refuses.
    pub fn set_clock(&self, time: SystemTime) -> Result<(), AgentError> {
        self.agent()?.set_clock(time)
    }

    /// Brings the guest's network up: see [`AgentClient::network_up`](AgentClient::network_up).
    ///
    /// # Errors
    /// There is no agent, or the guest refuses.
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        self.agent()?.network_up(settings)
    }

    /// Waits until the guest's agent is ready, and tells what it is.
    ///
    /// # Errors
    /// There is no agent, or it is not ready in time.
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        self.agent()?.wait_ready(limit)
    }

    /// Asks the guest to power off, by its agent if that is ready, else by the power button, and waits for
    /// that: none when the guest has not ended within `grace`, or cannot be asked. It runs on then.
    pub fn shut_down(&self, grace: Duration) -> Option<Outcome> {
        let grace = if self.ask_to_power_off() { grace } else { Duration::ZERO };
        self.wait_for(grace)
    }

    /// False when the guest cannot be asked.
    pub(crate) fn ask_to_power_off(&self) -> bool {
        let by_agent = self.agent().and_then(|agent| agent.power_off_within(Duration::ZERO));
        by_agent.is_ok() || self.press_power_button()
    }
}

/// The same calls as on a [`VmHandle`].
impl Vm {
    /// See [`VmHandle::exec`].
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        self.handle().exec(argv)
    }

    /// See [`VmHandle::read_file`].
    ///
    /// # Errors
    /// As there.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.handle().read_file(path)
    }

    /// See [`VmHandle::write_file`].
    ///
    /// # Errors
    /// As there.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.handle().write_file(path, content)
    }

    /// See [`VmHandle::list_dir`].
    ///
    /// # Errors
    /// As there.
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.handle().list_dir(path)
    }

    /// See [`VmHandle::set_clock`].
    ///
    /// # Errors
    /// As there.
    pub fn set_clock(&self, time: SystemTime) -> Result<(), AgentError> {
        self.handle().set_clock(time)
    }

    /// See [`VmHandle::network_up`].
    ///
    /// # Errors
    /// As there.
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        self.handle().network_up(settings)
    }

    /// See [`VmHandle::agent`].
    ///
    /// # Errors
    /// As there.
    pub fn agent(&self) -> Result<AgentClient, AgentError> {
        self.handle().agent()
    }

    /// See [`VmHandle::wait_ready`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        self.handle().wait_ready(limit)
    }
}

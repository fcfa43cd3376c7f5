//! The agent's real program, run on this machine.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use coracle::agent::{AgentClient, Exec};
use coracle::config::AgentConfig;
use coracle::guest_data::{self, GuestData};

use super::{LIMIT, scratch, skip};

/// An agent, and the host's end of its protocol.
pub struct Agent {
    pub client: AgentClient,
    pub process: Child,
}

impl Agent {
    /// Starts an agent. Returns `None`, after printing why, if there is no agent.
    pub fn start() -> Option<Agent> {
        Self::start_with(&AgentConfig::default())
    }

    /// Starts an agent with the given limits. Returns `None`, after printing why, if there is no agent.
    pub fn start_with(config: &AgentConfig) -> Option<Agent> {
        let program = match guest_data::find(GuestData::Agent) {
            Ok(program) => program,
            Err(error) => {
                skip(&error.to_string());
                return None;
            }
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new(executable(&program));
        command.arg("fd:3").stdin(Stdio::null()).stdout(Stdio::null());
        let fd = theirs.as_raw_fd();
        // SAFETY: the call replaces a descriptor of the new process that nothing uses.
        let give = move || checked(unsafe { libc::dup2(fd, 3) });
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(give) };
        let process = command.spawn().unwrap();
        Some(Agent { client: AgentClient::over_within(ours, config).unwrap(), process })
    }

    /// A shell's command.
    pub fn sh(&self, script: &str) -> Exec {
        self.client.exec(["sh", "-c", script]).timeout(LIMIT)
    }
}

/// Returns the agent, or ends the test if there is none.
macro_rules! agent {
    () => {
        match $crate::common::agent::Agent::start() {
            Some(agent) => agent,
            None => return,
        }
    };
}
pub(crate) use agent;

/// Creates a runtime whose tasks share the thread of the test.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program is kept as part of archives; this is an executable copy.
fn executable(program: &Path) -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let copy = scratch().join("coracle-agent");
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        copy
    })
}

fn checked(result: i32) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

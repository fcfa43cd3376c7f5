//! Branch points: where processes of the guest wait for the host to take a snapshot.

use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::Request;

use super::channel::{Channel, Locked};
use super::client::AgentClient;
use super::error::AgentError;

/// A process of the guest that waits at its branch point (`coracle-agent branch-here`). It goes on in each
/// machine that continues from a snapshot taken now. In this machine, it goes on when this is dropped.
///
/// ```no_run
/// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let _server = vm.exec(["sh", "-c", "prepare; coracle-agent branch-here -- serve"]).spawn()?;
/// let _point = vm.wait_branch_point(Duration::from_secs(60))?;
/// let template = vm.freeze()?;
/// let forks = template.fork(16, |index, fork| fork.hostname(format!("w{index}")))?;
/// # Ok(())
/// # }
/// ```
pub struct BranchPoint {
    /// Closed when it is dropped, which lets the process go on.
    _channel: Channel,
    pid: u32,
}

impl BranchPoint {
    pub(super) fn new(channel: Channel, pid: u32) -> BranchPoint {
        BranchPoint { _channel: channel, pid }
    }

    /// Returns the process id of `coracle-agent branch-here` in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl AgentClient {
    /// Waits until a process of root in the guest has reached its branch point. Each wait is for one process;
    /// others wait for the next one, for 5 s, and then fail.
    ///
    /// # Errors
    /// No process has reached one within `limit`, or the agent or the machine has ended.
    pub fn wait_branch_point(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
        self.branch_point(limit, false)
    }

    /// Waits like [`AgentClient::wait_branch_point`] for a process of any user.
    ///
    /// # Errors
    /// See [`AgentClient::wait_branch_point`].
    pub fn wait_branch_point_of_any_user(&self, limit: Duration) -> Result<BranchPoint, AgentError> {
        self.branch_point(limit, true)
    }

    fn branch_point(&self, limit: Duration, any_user: bool) -> Result<BranchPoint, AgentError> {
        let deadline = Instant::now().checked_add(limit);
        let channel = Channel::open_within(self.link(), Request::BranchPoint { any_user }, limit)?;
        let mut locked = channel.lock();
        let pid = loop {
            if let Some(pid) = reached(&mut locked)? {
                break pid;
            }
            let (next, in_time) = locked.wait(deadline);
            locked = next;
            if !in_time {
                return Err(AgentError::NoBranchPoint { limit });
            }
        };
        drop(locked);
        Ok(BranchPoint::new(channel, pid))
    }
}

/// Returns the process that has reached its branch point, if one has.
pub(super) fn reached(locked: &mut Locked<'_>) -> Result<Option<u32>, AgentError> {
    let seen = locked.seen();
    match seen.pid {
        Some(pid) => Ok(Some(pid)),
        None => seen.answer().map(|_| None),
    }
}

//! The share of its guest that a command may use.

use coracle_agent::protocol::agent::{ExecLimits, ResourceLimit};

use super::error::ExecError;
use super::exec::Exec;

/// A limit of each process of a command (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rlimit {
    /// Seconds of CPU time.
    CpuSeconds,
    /// Bytes of a file that it writes.
    FileSize,
    /// Bytes of its data.
    Data,
    /// Bytes of its stack.
    Stack,
    /// Bytes of a core file.
    Core,
    /// Processes and threads of its user: of all commands of that user together.
    Processes,
    /// Open files: one more than the highest descriptor.
    OpenFiles,
    /// Bytes of its address space.
    AddressSpace,
}

/// # Errors
/// A limit leaves nothing for the command itself.
pub(super) fn check(limits: &ExecLimits) -> Result<(), ExecError> {
    let of_nothing =
        [("max_processes", limits.processes == Some(0)), ("max_memory", limits.memory == Some(0))];
    let first = of_nothing.into_iter().find(|(_, is_nothing)| *is_nothing);
    first.map_or(Ok(()), |(limit, _)| Err(ExecError::LimitOfNothing { limit }))
}

impl Rlimit {
    fn number(self) -> u8 {
        let resource = match self {
            Rlimit::CpuSeconds => libc::RLIMIT_CPU,
            Rlimit::FileSize => libc::RLIMIT_FSIZE,
            Rlimit::Data => libc::RLIMIT_DATA,
            Rlimit::Stack => libc::RLIMIT_STACK,
            Rlimit::Core => libc::RLIMIT_CORE,
            Rlimit::Processes => libc::RLIMIT_NPROC,
            Rlimit::OpenFiles => libc::RLIMIT_NOFILE,
            Rlimit::AddressSpace => libc::RLIMIT_AS,
        };
        // There are 16.
        u8::try_from(resource).unwrap_or_default()
    }
}

/// Limits of a command and of all processes that it starts, by its control group. They need an agent with
/// version 2 of the protocol. Those of processes, memory and CPU time need the control groups of Linux
/// (version 2) with these controllers, as in stock kernels. A guest without them returns
/// [`AgentError::Refused`](super::AgentError::Refused).
///
/// ```no_run
/// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use coracle::agent::Rlimit;
///
/// let output = vm
///     .exec(["python3", "snippet.py"])
///     .user("nobody")
///     .max_processes(32)
///     .max_memory(128 << 20)
///     .cpu_quota_percent(50)
///     .rlimit(Rlimit::FileSize, 1 << 20)
///     .kill_tree(true)
///     .output()?;
/// # Ok(())
/// # }
/// ```
impl Exec {
    /// Ends the processes that the command has started together with it, as a time limit does. Without this,
    /// such processes live on. In a guest without control groups that can be killed
    /// ([`AgentInfo::kills_groups`](super::AgentInfo::kills_groups)), processes that have left its process
    /// group live on all the same.
    pub fn kill_tree(mut self, yes: bool) -> Exec {
        self.limits().kill_tree = yes;
        self
    }

    /// Sets the largest number of processes and threads at a time, the command itself included. 0 is refused.
    pub fn max_processes(mut self, count: u32) -> Exec {
        self.limits().processes = Some(count);
        self
    }

    /// Sets the largest memory in bytes, including files in the page cache and in a tmpfs. If it is exceeded,
    /// all processes are killed, and the command ends with signal 9. 0 is refused.
    pub fn max_memory(mut self, bytes: u64) -> Exec {
        self.limits().memory = Some(bytes);
        self
    }

    /// Sets the largest share of CPU time, in percent of one of the guest's CPUs. 0 counts as 1.
    pub fn cpu_quota_percent(mut self, percent: u32) -> Exec {
        self.limits().cpu_percent = Some(percent);
        self
    }

    /// Sets a limit of each of its processes, soft and hard.
    pub fn rlimit(mut self, resource: Rlimit, value: u64) -> Exec {
        self.limits().resources.push(ResourceLimit { resource: resource.number(), value });
        self
    }
}

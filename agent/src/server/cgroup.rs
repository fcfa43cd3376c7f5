//! A control group for each command, so that processes that have left its process group end with it too. The
//! hierarchy is mounted nowhere: descriptors lead to it, whatever the system does with `/sys`.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use coracle_agent::protocol::agent::ExecLimits;

/// The hierarchy (version 2).
#[derive(Debug)]
pub(super) struct Cgroups {
    root: OwnedFd,
    made: u64,
    /// Groups that still hold processes of ended commands.
    left: Vec<Cgroup>,
    /// Groups without a process, for the next commands. Making and removing one takes longer than many
    /// commands.
    empty: Vec<Cgroup>,
}

/// The control group of a command.
#[derive(Debug)]
pub(super) struct Cgroup {
    name: CString,
    directory: OwnedFd,
    /// The file that shows whether the group holds processes.
    events: File,
    /// Whether the group must not be used again. Some kernels also kill what is started in a group after it
    /// was killed (6.18 compares its count of kills with the parent's).
    is_used_up: Cell<bool>,
}

impl Cgroups {
    /// Finds the hierarchy.
    ///
    /// # Errors
    /// The kernel has none, or one that cannot kill a group (Linux before 5.14).
    pub(super) fn open() -> io::Result<Self> {
        let mut groups = Self { root: detached_mount()?, made: 0, left: Vec::new(), empty: Vec::new() };
        let group = groups.make()?;
        let can_kill = open_at(group.directory.as_raw_fd(), c"cgroup.kill", libc::O_WRONLY).map(drop);
        groups.release(group);
        can_kill.map(|()| groups)
    }

    /// Returns a group for one command, without a process.
    pub(super) fn make(&mut self) -> io::Result<Cgroup> {
        if let Some(group) = self.empty.pop() {
            return Ok(group);
        }
        self.made = self.made.wrapping_add(1);
        let name = CString::new(format!("coracle-{}-{}", std::process::id(), self.made))?;
        let root = self.root.as_raw_fd();
        // SAFETY: the name ends with a zero byte and outlives the call.
        if unsafe { libc::mkdirat(root, name.as_ptr(), 0o755) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let directory = open_at(root, &name, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let events = open_at(directory.as_raw_fd(), c"cgroup.events", libc::O_RDONLY)?.into();
        Ok(Cgroup { name, directory, events, is_used_up: Cell::new(false) })
    }

    /// Returns a group with limits for one command, without a process.
    pub(super) fn make_limited(&mut self, limits: &ExecLimits) -> io::Result<Cgroup> {
        for controller in ["+pids", "+memory", "+cpu"] {
            // A controller that is not enabled, here or by the system's own init, is missing in the group.
            let _ = write_at(self.root.as_raw_fd(), c"cgroup.subtree_control", controller);
        }
        let group = self.make()?;
        // No other command may get its limits later.
        group.is_used_up.set(true);
        match group.limit(limits) {
            Ok(()) => Ok(group),
            Err(error) => {
                self.release(group);
                Err(error)
            }
        }
    }

    /// Takes back the group of an ended command. It is free once the processes that were left behind have
    /// ended too.
    pub(super) fn release(&mut self, group: Cgroup) {
        if group.holds_processes() {
            self.left.push(group);
        } else if self.empty.len() < MAX_EMPTY && !group.is_used_up.get() {
            self.empty.push(group);
        } else {
            self.remove(&group);
        }
    }

    /// Takes back groups that have become empty.
    pub(super) fn tidy(&mut self) {
        for group in std::mem::take(&mut self.left) {
            self.release(group);
        }
    }

    fn remove(&self, group: &Cgroup) {
        // The group is empty. If the kernel refuses all the same, one more name stays.
        // SAFETY: the name ends with a zero byte and outlives the call.
        unsafe { libc::unlinkat(self.root.as_raw_fd(), group.name.as_ptr(), libc::AT_REMOVEDIR) };
    }
}

impl Cgroup {
    /// Sets the limits (`pids.max`, `memory.max` and `cpu.max` of the kernel's `cgroup-v2.rst`).
    fn limit(&self, limits: &ExecLimits) -> io::Result<()> {
        let set = |file, value: &str| write_at(self.directory.as_raw_fd(), file, value);
        if let Some(processes) = limits.processes {
            set(c"pids.max", &processes.to_string())?;
        }
        if let Some(memory) = limits.memory {
            set(c"memory.max", &memory.to_string())?;
            // Kernels without swap lack this file, and old ones cannot kill a whole group.
            let _ = set(c"memory.swap.max", "0");
            let _ = set(c"memory.oom.group", "1");
        }
        if let Some(percent) = limits.cpu_percent {
            let quota = u64::from(percent.max(1)).saturating_mul(CPU_PERIOD / 100);
            set(c"cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
        }
        Ok(())
    }

    /// Kills all processes in the group (`cgroup.kill` of the kernel's `cgroup-v2.rst`).
    pub(super) fn kill(&self) {
        self.is_used_up.set(true);
        // A failure changes nothing: the process group is killed as well.
        let _ = write_at(self.directory.as_raw_fd(), c"cgroup.kill", "1");
    }

    /// Reads `cgroup.events` (`cgroup-v2.rst`). If that fails, the group counts as not empty.
    fn holds_processes(&self) -> bool {
        let mut text = [0; 64];
        let count = self.events.read_at(&mut text, 0).unwrap_or(0);
        !text.get(..count).unwrap_or_default().windows(EMPTY.len()).any(|words| words == EMPTY)
    }
}

impl AsRawFd for Cgroup {
    fn as_raw_fd(&self) -> RawFd {
        self.directory.as_raw_fd()
    }
}

/// Mounts the hierarchy without a mount point (`fsmount(2)`).
fn detached_mount() -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte and outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

fn open_at(directory: RawFd, name: &std::ffi::CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte and outlives the call.
    owned(libc::c_long::from(unsafe { libc::openat(directory, name.as_ptr(), flags | libc::O_CLOEXEC) }))
}

fn write_at(directory: RawFd, name: &std::ffi::CStr, value: &str) -> io::Result<()> {
    File::from(open_at(directory, name, libc::O_WRONLY)?).write_all(value.as_bytes())
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The period of CPU limits in microseconds: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;
const EMPTY: &[u8] = b"populated 0";
/// The usual number of commands that run side by side.
const MAX_EMPTY: usize = 16;
/// From `linux/mount.h`.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

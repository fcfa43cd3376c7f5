//! The exits of a virtual machine as its host's KVM counts them, the same way for every monitor.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process;

/// The exits of all vCPUs so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct KvmExits {
    /// All exits, those too that KVM handles by itself.
    pub(super) all: u64,
    /// Accesses to ports.
    pub(super) ports: u64,
    /// Accesses to addresses without memory.
    pub(super) mmio: u64,
}

/// Mounts debugfs, where KVM shows its counts, if it is not mounted and this process may do that.
pub(super) fn prepare() {
    if !Path::new(COUNTS).is_dir() {
        // Without it, the table has no exits.
        let _ = process::capture(Command::new("mount").args(["-t", "debugfs", "none", DEBUGFS]));
    }
}

impl KvmExits {
    /// Returns the exits of the machine that this process has; `None` if it has none, or KVM's counts are not
    /// readable.
    pub(super) fn of(pid: u32) -> Option<KvmExits> {
        let machines = fs::read_dir(COUNTS).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let machine = machines.into_iter().find(|machine| is_of(machine, pid))?;
        let count = |name| fs::read_to_string(machine.join(name)).ok()?.trim().parse().ok();
        Some(KvmExits { all: count("exits")?, ports: count("io_exits")?, mmio: count("mmio_exits")? })
    }
}

/// Returns `true` for a directory of this process: its name is the process ID, a hyphen, and the machine's
/// descriptor.
fn is_of(machine: &Path, pid: u32) -> bool {
    let name = machine.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split_once('-').is_some_and(|(owner, _)| owner == pid.to_string())
}

const DEBUGFS: &str = "/sys/kernel/debug";
/// Linux, Documentation/virt/kvm/api.rst names the counts; `virt/kvm/kvm_main.c` makes the directory.
const COUNTS: &str = "/sys/kernel/debug/kvm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_belongs_to_the_process_of_its_name() {
        assert!(is_of(Path::new("/kvm/12-5"), 12));
        for other in ["/kvm/121-5", "/kvm/12", "/kvm/5-12", "/kvm/vcpu0"] {
            assert!(!is_of(Path::new(other), 12), "{other}");
        }
    }
}

//! Binding the threads of vCPUs to CPUs of the host.

use std::io;
use std::os::unix::thread::RawPthread;

use coracle_arch::field::CPU_AFFINITY;

use crate::config::CpuAffinity;

/// Why vCPUs cannot be bound to the configured CPUs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AffinityError {
    /// The configuration names a vCPU that the machine does not have.
    #[error("{CPU_AFFINITY} {affinity}: there is no vCPU {vcpu}, the guest has {count}, counted from 0")]
    NoSuchVcpu {
        /// The configured value.
        affinity: CpuAffinity,
        /// The index of the vCPU.
        vcpu: u8,
        /// The machine's number of vCPUs.
        count: u32,
    },
    /// The configuration names a CPU that the host does not have.
    #[error("{CPU_AFFINITY} {affinity}: this host has no CPU {cpu}: its CPUs are 0 to {last}")]
    NoSuchCpu {
        /// The configured value.
        affinity: CpuAffinity,
        /// The number of the CPU.
        cpu: u16,
        /// The highest CPU number of the host.
        last: u16,
    },
    /// This process may not run on the CPU.
    #[error(
        "{CPU_AFFINITY} {affinity}: this process may not run on CPU {cpu}, which is offline or kept from it by \
         taskset or a cpuset; /proc/self/status lists those that it may use"
    )]
    NotAllowed {
        /// The configured value.
        affinity: CpuAffinity,
        /// The number of the CPU.
        cpu: u16,
    },
    /// The system call failed.
    #[error("the threads of the vCPUs cannot be kept on CPUs: {0}")]
    Call(io::Error),
}

/// Checks that a machine with `count` vCPUs can use this affinity: that it has the vCPUs, and that the
/// calling thread, whose CPU set the vCPU threads inherit, may run on the CPUs.
pub(crate) fn check(affinity: &CpuAffinity, count: u32) -> Result<(), AffinityError> {
    check_vcpus(affinity, count)?;
    let affinity_named = || affinity.clone();
    let allowed = allowed_cpus().map_err(AffinityError::Call)?;
    let last = last_cpu();
    for cpu in affinity.cpus() {
        if cpu > last {
            return Err(AffinityError::NoSuchCpu { affinity: affinity_named(), cpu, last });
        }
        if !allowed.contains(&cpu) {
            return Err(AffinityError::NotAllowed { affinity: affinity_named(), cpu });
        }
    }
    Ok(())
}

/// Checks that a machine with `count` vCPUs has every vCPU that this affinity names, without looking at the
/// host.
pub(crate) fn check_vcpus(affinity: &CpuAffinity, count: u32) -> Result<(), AffinityError> {
    if let CpuAffinity::Each(pairs) = affinity
        && let Some((vcpu, _)) = pairs.iter().find(|(vcpu, _)| u32::from(*vcpu) >= count)
    {
        return Err(AffinityError::NoSuchVcpu { affinity: affinity.clone(), vcpu: *vcpu, count });
    }
    Ok(())
}

/// Binds a thread that has not been joined to `cpus`.
pub(super) fn pin(thread: RawPthread, cpus: &[u16]) -> io::Result<()> {
    let mut set = empty_set();
    for cpu in cpus.iter().filter(|cpu| **cpu < CpuAffinity::CPU_LIMIT) {
        // SAFETY: `cpu` is below the size of the set.
        unsafe { libc::CPU_SET(usize::from(*cpu), &mut set) };
    }
    // SAFETY: the thread is alive or not joined yet, and the given size is that of the set.
    match unsafe { libc::pthread_setaffinity_np(thread, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Returns the CPUs that the calling thread may run on.
fn allowed_cpus() -> io::Result<Vec<u16>> {
    let mut set = empty_set();
    // SAFETY: the given size is that of the set; pid 0 means the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every number is below the size of the set.
    Ok((0..CpuAffinity::CPU_LIMIT)
        .filter(|cpu| unsafe { libc::CPU_ISSET(usize::from(*cpu), &set) })
        .collect())
}

fn last_cpu() -> u16 {
    // SAFETY: sysconf only returns a number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u16::try_from(count.saturating_sub(1).max(0)).unwrap_or(u16::MAX)
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: a CPU set is an array of integers, for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::JoinHandleExt;

    use super::*;

    #[test]
    fn pinned_thread_runs_where_it_should() {
        let cpu = *allowed_cpus().unwrap().last().unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            wait.recv().unwrap();
            allowed_cpus().unwrap()
        });
        pin(thread.as_pthread_t(), &[cpu]).unwrap();
        go.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), [cpu]);
    }

    #[test]
    fn cpus_and_vcpus_that_are_not_there_are_refused() {
        let cpu = allowed_cpus().unwrap()[0];
        assert!(check(&CpuAffinity::Any(vec![cpu]), 1).is_ok());
        let error = check(&CpuAffinity::Each(vec![(4, cpu)]), 4).unwrap_err().to_string();
        assert!(error.contains("no vCPU 4"), "{error}");
        let error = check(&CpuAffinity::Any(vec![1023]), 1).unwrap_err().to_string();
        assert!(error.contains("no CPU 1023"), "{error}");
    }

    #[test]
    fn cpu_that_this_thread_may_not_use_is_refused() {
        let allowed = allowed_cpus().unwrap();
        let [first, .., other] = allowed[..] else { return };
        let error = std::thread::spawn(move || {
            // SAFETY: pthread_self is always valid; it names the calling thread.
            pin(unsafe { libc::pthread_self() }, &[first]).unwrap();
            check(&CpuAffinity::Any(vec![other]), 1).unwrap_err().to_string()
        });
        assert!(error.join().unwrap().contains(&format!("may not run on CPU {other}")));
    }
}

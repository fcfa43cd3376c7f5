//! Starting the threads of a machine, with a name for each kind.

use std::io;
use std::thread::{Builder, JoinHandle};

use coracle_devices::journal::Journal;
use coracle_devices::thread::spawn_with_signals_blocked;

/// The job of a thread, which also decides what system calls it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// Owns the machine, waits for its end and takes it apart.
    Control,
    /// Runs the vCPU with this index.
    Vcpu(u32),
    /// Serves the console and the devices that never block.
    Io,
    /// Serves one virtio device that may block; the number is the device's interrupt (GSI).
    Device(u32),
    /// Carries the bytes of the connection to the guest's agent.
    Agent,
    /// Feeds a command in the guest from a reader of the program.
    AgentInput,
    /// Passes console output to a writer or callback of the program.
    Console,
    /// Writes a snapshot of a machine to files.
    Snapshot,
    /// Closes the files, sockets and taps of a machine that has ended.
    Closer,
}

impl ThreadKind {
    /// Returns the name of the thread. Linux keeps at most 15 bytes of it (prctl(2), PR_SET_NAME).
    pub(crate) fn name(&self) -> String {
        match self {
            ThreadKind::Control => "control".to_owned(),
            ThreadKind::Vcpu(index) => format!("vcpu-{index}"),
            ThreadKind::Io => "io-0".to_owned(),
            ThreadKind::Device(gsi) => format!("virtio-{gsi}"),
            ThreadKind::Agent => "agent".to_owned(),
            ThreadKind::AgentInput => "agent-stdin".to_owned(),
            ThreadKind::Console => "console".to_owned(),
            ThreadKind::Snapshot => "snapshot".to_owned(),
            ThreadKind::Closer => "closer".to_owned(),
        }
    }

    /// Starts a thread with every signal blocked, so that a kick that arrives early stays pending. The thread
    /// writes to the journal of the thread that starts it.
    ///
    /// # Errors
    /// The host cannot start another thread.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let journal = Journal::current();
        let builder = Builder::new().name(self.name()).stack_size(STACK_BYTES);
        spawn_with_signals_blocked(builder, move || {
            let _journal = journal.enter();
            run()
        })
    }
}

/// The CPUs of the host that threads may run on: a new thread has those of the thread that starts it.
#[derive(Clone, Copy)]
pub(crate) struct HostCpus(libc::cpu_set_t);

impl HostCpus {
    /// Returns those of the calling thread; `None` on a host with more than this set can have.
    pub(crate) fn of_this_thread() -> Option<HostCpus> {
        // SAFETY: a CPU set is an array of integers, for which zero is a valid value.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the given size is that of the set; pid 0 means the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        (result >= 0).then_some(HostCpus(set))
    }

    /// Lets the calling thread run on them. If the host has taken them away, the thread stays where it is.
    pub(crate) fn give_to_this_thread(&self) {
        // SAFETY: the given size is that of the set; pid 0 means the calling thread.
        unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &raw const self.0) };
    }
}

/// Runs work that takes some milliseconds on a blocking thread of the Tokio runtime.
///
/// # Panics
/// Panics if `work` panics.
#[cfg(feature = "tokio")]
pub(crate) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The task is cancelled only when the runtime shuts down, and then no task is polled any more.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Ample for what these threads call; only pages that are touched cost memory.
const STACK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_has_the_name_of_its_kind_for_the_host_too() {
        let kinds = [
            ThreadKind::Control,
            ThreadKind::Vcpu(u32::from(u16::MAX)),
            ThreadKind::Io,
            ThreadKind::Device(23),
            ThreadKind::Agent,
            ThreadKind::AgentInput,
            ThreadKind::Console,
        ];
        for kind in kinds {
            let comm = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(kind.spawn(comm).unwrap().join().unwrap().trim_end(), kind.name());
        }
    }
}

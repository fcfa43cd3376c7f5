//! The threads of a machine: one way to start them, with a name by kind.

use std::io;
use std::thread::{Builder, JoinHandle};

use coracle_devices::journal::Journal;
use coracle_devices::thread::spawn_with_signals_blocked;

/// What a thread does, and so which calls of the host it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// Owns the machine, waits for its end and takes it apart.
    Control,
    /// Runs the vCPU with this index.
    Vcpu(u32),
    /// Serves the console and devices that never wait for the host.
    Io,
    /// Serves one virtio device that may wait for the host, by its interrupt (GSI).
    Device(u32),
    /// Moves the bytes of the guest agent's connection.
    Agent,
    /// Feeds a command in the guest from a reader of the program's.
    AgentInput,
    /// Hands console output to a writer or callback of the program's.
    Console,
}

impl ThreadKind {
    /// The name of the thread, at most 15 bytes, which is what Linux keeps (prctl(2), PR_SET_NAME).
    pub(crate) fn name(&self) -> String {
        match self {
            ThreadKind::Control => "control".to_owned(),
            ThreadKind::Vcpu(index) => format!("vcpu-{index}"),
            ThreadKind::Io => "io-0".to_owned(),
            ThreadKind::Device(gsi) => format!("virtio-{gsi}"),
            ThreadKind::Agent => "agent".to_owned(),
            ThreadKind::AgentInput => "agent-stdin".to_owned(),
            ThreadKind::Console => "console".to_owned(),
        }
    }

    /// Starts a thread with every signal blocked: a kick that arrives early stays pending. It appends to the
    /// journal of the thread that starts it.
    ///
    /// # Errors
    /// The host starts no more threads.
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

/// Work that takes some milliseconds, on a thread of the Tokio runtime's that is meant for it.
///
/// # Panics
/// Where `work` does.
#[cfg(feature = "tokio")]
pub(crate) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Nobody cancels it but a runtime that ends, which asks no task any more.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Ample for what these threads call; only touched pages cost memory.
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

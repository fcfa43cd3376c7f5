//! The thread of a device that may block. It starts when a driver first starts the device, so that a machine
//! whose guest has no driver for it has one thread less.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_devices::event_loop::{Asked, EventLoop, LoopHandle};
use coracle_devices::virtio::handler::{GroupId, HandlerGroup, HandlerHost, IfLate, Stuck};
use coracle_devices::virtio::queue::VirtQueue;

use crate::ending::HostFailure;
use crate::gate::Gate;
use crate::io_loop::IoLoop;
use crate::thread::{HostCpus, ThreadKind};

/// A thread that starts with the first handlers that are given to it.
pub(super) struct DeviceThread {
    kind: ThreadKind,
    handle: LoopHandle,
    gate: Arc<Gate>,
    /// The CPUs of the thread, where those of the vCPU's thread that starts it may be others.
    cpus: Option<HostCpus>,
    state: Mutex<State>,
}

enum State {
    Idle(Box<EventLoop>),
    Runs(IoLoop),
    /// The host did not start the thread, and the handlers given to it are gone.
    Refused,
    Ended,
}

impl DeviceThread {
    /// Makes the thread of the device with interrupt `gsi`, without starting it.
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub(super) fn new(gsi: u32, gate: Arc<Gate>, cpus: Option<HostCpus>) -> io::Result<DeviceThread> {
        let event_loop = EventLoop::new()?;
        let (kind, handle) = (ThreadKind::Device(gsi), event_loop.handle());
        Ok(DeviceThread { kind, handle, gate, cpus, state: Mutex::new(State::Idle(Box::new(event_loop))) })
    }

    /// Asks the thread to end without waiting for it, so that several can end at the same time.
    pub(super) fn ask_to_end(&self) {
        if let State::Runs(thread) = &*self.state() {
            thread.ask_to_end();
        }
    }

    /// Ends the thread. With `hangs`, it is not waited for.
    pub(super) fn end(&self, hangs: bool) {
        let state = std::mem::replace(&mut *self.state(), State::Ended);
        match state {
            State::Runs(thread) if hangs => thread.abandon(),
            State::Runs(thread) => drop(thread.stop()),
            State::Idle(_) | State::Refused | State::Ended => {}
        }
    }

    fn ensure_started(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Ended) {
            State::Idle(event_loop) => {
                match IoLoop::start(&self.kind, *event_loop, self.gate.clone(), self.cpus) {
                    Ok(thread) => State::Runs(thread),
                    Err(error) => {
                        let (thread, reason) = (self.kind.name(), error.to_string());
                        self.gate.post(HostFailure::DeviceStart { thread, reason }.into());
                        State::Refused
                    }
                }
            }
            other => other,
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandlerHost for DeviceThread {
    fn start(&self, group: HandlerGroup) -> GroupId {
        self.ensure_started();
        self.handle.start(group)
    }

    fn ask(&self, group: GroupId, if_late: IfLate) -> Asked {
        self.handle.ask(group, if_late)
    }

    fn wait(&self, asked: Asked) -> Result<Vec<VirtQueue>, Stuck> {
        if matches!(&*self.state(), State::Refused) {
            // There are no handlers to wait for, and the ending is that the thread did not start.
            return Ok(Vec::new());
        }
        self.handle.wait(asked)
    }
}

#[cfg(test)]
mod tests {
    use coracle_devices::irq::IrqLine;
    use coracle_devices::virtio::VirtioIrq;

    use super::*;

    struct NoLine;

    impl IrqLine for NoLine {
        fn pulse(&self) {}
    }

    #[test]
    fn device_whose_thread_the_host_did_not_start_does_not_count_as_stuck() {
        let mut thread = DeviceThread::new(5, Arc::new(Gate::new()), None).unwrap();
        // What is left after the host has refused the thread: a loop that has gone.
        thread.state = Mutex::new(State::Refused);
        let irq = VirtioIrq::new(Arc::new(NoLine));
        let group = thread.start(HandlerGroup { name: "disk a".to_owned(), irq, handlers: Vec::new() });
        for if_late in [IfLate::Continue, IfLate::Drop] {
            let asked = thread.ask(group, if_late);
            assert!(thread.wait(asked).is_ok_and(|queues| queues.is_empty()), "{if_late:?}");
        }
    }
}

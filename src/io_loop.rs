//! An I/O thread: an event loop for devices that wait for something on the host.
//!
//! `io-0` serves the console and every virtio device that never blocks; each device that may block has a
//! thread of its own, which starts with its driver. `vm::stop` ends the threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coracle_devices::event_loop::{EventLoop, LoopHandle};

use crate::ending::HostFailure;
use crate::gate::Gate;
use crate::thread::{HostCpus, ThreadKind};

/// The owner's handle of an I/O thread.
pub(crate) struct IoLoop {
    stop: Arc<AtomicBool>,
    handle: LoopHandle,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl IoLoop {
    /// Starts a thread that runs `event_loop` on `cpus`, or on those of the calling thread. A panic in it
    /// ends the virtual machine through `gate`.
    pub(crate) fn start(
        kind: &ThreadKind,
        mut event_loop: EventLoop,
        gate: Arc<Gate>,
        cpus: Option<HostCpus>,
    ) -> io::Result<IoLoop> {
        let stop = Arc::new(AtomicBool::new(false));
        let handle = event_loop.handle();
        let (alive, ended) = mpsc::channel();
        let name = kind.name();
        let thread = kind.spawn({
            let stop = stop.clone();
            move || {
                let _alive: Sender<()> = alive;
                cpus.iter().for_each(HostCpus::give_to_this_thread);
                let _report = PanicReport { thread: name, gate };
                run(&mut event_loop, &stop);
            }
        })?;
        Ok(IoLoop { stop, handle, ended, thread: Some(thread) })
    }

    /// Asks the thread to end without waiting for it, so that several can end at the same time.
    pub(crate) fn ask_to_end(&self) {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
    }

    /// Lets the handlers write out what they hold, for at most [`DRAIN_LIMIT`], and ends the thread. Returns
    /// `false` if it did not end because a call to the host hangs; it is then abandoned with what it uses.
    pub(crate) fn stop(mut self) -> bool {
        self.end(STOP_LIMIT)
    }

    /// Abandons a thread that is known to hang; it ends when it can.
    pub(crate) fn abandon(mut self) {
        self.end(Duration::ZERO);
    }

    fn end(&mut self, limit: Duration) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        self.ask_to_end();
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        // A panic of the thread has already been reported.
        let _ = thread.join();
        true
    }
}

impl Drop for IoLoop {
    fn drop(&mut self) {
        self.end(STOP_LIMIT);
    }
}

fn run(event_loop: &mut EventLoop, stop: &AtomicBool) {
    let mut deadline = None;
    loop {
        if stop.load(Ordering::Acquire) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
            let left = deadline.saturating_duration_since(Instant::now());
            if event_loop.is_drained() || left.is_zero() {
                return;
            }
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            event_loop.run_once(millis);
        } else {
            event_loop.run_once(-1);
        }
    }
}

struct PanicReport {
    thread: String,
    gate: Arc<Gate>,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = std::mem::take(&mut self.thread);
            self.gate.post(HostFailure::ThreadPanicked { thread }.into());
        }
    }
}

/// How long the last console output may take to be written. A reader that has stopped reading must not hold
/// up the end of the machine for longer.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long the thread may take to end: draining, and a write to a slow file.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use coracle_devices::event_loop::{Resident, watch};
    use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// A handler whose first event hangs, like a write to a file on a dead server.
    struct Stuck(EventFd);

    impl MutEventSubscriber for Stuck {
        fn init(&mut self, ops: &mut EventOps) {
            watch(ops, &self.0, 0, EventSet::IN);
        }

        fn process(&mut self, _: Events, _: &mut EventOps) {
            thread::sleep(STOP_LIMIT * 100);
        }
    }

    impl Resident for Stuck {
        fn is_drained(&self) -> bool {
            false
        }
    }

    fn io_loop(resident: Stuck) -> IoLoop {
        let mut event_loop = EventLoop::new().unwrap();
        event_loop.add_resident(Box::new(resident));
        IoLoop::start(&ThreadKind::Io, event_loop, Arc::new(Gate::new()), None).unwrap()
    }

    #[test]
    fn stuck_handler_is_left_behind() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        assert!(!io_loop(Stuck(event)).stop());
    }

    #[test]
    fn handler_that_never_drains_ends_with_the_limit() {
        let silent = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(io_loop(Stuck(silent)).stop());
    }
}

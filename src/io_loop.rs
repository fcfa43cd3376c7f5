//! The I/O thread: one event loop for every device that has something to wait for on the host.
//!
//! Started by the builder, stopped by `vm::lifecycle`. Its handlers never block; a device that must has a thread of
//! its own.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::control::{Control, VmEvent};
use crate::kvm::spawn_with_signals_blocked;
use crate::vm::outcome::HostFailure;

/// A device's part in the event loop.
pub(crate) trait IoHandler: MutEventSubscriber + Send {
    /// True when nothing is left that the guest has handed over and the host has not taken.
    fn is_drained(&self) -> bool;
}

/// The owner's side of the I/O thread.
pub(crate) struct IoLoop {
    stop: Arc<StopRequest>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl IoLoop {
    /// Starts the thread with `handler` on it. A panic in it ends the virtual machine through `control`.
    pub(crate) fn start(handler: Box<dyn IoHandler>, control: Arc<Control>) -> io::Result<IoLoop> {
        let stop = Arc::new(StopRequest {
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            requested: AtomicBool::new(false),
        });
        let mut manager = EventManager::new_with_capacity(READY_EVENTS).map_err(io::Error::other)?;
        let handler_id = manager.add_subscriber(Subscriber::Device(handler));
        manager.add_subscriber(Subscriber::Stop(stop.clone()));
        let (alive, ended) = mpsc::channel();
        let thread = spawn_with_signals_blocked("io-0".into(), {
            let stop = stop.clone();
            move || {
                let _alive: Sender<()> = alive;
                let _report = PanicReport { control };
                run(manager, handler_id, &stop);
            }
        })?;
        Ok(IoLoop { stop, ended, thread: Some(thread) })
    }

    /// Lets the handlers hand out what they hold, for [`DRAIN_LIMIT`] at most, and ends the thread. False when it did
    /// not end: something on the host holds it, and it is left behind with what it uses.
    pub(crate) fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        self.stop.requested.store(true, Ordering::Release);
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.stop.event.write(1);
        if self.ended.recv_timeout(STOP_LIMIT) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        // A panic of the thread has been reported by itself.
        let _ = thread.join();
        true
    }
}

impl Drop for IoLoop {
    fn drop(&mut self) {
        self.end();
    }
}

type Manager = EventManager<Subscriber>;

fn run(mut manager: Manager, handler: event_manager::SubscriberId, stop: &StopRequest) {
    let mut deadline = None;
    loop {
        if stop.requested.load(Ordering::Acquire) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
            let left = deadline.saturating_duration_since(Instant::now());
            let drained = manager.subscriber_mut(handler).is_ok_and(|handler| handler.is_drained());
            if drained || left.is_zero() {
                return;
            }
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            run_once(&mut manager, millis);
        } else {
            run_once(&mut manager, -1);
        }
    }
}

fn run_once(manager: &mut Manager, timeout_millis: i32) {
    if let Err(error) = manager.run_with_timeout(timeout_millis) {
        log::error!("waiting for I/O events failed: {error}");
    }
}

/// The event loop's one type of subscriber.
enum Subscriber {
    Device(Box<dyn IoHandler>),
    Stop(Arc<StopRequest>),
}

impl Subscriber {
    fn is_drained(&self) -> bool {
        match self {
            Subscriber::Device(handler) => handler.is_drained(),
            Subscriber::Stop(_) => true,
        }
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Subscriber::Device(handler) => handler.init(ops),
            Subscriber::Stop(stop) => watch(ops, &stop.event, 0, EventSet::IN),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            Subscriber::Device(handler) => handler.process(events, ops),
            Subscriber::Stop(stop) => {
                let _ = stop.event.read();
            }
        }
    }
}

/// Adds a file descriptor to the loop. It fails only where epoll itself cannot wait for such a file, which the
/// caller has ruled out.
pub(crate) fn watch(ops: &mut EventOps, source: &impl AsRawFd, data: u32, set: EventSet) {
    if let Err(error) = ops.add(Events::with_data(source, data, set)) {
        log::error!("an I/O source cannot be watched: {error}");
    }
}

#[derive(Debug)]
struct StopRequest {
    event: EventFd,
    requested: AtomicBool,
}

struct PanicReport {
    control: Arc<Control>,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            let failure = HostFailure::ThreadPanicked { thread: "io-0".into() };
            self.control.post(VmEvent::HostFailure(failure));
        }
    }
}

/// How long the last console bytes may take to leave.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long the thread may take to end: draining, and a write to a file that is slow.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(2);
/// More than there are file descriptors in the loop.
const READY_EVENTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// A handler that is stuck in its first event, as in a write to a file on a dead server.
    struct Stuck(EventFd);

    impl MutEventSubscriber for Stuck {
        fn init(&mut self, ops: &mut EventOps) {
            watch(ops, &self.0, 0, EventSet::IN);
        }

        fn process(&mut self, _: Events, _: &mut EventOps) {
            thread::sleep(STOP_LIMIT * 100);
        }
    }

    impl IoHandler for Stuck {
        fn is_drained(&self) -> bool {
            false
        }
    }

    #[test]
    fn stuck_handler_is_left_behind() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        let io_loop = IoLoop::start(Box::new(Stuck(event)), Arc::new(Control::new())).unwrap();
        assert!(!io_loop.stop());
    }

    #[test]
    fn handler_that_never_drains_ends_with_the_limit() {
        let silent = EventFd::new(EFD_NONBLOCK).unwrap();
        let io_loop = IoLoop::start(Box::new(Stuck(silent)), Arc::new(Control::new())).unwrap();
        assert!(io_loop.stop());
    }
}

//! The part of a device that serves its queues, and where it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events};

use super::irq::VirtioIrq;
use super::queue::{RingError, VirtQueue};
use crate::event_loop::Asked;
use crate::journal;

/// Serves some queues of a device while the driver has it active.
///
/// The transport makes handlers by [`VirtioDevice::activate`](super::VirtioDevice::activate) and moves them
/// to an I/O thread, which calls everything below. Reset, pause, stop and snapshot take them back in one way:
/// [`quiesce`](Self::quiesce), events as before until [`is_drained`](Self::is_drained), then
/// [`stop`](Self::stop). After a pause the device makes new ones with the same queues. What has to outlive a
/// handler (a tap, an open file, connections) belongs to the device, which shares it.
pub trait QueueHandler: Send {
    /// Adds the event sources: the doorbells of the queues by [`watch_doorbell`], and file descriptors of its
    /// own. A doorbell that was rung before is told of at once.
    fn start(&mut self, sources: &mut EventOps<'_>);

    /// Serves one event, for a [turn](super::poll::TURN) at most: what is left then is for the next event. It
    /// never waits, unless the device says that it [blocks](super::VirtioDevice::blocks). One that does looks
    /// for the wish to [stop](StopFlag) between any two calls of the host, and none of these transfers more
    /// than 1 MiB.
    ///
    /// # Errors
    /// A ring is damaged: the handler gets no more events, and the device needs a reset.
    fn process(&mut self, event: Events, sources: &mut EventOps<'_>) -> Result<(), RingError>;

    /// Takes nothing new from its queues from here on, and hurries what it has begun; or, with `false`, goes
    /// on.
    fn quiesce(&mut self, _quiet: bool) {}

    /// True when it holds no chain of its queues. A handler that completes each chain before `process`
    /// returns always is.
    fn is_drained(&self) -> bool {
        true
    }

    /// Hands the queues back, none with a chain in flight: a chain that was begun and is not done is [put
    /// back](VirtQueue::put_back). A paused machine is then in the guest's memory and in registers, and the
    /// device keeps nothing of its requests. The event sources have been removed.
    fn stop(self: Box<Self>) -> Vec<VirtQueue>;
}

/// The handlers of one device, while it is active.
pub struct HandlerGroup {
    /// The device's name, for messages.
    pub name: String,
    /// Told when a handler fails.
    pub irq: VirtioIrq,
    /// The handlers.
    pub handlers: Vec<Box<dyn QueueHandler>>,
}

/// The number of a group that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub(crate) u64);

/// An I/O thread that handlers come to and go from. Called by vCPU threads and by the control thread.
pub trait HandlerHost: Send + Sync {
    /// Lets the handlers run. It does not wait for them to start.
    fn start(&self, group: HandlerGroup) -> GroupId;

    /// Asks for the queues of a group, without waiting for them: several groups are asked before any is
    /// waited for.
    fn ask(&self, group: GroupId, if_late: IfLate) -> Asked;

    /// Waits for the queues that were asked for, for [`HAND_BACK_LIMIT`](crate::event_loop::HAND_BACK_LIMIT)
    /// after the question.
    ///
    /// # Errors
    /// The group does not drain in time: something on the host holds it.
    fn wait(&self, asked: Asked) -> Result<Vec<VirtQueue>, Stuck>;
}

/// The wish to have the queues of a device back. Whoever wants them raises it before asking the thread of its
/// handlers, so that one in the middle of long work sees it there.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Begins no more work from here on.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Goes on.
    pub fn lower(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// True when no more work is to be begun.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What becomes of handlers that drain after the one who waited has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfLate {
    /// They go on.
    Continue,
    /// They are dropped.
    Drop,
}

/// The handlers of a device did not drain in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("requests are still in flight")]
pub struct Stuck;

/// Watches the doorbell of `queue`; its events carry `data`. Each ring gives an event, without the need to
/// read it.
pub fn watch_doorbell(sources: &mut EventOps<'_>, queue: &VirtQueue, data: u32) {
    let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
    if let Err(error) = sources.add(Events::with_data(&**queue.doorbell(), data, events)) {
        journal!(Host Error, "a virtio doorbell cannot be watched: {error}");
    }
}

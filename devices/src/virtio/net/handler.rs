//! Serves the queues of a network card, and waits for its end on the host.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::control::ControlQueue;
use super::link::Link;
use super::receive::{FRAMES_AT_ONCE, Receiver};
use super::transmit::Transmitter;
use super::{Card, count};
use crate::backend::net::{Interest, LinkLost, NetBackend, Received};
use crate::event_loop::watch;
use crate::journal;
use crate::lock;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, VirtioIrq, watch_doorbell};

/// The handler of all queues of one card.
pub(super) struct NetHandler {
    receiver: Receiver,
    transmitter: Transmitter,
    control: Option<ControlQueue>,
    backend: Arc<Mutex<Box<dyn NetBackend>>>,
    card: Arc<Card>,
    irq: VirtioIrq,
    /// The descriptor and events of the back end that the loop watches; `None` once the back end is gone.
    watched: Option<Interest>,
    /// Fires when something has waited for too long. Without a timer the handler drops at once, since it
    /// could not wait.
    timer: Option<TimerFd>,
    timer_runs: bool,
    poll: Poll,
}

/// The queues of a card.
pub(super) struct NetQueues {
    pub(super) receive: VirtQueue,
    pub(super) send: VirtQueue,
    /// `None` if the driver has not set it up, which it may do.
    pub(super) control: Option<VirtQueue>,
}

impl NetHandler {
    pub(super) fn new(
        queues: NetQueues,
        backend: Arc<Mutex<Box<dyn NetBackend>>>,
        card: Arc<Card>,
        irq: VirtioIrq,
        features: u64,
    ) -> Self {
        let poll = Poll::new(card.poll);
        let NetQueues { receive, send, control } = queues;
        Self {
            receiver: Receiver::new(receive, features),
            transmitter: Transmitter::new(send),
            control: control.map(|queue| ControlQueue::new(queue, features)),
            backend,
            card,
            irq,
            watched: None,
            timer: TimerFd::new().ok(),
            timer_runs: false,
            poll,
        }
    }

    fn serve(&mut self, event: Events, link: &mut Link<'_>) -> Result<(), RingError> {
        let set = event.event_set();
        match event.data() {
            CONTROL_DOORBELL => {
                if let Some(control) = &mut self.control {
                    control.serve(link.card, |offloads| link.backend.set_offloads(offloads))?;
                }
            }
            TIMER => {
                self.timer_runs = false;
                give_up(&mut self.receiver, &mut self.transmitter, link);
            }
            BACKEND => link.ready(set),
            _ => {}
        }
        self.serve_frames(link)?;
        if event.data() == BACKEND && set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            end_is_gone(&mut self.receiver, link);
        }
        Ok(())
    }

    /// Serves frames in both directions, until there are none for a while or the turn is over.
    fn serve_frames(&mut self, link: &mut Link<'_>) -> Result<(), RingError> {
        let Self { receiver, transmitter, poll, .. } = self;
        loop {
            let received = receiver.serve(link)?;
            transmitter.serve(link)?;
            let is_more = received == FRAMES_AT_ONCE || transmitter.has_work();
            if !is_more && !look(poll, receiver, transmitter, link)? {
                receiver.rest()?;
                return transmitter.rest();
            }
            if poll.is_turn_over() {
                // Another event continues after the other devices' turns. The watch on the back end is
                // edge-triggered, so it gives no event for frames that are already there.
                receiver.queue().ring();
                return Ok(());
            }
        }
    }

    /// Watches the back end for what the handler waits for, and starts the timer while a frame waits.
    fn wait_for_what_is_missing(
        &mut self,
        link: &mut Link<'_>,
        sources: &mut EventOps<'_>,
    ) -> Result<(), RingError> {
        if let Some(lost) = link.lost.take() {
            self.card.take_down(&self.irq, &lost);
        }
        if !link.is_up() {
            if let Some(watched) = self.watched.take() {
                let _ = sources.remove(Events::empty_raw(watched.descriptor));
            }
            // Frames that waited for the host are dropped, and so are all that follow.
            return if self.transmitter.waits_for_host() { self.serve_frames(link) } else { Ok(()) };
        }
        let wanted = link.backend.interest(self.transmitter.waits_for_host());
        if self.watched.is_some_and(|watched| watched != wanted) {
            if let Err(error) = sources.modify(events_of(wanted)) {
                journal!(Host Error, "{}: the back end cannot be watched: {error}", self.card.name);
            }
            self.watched = Some(wanted);
        }
        self.keep_time(link)
    }

    /// Starts the timer when a frame begins to wait, and again when waiting frames have made progress.
    fn keep_time(&mut self, link: &mut Link<'_>) -> Result<(), RingError> {
        let (frame, frames) = (self.receiver.holds_frame(), self.transmitter.holds_frames());
        if !frame && !frames {
            self.timer_runs = false;
            return Ok(());
        }
        let has_moved_on = (!frame || link.has_delivered) && (!frames || link.has_sent);
        if self.timer_runs && !has_moved_on {
            return Ok(());
        }
        self.timer_runs = self.timer.as_mut().is_some_and(|timer| timer.reset(PATIENCE, None).is_ok());
        if self.timer_runs {
            return Ok(());
        }
        give_up(&mut self.receiver, &mut self.transmitter, link);
        self.serve_frames(link)
    }
}

impl QueueHandler for NetHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, self.receiver.queue(), RECEIVE_DOORBELL);
        watch_doorbell(sources, self.transmitter.queue(), SEND_DOORBELL);
        if let Some(control) = &self.control {
            watch_doorbell(sources, control.queue(), CONTROL_DOORBELL);
        }
        if let Some(timer) = &self.timer {
            // The watch is edge-triggered, so each expiry gives one event although nobody reads the timer. A
            // read could block when the timer has been started again.
            watch(sources, timer, TIMER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
        let backend = lock(&self.backend);
        if self.card.is_up.load(std::sync::atomic::Ordering::Acquire) {
            let wanted = backend.interest(false);
            match sources.add(events_of(wanted)) {
                Ok(()) => self.watched = Some(wanted),
                Err(error) => {
                    journal!(Host Error, "{}: the back end cannot be watched: {error}", self.card.name);
                }
            }
        }
    }

    fn process(&mut self, event: Events, sources: &mut EventOps<'_>) -> Result<(), RingError> {
        let (backend, card) = (self.backend.clone(), self.card.clone());
        let mut backend = lock(&backend);
        let mut link = Link::new(&card, &mut **backend);
        self.poll.begin_turn();
        self.serve(event, &mut link)?;
        self.wait_for_what_is_missing(&mut link, sources)
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let Self { receiver, transmitter, control, .. } = *self;
        let queues = [receiver.into_queue(), transmitter.into_queue()];
        queues.into_iter().chain(control.map(ControlQueue::into_queue)).collect()
    }
}

/// Searches for frames of either side for a short time. Frames from the host are received at once.
fn look(
    poll: &mut Poll,
    receiver: &mut Receiver,
    transmitter: &mut Transmitter,
    link: &mut Link<'_>,
) -> Result<bool, RingError> {
    let mut received = Ok(0);
    let mut tries = 0_u32;
    let found = poll.look(|| {
        tries = tries.wrapping_add(1);
        if tries.is_multiple_of(TRIES_PER_CALL) {
            received = receiver.serve(link);
        }
        received != Ok(0) || transmitter.has_work()
    });
    received.map(|_| found)
}

/// Handles the report that the host's end is gone. The link goes down when all frames that are left there
/// have been received.
fn end_is_gone(receiver: &mut Receiver, link: &mut Link<'_>) {
    if !receiver.wants_frames() {
        // Without buffers the frames that are left reach nobody, and no other event will report the end
        // again.
        receiver.give_up(link);
        let mut left = 0..MAX_LEFT;
        while left.next().is_some() && link.receive(&[]) != Received::Nothing {
            count(&link.card.counters.receive_dropped);
        }
    }
    if link.is_drained {
        link.lost.get_or_insert(LinkLost::HungUp);
    }
}

/// Returns the event source for the back end.
fn events_of(interest: Interest) -> Events {
    Events::with_data_raw(interest.descriptor, BACKEND, interest.events)
}

/// Drops frames that have waited for too long.
fn give_up(receiver: &mut Receiver, transmitter: &mut Transmitter, link: &Link<'_>) {
    receiver.give_up(link);
    transmitter.give_up();
}

/// How long a frame waits for the other side: long enough for a program on a busy host, and short enough for
/// a guest whose peer has stopped.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The number of frames that are read and dropped when the host's end is gone: more than a socket of the
/// usual size holds.
const MAX_LEFT: u32 = 100_000;

/// Looks at the guest's queue for each look at the host's end, because the latter is a system call.
const TRIES_PER_CALL: u32 = 4;

/// The event data that tell the sources apart.
const RECEIVE_DOORBELL: u32 = 0;
const SEND_DOORBELL: u32 = 1;
const CONTROL_DOORBELL: u32 = 2;
const BACKEND: u32 = 3;
const TIMER: u32 = 4;

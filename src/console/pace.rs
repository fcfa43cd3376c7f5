//! The pace at which a console is drained while its guest prints without a break.
//!
//! A serial port gets its output byte by byte, and a wake-up for each would cost more than the byte: two
//! switches of threads, and on a single CPU both lie on the vCPU's way. So when wake-ups follow each other
//! closely, a timer takes their place until the guest pauses.

use std::time::{Duration, Instant};

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::event_loop::watch;
use event_manager::{EventOps, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// The timer of a console.
#[derive(Default)]
pub(super) struct Pace {
    /// Without a timer, each wake-up is served.
    timer: Option<TimerFd>,
    is_running: bool,
    last_wake: Option<Instant>,
}

impl Pace {
    /// Makes the timer. It exists from the start, so that the number of a machine's descriptors does not
    /// depend on what its guest prints.
    pub(super) fn new() -> Pace {
        Pace { timer: TimerFd::new().ok(), ..Pace::default() }
    }

    /// Lets the timer's expiries be events with the number `data`.
    pub(super) fn watch(&self, data: u32, ops: &mut EventOps) {
        if let Some(timer) = &self.timer {
            // Each expiry gives one event although nobody reads the timer; a read could block.
            watch(ops, timer, data, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
    }

    /// Returns whether the timer has the place of wake-ups.
    pub(super) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Notes a wake-up, and lets the timer take over if the one before was less than an [`INTERVAL`] ago.
    pub(super) fn after_wake(&mut self, buffer: &ConsoleBuffer) {
        let now = Instant::now();
        let before = self.last_wake.replace(now);
        let is_soon = before.is_some_and(|before| now.saturating_duration_since(before) < INTERVAL);
        if is_soon && !self.is_running && self.go_on() {
            self.is_running = true;
            buffer.set_paced(true);
        }
    }

    /// Returns to wake-ups. Returns `true` if there is output that no wake-up announces any more.
    pub(super) fn stop(&mut self, buffer: &ConsoleBuffer) -> bool {
        if let Some(timer) = &mut self.timer {
            // If it fails, one expiry comes, and is ignored.
            let _ = timer.clear();
        }
        self.is_running = false;
        buffer.set_paced(false)
    }

    /// Starts the next interval. Returns `false` if there can be none.
    pub(super) fn go_on(&mut self) -> bool {
        self.timer.as_mut().is_some_and(|timer| timer.reset(INTERVAL, None).is_ok())
    }
}

/// Shorter than anybody notices, and the time of some twenty bytes where an exit takes longest.
const INTERVAL: Duration = Duration::from_micros(250);

//! A short look for more work before an I/O thread goes to sleep: waking it up costs a guest far more than a
//! request does.
//!
//! The look lasts at most as long as the user allows, and adapts: it becomes longer where work comes soon
//! after the thread has gone to sleep, shorter where it does not, and pauses where other threads want the
//! CPU, and where it finds nothing again and again: whoever makes the work may be waiting for this very CPU.

use std::hint;
use std::time::{Duration, Instant};

/// When one I/O thread looks for work, and for how long.
#[derive(Debug)]
pub struct Poll {
    most: Duration,
    /// How long a look takes at present; zero for none.
    window: Duration,
    /// When the last look began that found nothing.
    idle_since: Option<Instant>,
    /// The start of the turn that is being served.
    turn: Instant,
    looks: u32,
    /// Looks in a row that found nothing.
    misses: u32,
    /// Times that the thread had to leave its CPU to others, when last asked.
    preempted: i64,
    /// Until when there are no looks.
    pause_until: Option<Instant>,
}

impl Poll {
    /// What is long enough for a driver that goes on at once, and short against what a sleep costs.
    pub const DEFAULT: Duration = Duration::from_micros(32);
    /// The longest look: other devices of the same thread wait for it.
    pub const MOST: Duration = Duration::from_millis(1);

    /// Looks of up to `most`; zero is never to look.
    pub fn new(most: Duration) -> Self {
        Self {
            most: most.min(Self::MOST),
            window: Duration::ZERO,
            idle_since: None,
            turn: Instant::now(),
            looks: 0,
            misses: 0,
            preempted: 0,
            pause_until: None,
        }
    }

    /// An event has come: a turn begins.
    pub fn begin_turn(&mut self) {
        self.turn = Instant::now();
        if self.most.is_zero() {
            return;
        }
        let Some(since) = self.idle_since.take() else { return };
        if self.turn.saturating_duration_since(since) <= self.most {
            self.window = self.window.saturating_mul(2).clamp(FIRST, self.most.max(FIRST)).min(self.most);
        } else {
            self.window = shorter(self.window);
        }
    }

    /// More of the same work has come: a turn begins that says nothing about how soon work comes.
    pub fn extend_turn(&mut self) {
        self.turn = Instant::now();
    }

    /// True when this turn has lasted so long that other devices and requests to stop want to be heard.
    pub fn is_turn_over(&self) -> bool {
        self.turn.elapsed() > TURN
    }

    /// Looks for work until `found` has some. False when the time is over.
    pub fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.most.is_zero() {
            return false;
        }
        let start = Instant::now();
        self.idle_since = Some(start);
        if self.window.is_zero() || self.is_paused(start) {
            return false;
        }
        loop {
            for _ in 0..SPINS {
                if found() {
                    self.misses = 0;
                    return true;
                }
                hint::spin_loop();
            }
            if start.elapsed() >= self.window {
                self.missed(start);
                return false;
            }
        }
    }

    fn missed(&mut self, now: Instant) {
        self.misses = self.misses.wrapping_add(1);
        if self.misses >= MISSES {
            self.misses = 0;
            self.pause_until = now.checked_add(PAUSE);
        }
    }

    /// Whether looks do not pay now, or other threads want this CPU. The kernel is asked now and then only.
    fn is_paused(&mut self, now: Instant) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS_PER_QUESTION) {
            let preempted = preemptions();
            if preempted.wrapping_sub(self.preempted) > FORGIVEN {
                self.pause_until = now.checked_add(PAUSE);
            }
            self.preempted = preempted;
        }
        match self.pause_until {
            Some(until) if now < until => true,
            Some(_) => {
                self.pause_until = None;
                false
            }
            None => false,
        }
    }
}

fn shorter(window: Duration) -> Duration {
    let half = window.checked_div(2).unwrap_or_default();
    if half < FIRST { Duration::ZERO } else { half }
}

/// Times that this thread was made to leave its CPU.
fn preemptions() -> i64 {
    // SAFETY: an all-zero structure is valid: it is plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has room for the answer; where the call fails it stays zero.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

/// The shortest look that is worth it: what a driver needs from one request to the next.
const FIRST: Duration = Duration::from_micros(4);
/// Tries between two looks at the clock.
const SPINS: u32 = 32;
/// The longest time that a device is served without the others of its thread: a call of the host that has
/// begun is the only thing that lengthens it.
pub const TURN: Duration = Duration::from_millis(1);
/// Looks between two questions to the kernel, which cost some 0.3 us.
const LOOKS_PER_QUESTION: u32 = 128;
/// Preemptions between two questions that other work does not explain: the kernel's own threads come and go.
const FORGIVEN: i64 = 1;
/// Looks in a row that may find nothing.
const MISSES: u32 = 8;
/// How long the CPUs are left to others.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn woken_soon(poll: &mut Poll) {
        poll.look(|| false);
        poll.begin_turn();
    }

    #[test]
    fn look_finds_work_only_after_work_has_come_soon() {
        let mut poll = Poll::new(Poll::MOST);
        assert!(!poll.look(|| true), "nothing has come soon yet");
        poll.begin_turn();
        assert!(poll.look(|| true));
        let mut tries = 0;
        assert!(poll.look(|| {
            tries += 1;
            tries == 50
        }));
    }

    #[test]
    fn look_that_is_not_allowed_never_tries() {
        let mut poll = Poll::new(Duration::ZERO);
        for _ in 0..3 {
            woken_soon(&mut poll);
            assert!(!poll.look(|| panic!("tried")));
        }
    }

    #[test]
    fn looks_that_find_nothing_again_and_again_pause() {
        let mut poll = Poll::new(Poll::MOST);
        poll.window = FIRST;
        for _ in 0..MISSES {
            assert!(poll.pause_until.is_none());
            poll.look(|| false);
        }
        assert!(poll.pause_until.is_some());
        poll.pause_until = None;
        for _ in 0..MISSES {
            poll.look(|| false);
            poll.look(|| true);
        }
        assert!(poll.pause_until.is_none());
    }

    #[test]
    fn window_grows_to_the_limit_and_ends_when_work_comes_late() {
        let most = Duration::from_micros(100);
        let mut poll = Poll::new(most);
        // The machine may be slow now and then.
        let grown = (0..1000).any(|_| {
            woken_soon(&mut poll);
            poll.window == most
        });
        assert!(grown, "{poll:?}");
        for _ in 0..6 {
            poll.look(|| false);
            std::thread::sleep(most * 2);
            poll.begin_turn();
        }
        assert_eq!(poll.window, Duration::ZERO);
    }

    #[test]
    fn turn_ends() {
        for most in [Duration::ZERO, Poll::DEFAULT] {
            let mut poll = Poll::new(most);
            poll.begin_turn();
            std::thread::sleep(TURN * 2);
            assert!(poll.is_turn_over());
        }
    }

    #[test]
    fn thread_that_is_preempted_leaves_the_cpu_to_others() {
        let mut poll = Poll::new(Poll::MOST);
        woken_soon(&mut poll);
        poll.preempted = -10;
        poll.looks = LOOKS_PER_QUESTION - 1;
        assert!(!poll.look(|| true));
        poll.pause_until = Instant::now().checked_sub(Duration::from_millis(1));
        assert!(poll.look(|| true));
    }
}

//! A short search for more work before an I/O thread goes to sleep: waking the thread costs a guest far more
//! than serving a request does.
//!
//! A search lasts at most as long as the user allows, and adapts. It becomes longer when work comes soon
//! after the thread has gone to sleep, and shorter when it does not. Searches pause when other threads want
//! the CPU, and when several in a row find nothing, because the thread that makes the work may be waiting for
//! this very CPU.

use std::hint;
use std::time::{Duration, Instant};

/// Decides when one I/O thread searches for work, and for how long.
#[derive(Debug)]
pub struct Poll {
    most: Duration,
    /// How long a search takes at present; zero for no search.
    window: Duration,
    /// When the last search began, unless it found work.
    idle_since: Option<Instant>,
    /// The start of the present turn.
    turn: Instant,
    /// The number of searches, by which the calls of `getrusage` are spaced.
    looks: u32,
    /// Searches in a row that found nothing.
    misses: u32,
    /// The thread's involuntary context switches when the kernel was last asked.
    preempted: i64,
    /// There are no searches before this time.
    pause_until: Option<Instant>,
}

impl Poll {
    /// The default limit of a search: long enough for a driver that goes on at once, and short compared with
    /// the cost of a sleep.
    pub const DEFAULT: Duration = Duration::from_micros(32);
    /// The largest limit of a search: the other devices of the thread wait for its end.
    pub const MAX: Duration = Duration::from_millis(1);

    /// Allows searches of up to `most`, at most [`Poll::MAX`]; zero allows none.
    pub fn new(most: Duration) -> Self {
        Self {
            most: most.min(Self::MAX),
            window: Duration::ZERO,
            idle_since: None,
            turn: Instant::now(),
            looks: 0,
            misses: 0,
            preempted: 0,
            pause_until: None,
        }
    }

    /// Begins a turn because an event has come, and adapts the length of searches to how soon it came.
    pub fn begin_turn(&mut self) {
        self.turn = Instant::now();
        if self.most.is_zero() {
            return;
        }
        let Some(since) = self.idle_since.take() else { return };
        if self.turn.saturating_duration_since(since) <= self.most {
            self.window =
                self.window.saturating_mul(2).clamp(MIN_WINDOW, self.most.max(MIN_WINDOW)).min(self.most);
        } else {
            self.window = shorter(self.window);
        }
    }

    /// Begins a turn for more of the same work, which says nothing about how soon new work comes.
    pub fn extend_turn(&mut self) {
        self.turn = Instant::now();
    }

    /// Returns whether this turn has lasted so long that other devices and requests to stop have to be
    /// served.
    pub fn is_turn_over(&self) -> bool {
        self.turn_time() > TURN
    }

    /// Returns how long this turn has lasted.
    pub fn turn_time(&self) -> Duration {
        self.turn.elapsed()
    }

    /// Searches until `found` returns true. Returns false if the time ends first.
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
                self.note_miss(start);
                return false;
            }
        }
    }

    fn note_miss(&mut self, now: Instant) {
        self.misses = self.misses.wrapping_add(1);
        if self.misses >= MISSES {
            self.misses = MISSES.saturating_sub(MISSES_AFTER_PAUSE);
            self.pause_until = now.checked_add(PAUSE);
        }
    }

    /// Returns whether searches are paused, or other threads want this CPU. The kernel is asked only now and
    /// then.
    fn is_paused(&mut self, now: Instant) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(SEARCHES_PER_RUSAGE) {
            let preempted = preemptions();
            if preempted.wrapping_sub(self.preempted) > TOLERATED_PREEMPTIONS {
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
    if half < MIN_WINDOW { Duration::ZERO } else { half }
}

/// Returns how often this thread was made to leave its CPU (involuntary context switches).
fn preemptions() -> i64 {
    // SAFETY: `rusage` is plain data, for which all zeroes are a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `rusage` to a place of that size. If the call fails, it stays zero.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

/// The shortest search that is worth it: the time that a driver needs from one request to the next.
const MIN_WINDOW: Duration = Duration::from_micros(4);
/// Calls of `found` between two looks at the clock, which costs more than one of them.
const SPINS: u32 = 32;
/// The longest time that a thread serves one device before the others. Only a call to the host that has
/// already begun lengthens it.
pub const TURN: Duration = Duration::from_millis(1);
/// Searches between two calls of `getrusage`, each of which costs about 0.3 us.
const SEARCHES_PER_RUSAGE: u32 = 128;
/// Involuntary switches between two calls that do not count as demand for the CPU: the kernel's own
/// threads cause one now and then.
const TOLERATED_PREEMPTIONS: i64 = 1;
/// Searches in a row that may find nothing before they pause, at first and directly after a pause.
const MISSES: u32 = 8;
const MISSES_AFTER_PAUSE: u32 = 2;
/// The length of a pause: several time slices of the scheduler, so that other threads get theirs.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn woken_soon(poll: &mut Poll) {
        poll.look(|| false);
        poll.begin_turn();
    }

    #[test]
    fn search_finds_work_only_after_work_has_come_soon() {
        let mut poll = Poll::new(Poll::MAX);
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
    fn search_that_is_not_allowed_never_tries() {
        let mut poll = Poll::new(Duration::ZERO);
        for _ in 0..3 {
            woken_soon(&mut poll);
            assert!(!poll.look(|| panic!("tried")));
        }
    }

    #[test]
    fn searches_that_find_nothing_several_times_pause() {
        let mut poll = Poll::new(Poll::MAX);
        poll.window = MIN_WINDOW;
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
        for misses in [MISSES, MISSES_AFTER_PAUSE, MISSES_AFTER_PAUSE] {
            assert!((1..misses).all(|_| !poll.look(|| false) && poll.pause_until.is_none()), "{misses}");
            assert!(!poll.look(|| false) && poll.pause_until.take().is_some(), "{misses}");
        }
    }

    #[test]
    fn window_grows_to_the_limit_and_ends_when_work_comes_late() {
        let most = Duration::from_micros(100);
        let mut poll = Poll::new(most);
        // A busy host may need several attempts.
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
        let mut poll = Poll::new(Poll::MAX);
        woken_soon(&mut poll);
        poll.preempted = -10;
        poll.looks = SEARCHES_PER_RUSAGE - 1;
        assert!(!poll.look(|| true));
        poll.pause_until = Instant::now().checked_sub(Duration::from_millis(1));
        assert!(poll.look(|| true));
    }
}

//! The log lines of a machine, in flight to the `log` back end of the program.
//!
//! A back end belongs to the program. It may write to a pipe that nobody reads, and block forever. No thread
//! that a stop waits for may call it, and no thread may call it while it holds a lock. So
//! [`journal!`](crate::journal!) only appends to a bounded queue, and a thread of its own (`queue`) makes the
//! call.
//!
//! A guest causes log lines, for example by damaging a ring again and again. All lines that the guest causes
//! in one machine share one limit, and another machine has its own. Lines above it are left out and counted,
//! and the count is reported.

mod queue;

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use log::Level;

use crate::lock;

/// The cause of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An act of the guest, which it can repeat.
    Guest,
    /// An event on the host.
    Host,
}

/// The log lines of one machine. Each of its threads appends to it, from [`Journal::enter`] on.
#[derive(Debug, Default)]
pub struct Journal {
    state: Mutex<State>,
    /// Signalled when the back end has taken a line.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    guest: Window,
    host: Window,
    left_out: u64,
    /// The number of lines that the back end has not taken.
    waiting: usize,
}

/// The lines of one cause since a point in time.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    since: Option<Instant>,
    lines: u32,
}

/// A guard that makes a thread work for a machine until it is dropped.
#[derive(Debug)]
#[must_use = "the thread leaves the journal when this is dropped"]
pub struct Entered {
    before: Option<Arc<Journal>>,
}

/// Appends a line to the journal of this thread's machine. The arguments are cause and level, and then those
/// of [`format!`].
#[macro_export]
macro_rules! journal {
    ($cause:ident $level:ident, $($words:tt)+) => {
        $crate::journal::append(
            $crate::journal::Cause::$cause,
            $crate::journal::Level::$level,
            ::std::module_path!(),
            ::std::format_args!($($words)+),
        )
    };
}

/// Appends a line, on behalf of [`journal!`](crate::journal!). Never waits.
pub fn append(cause: Cause, level: Level, target: &'static str, words: fmt::Arguments<'_>) {
    // The back end's own `enabled` could take a lock; reading the level is one load.
    if level > log::max_level() {
        return;
    }
    let journal = Journal::current();
    let Some(left_out) = journal.admit(cause, Instant::now()) else { return };
    let mut text = Bounded(String::new());
    // Text beyond the limit is cut.
    let _ = text.write_fmt(words);
    if left_out > 0 {
        text.0.push_str(&format!(" ({left_out} lines were left out)"));
    }
    queue::push(queue::Line { level, target, text: text.0, journal });
}

impl Journal {
    /// Returns the journal of this thread. Threads that work for no machine share one.
    pub fn current() -> Arc<Journal> {
        static SHARED: LazyLock<Arc<Journal>> = LazyLock::new(Arc::default);
        CURRENT.with_borrow(Clone::clone).unwrap_or_else(|| SHARED.clone())
    }

    /// Makes this thread append to the journal.
    pub fn enter(self: &Arc<Self>) -> Entered {
        Entered { before: CURRENT.replace(Some(self.clone())) }
    }

    /// Reports how many lines were left out, and waits until the back end has all lines, at most for `limit`.
    pub fn flush(self: &Arc<Self>, limit: Duration) {
        let mut state = lock(&self.state);
        let left_out = std::mem::take(&mut state.left_out);
        if left_out > 0 && state.waiting < MAX_WAITING {
            state.waiting = state.waiting.saturating_add(1);
            drop(state);
            let text = format!("{left_out} lines were left out");
            queue::push(queue::Line {
                level: Level::Warn,
                target: module_path!(),
                text,
                journal: self.clone(),
            });
            state = lock(&self.state);
        }
        let wait = self.written.wait_timeout_while(state, limit, |state| state.waiting > 0);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns whether a line may be written now, with the number of lines left out since the last.
    fn admit(&self, cause: Cause, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let window = match cause {
            Cause::Guest => &mut state.guest,
            Cause::Host => &mut state.host,
        };
        if !window.admits(now) || state.waiting >= MAX_WAITING {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        state.waiting = state.waiting.saturating_add(1);
        Some(std::mem::take(&mut state.left_out))
    }

    fn leave_out(&self) {
        let mut state = lock(&self.state);
        state.left_out = state.left_out.saturating_add(1);
    }

    fn end_of_line(&self) {
        let mut state = lock(&self.state);
        state.waiting = state.waiting.saturating_sub(1);
        self.written.notify_all();
    }
}

impl Window {
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            *self = Window { since: Some(now), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// Text of at most [`MAX_BYTES`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_BYTES.saturating_sub(self.0.len());
        let end = text.floor_char_boundary(room);
        self.0.push_str(text.get(..end).unwrap_or_default());
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Journal>>> = const { RefCell::new(None) };
}

/// Lines of each cause in a [`PERIOD`]: enough to see what is wrong, and not a flood.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(5);
/// The largest number of lines of one machine that wait for a slow back end: three periods.
const MAX_WAITING: usize = 60;
/// The length of the longest line in bytes. A line with two paths fits.
const MAX_BYTES: usize = 10 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_of_a_guest_have_one_limit_and_the_rest_is_counted() {
        let journal = Journal::default();
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(journal.admit(Cause::Guest, start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(journal.admit(Cause::Guest, start + PERIOD / 2), None);
        }
        assert_eq!(journal.admit(Cause::Host, start), Some(7), "the guest does not silence the host");
        assert_eq!(journal.admit(Cause::Guest, start + PERIOD), Some(0));
    }

    #[test]
    fn machine_whose_lines_nobody_takes_leaves_them_out() {
        let journal = Journal::default();
        let mut now = Instant::now();
        for _ in 0..6 {
            for _ in 0..10 {
                assert_eq!(journal.admit(Cause::Guest, now), Some(0));
            }
            now += PERIOD;
        }
        assert_eq!(journal.admit(Cause::Guest, now), None);
        journal.end_of_line();
        assert_eq!(journal.admit(Cause::Guest, now), Some(1));
    }

    #[test]
    fn thread_appends_to_the_journal_that_it_entered_last() {
        let (outer, inner) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
        let _outer = outer.enter();
        {
            let _inner = inner.enter();
            assert!(Arc::ptr_eq(&Journal::current(), &inner));
        }
        assert!(Arc::ptr_eq(&Journal::current(), &outer));
    }

    #[test]
    fn long_lines_are_cut_between_two_characters() {
        let mut text = Bounded(String::new());
        assert!(text.write_str(&"ä".repeat(MAX_BYTES)).is_err());
        assert_eq!(text.0.len(), MAX_BYTES);
        assert!(text.write_str("").is_ok());
    }
}

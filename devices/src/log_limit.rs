//! A limit on log lines that a guest can cause: each call site may write a few, and counts the rest.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock;

/// Lines that one call site may write in [`PERIOD`].
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(5);

/// The limit of one call site: a `static` beside it.
#[derive(Debug)]
pub(crate) struct LogLimit {
    window: Mutex<Option<Window>>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self { window: Mutex::new(None) }
    }

    /// Whether a line may be written now; with it the number of lines that were left out since the last.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut slot = lock(&self.window);
        let fresh = Window { since: now, lines: 0, left_out: 0 };
        let window = slot.get_or_insert(fresh);
        let left_out = window.left_out;
        if now.saturating_duration_since(window.since) >= PERIOD {
            *window = Window { left_out, ..fresh };
        }
        if window.lines >= LINES {
            window.left_out = left_out.saturating_add(1);
            return None;
        }
        window.lines = window.lines.saturating_add(1);
        window.left_out = 0;
        Some(left_out)
    }
}

/// Logs a warning that a guest can cause, within the limit of this place in the program.
macro_rules! warn_limited {
    ($($words:tt)+) => {{
        static LIMIT: $crate::log_limit::LogLimit = $crate::log_limit::LogLimit::new();
        match LIMIT.admit() {
            Some(0) => log::warn!($($words)+),
            Some(left_out) => log::warn!("{} ({left_out} such lines were left out)", format_args!($($words)+)),
            None => {}
        }
    }};
}
pub(crate) use warn_limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_in_five_seconds_and_the_rest_is_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(limit.admit_at(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.admit_at(start + PERIOD / 2), None);
        }
        assert_eq!(limit.admit_at(start + PERIOD), Some(7));
        assert_eq!(limit.admit_at(start + PERIOD), Some(0));
    }
}

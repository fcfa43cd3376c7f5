//! The total time that one call waits for the agent. Frames that move nothing, or little, do not restart it.

use std::time::{Duration, Instant};

use super::error::AgentError;
use super::link::Limits;

/// The patience of one call. It counts the time in which the caller waits for the agent, and not the time of
/// the caller's own reader or writer.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    limits: Limits,
    /// Bytes that the agent has sent or taken.
    moved: u64,
    waited: Duration,
    since: Option<Instant>,
    is_endless: bool,
}

impl Patience {
    pub(super) fn new(limits: Limits) -> Patience {
        Patience { limits, moved: 0, waited: Duration::ZERO, since: None, is_endless: false }
    }

    /// Counts bytes that the agent has sent or taken. Each allows for more time, at the lowest rate.
    pub(super) fn note_progress(&mut self, bytes: usize) {
        self.moved = u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    /// Sets whether the caller waits for a command that may run forever.
    #[cfg(feature = "tokio")]
    pub(super) fn set_endless(&mut self, yes: bool) {
        self.pause();
        self.is_endless = yes;
    }

    /// Starts the caller's wait, which ends with [`Patience::pause`]. Returns the end of its patience, as far
    /// as the clock can express it.
    ///
    /// # Errors
    /// [`AgentError::NoAnswer`]: no patience is left.
    pub(super) fn wait(&mut self) -> Result<Instant, AgentError> {
        let now = Instant::now();
        if self.is_endless {
            return Ok(now + LONG_TIME);
        }
        let since = *self.since.get_or_insert(now);
        let limit = self.limit();
        let end = since.checked_add(limit.saturating_sub(self.waited));
        match end {
            Some(end) if end <= now => Err(AgentError::NoAnswer { limit }),
            Some(end) => Ok(end),
            None => Ok(now + LONG_TIME),
        }
    }

    /// Ends the caller's wait for the agent.
    pub(super) fn pause(&mut self) {
        let waited = self.since.take().map(|since| since.elapsed());
        self.waited = self.waited.saturating_add(waited.unwrap_or_default());
    }

    fn limit(&self) -> Duration {
        let seconds = self.moved / u64::from(self.limits.min_rate.max(1));
        self.limits.answer.saturating_add(Duration::from_secs(seconds))
    }
}

/// A limit that is practically endless, for limits that the clock cannot express.
const LONG_TIME: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(answer: Duration) -> Patience {
        Patience::new(Limits { ready: Duration::ZERO, answer, min_rate: 4096 })
    }

    #[test]
    fn bytes_and_not_frames_allow_for_more_time() {
        let mut patience = patience(Duration::ZERO);
        assert!(patience.wait().is_err());
        patience.note_progress(4095);
        assert!(patience.wait().is_err(), "less than a second's bytes allow for nothing");
        patience.note_progress(8192);
        patience.wait().unwrap();
        assert_eq!(patience.limit(), Duration::from_secs(2));
    }

    #[test]
    fn time_adds_up_over_waits_and_stands_while_the_caller_is_busy() {
        let mut patience = patience(Duration::from_millis(60));
        std::thread::sleep(Duration::from_millis(100));
        patience.wait().unwrap();
        std::thread::sleep(Duration::from_millis(40));
        patience.pause();
        std::thread::sleep(Duration::from_millis(100));
        let left = patience.wait().map(|end| end.saturating_duration_since(Instant::now()));
        // A busy machine may have slept for longer than the whole limit.
        assert!(left.is_err() || left.is_ok_and(|left| left <= Duration::from_millis(20)));
    }

    #[test]
    fn longest_limits_do_not_overflow() {
        let mut patience = patience(Duration::MAX);
        patience.note_progress(usize::MAX);
        patience.wait().unwrap();
    }
}

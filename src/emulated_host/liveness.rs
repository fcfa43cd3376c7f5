//! Checks whether a machine still answers. Its CPUs may spin forever: then nothing inside obeys a signal or a
//! time limit, and this process must.
//!
//! The agent answers each signal. When the command's time limit is over, it is asked repeatedly by signal 0,
//! which is sent to nobody. While it answers, the machine may take any time, because only the machine knows
//! when the command's time began.

use std::time::{Duration, Instant};

use coracle_devices::signals::asks_for_end;

/// The questions to a machine that it has not answered.
#[derive(Debug)]
pub(super) struct Liveness {
    /// The oldest question without an answer.
    open: Option<Question>,
    time_limit: Option<Duration>,
    /// The time of the next question, once the command runs.
    next_ask: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    asked: Instant,
    kind: Kind,
}

/// The kind of a question, and the consequence of a missing answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A signal that asks for the end.
    Signal(libc::c_int),
    /// The command's time limit is over.
    TimeLimit(Duration),
}

impl Liveness {
    /// Makes the check for a command with this time limit.
    pub(super) fn new(time_limit: Option<Duration>) -> Liveness {
        Liveness { open: None, time_limit, next_ask: None }
    }

    /// Records that the command runs from now on.
    pub(super) fn started(&mut self, now: Instant) {
        self.next_ask = self.time_limit.and_then(|limit| now.checked_add(limit));
    }

    /// Records that a signal was sent to the command.
    pub(super) fn sent(&mut self, signal: libc::c_int, now: Instant) {
        // A person has less patience than a time limit.
        if asks_for_end(signal) && !matches!(self.open, Some(Question { kind: Kind::Signal(_), .. })) {
            self.open = Some(Question { asked: now, kind: Kind::Signal(signal) });
        }
    }

    /// Returns whether to ask by signal 0 now.
    pub(super) fn asks(&mut self, now: Instant) -> bool {
        let Some(limit) = self.time_limit.filter(|_| self.next_ask.is_some_and(|at| now >= at)) else {
            return false;
        };
        self.next_ask = now.checked_add(ASK_INTERVAL);
        if self.open.is_some() {
            return false;
        }
        self.open = Some(Question { asked: now, kind: Kind::TimeLimit(limit) });
        true
    }

    /// Records that the agent has answered.
    pub(super) fn answered(&mut self) {
        self.open = None;
    }

    /// Returns the time of the next check.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.map(Question::deadline).into_iter().chain(self.next_ask).min()
    }

    /// Returns the question that has waited too long for its answer.
    pub(super) fn unanswered(&self, now: Instant) -> Option<Kind> {
        self.open.filter(|question| now >= question.deadline()).map(|question| question.kind)
    }
}

impl Question {
    fn deadline(self) -> Instant {
        self.asked
            + match self.kind {
                Kind::Signal(_) => SIGNAL_LIMIT,
                Kind::TimeLimit(_) => ASK_LIMIT,
            }
    }
}

/// The time that a machine may take to pass on a signal that asks for the end. The agent does it at once. An
/// emulated CPU that shares its host with others takes a second now and then.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);
/// The time that a machine may take to answer if no person waits.
const ASK_LIMIT: Duration = Duration::from_secs(10);
const ASK_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn first_signal_ends_a_machine_that_does_not_answer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(None);
        liveness.sent(libc::SIGUSR1, start);
        assert_eq!(liveness.deadline(), None, "a command may take that as it likes");
        liveness.sent(libc::SIGHUP, start);
        liveness.sent(libc::SIGTERM, start + 4 * SECOND);
        assert_eq!(liveness.unanswered(start + 4 * SECOND), None);
        assert_eq!(liveness.unanswered(start + 5 * SECOND), Some(Kind::Signal(libc::SIGHUP)));
        liveness.answered();
        assert_eq!(liveness.unanswered(start + 50 * SECOND), None);
    }

    #[test]
    fn time_limit_ends_only_a_machine_that_does_not_answer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Some(20 * SECOND));
        assert!(!liveness.asks(start + 100 * SECOND), "the command has not begun");
        liveness.started(start);
        assert!(!liveness.asks(start + 19 * SECOND));
        assert!(liveness.asks(start + 20 * SECOND));
        liveness.answered();
        assert!(liveness.asks(start + 25 * SECOND));
        assert!(!liveness.asks(start + 30 * SECOND), "one question at a time");
        assert_eq!(liveness.unanswered(start + 34 * SECOND), None);
        assert_eq!(liveness.unanswered(start + 35 * SECOND), Some(Kind::TimeLimit(20 * SECOND)));
        liveness.sent(libc::SIGINT, start + 28 * SECOND);
        assert_eq!(liveness.unanswered(start + 33 * SECOND), Some(Kind::Signal(libc::SIGINT)));
    }
}

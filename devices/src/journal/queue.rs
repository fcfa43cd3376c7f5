//! The one queue of all machines, because their program has one back end, and the thread that empties it.
//!
//! The thread exists only while lines wait. If the back end blocks it forever, it stays, with at most
//! [`MAX_LINES`] lines.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use log::{Level, Record};

use super::Journal;
use crate::lock;
use crate::thread::spawn_with_signals_blocked;

/// A line. Its journal counts it until it is dropped.
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) target: &'static str,
    pub(super) text: String,
    pub(super) journal: Arc<Journal>,
}

struct Queue {
    lines: VecDeque<Line>,
    /// Whether a thread empties the queue.
    is_served: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { lines: VecDeque::new(), is_served: false });

/// Appends a line, or leaves it out if the queue is full.
pub(super) fn push(line: Line) {
    let mut queue = lock(&QUEUE);
    if queue.lines.len() >= MAX_LINES {
        drop(queue);
        return line.journal.leave_out();
    }
    queue.lines.push_back(line);
    let is_served = std::mem::replace(&mut queue.is_served, true);
    drop(queue);
    if !is_served && spawn_with_signals_blocked(Builder::new().name("log".into()), serve).is_err() {
        let mut queue = lock(&QUEUE);
        queue.is_served = false;
        let lost = std::mem::take(&mut queue.lines);
        drop(queue);
        lost.iter().for_each(|line| line.journal.leave_out());
    }
}

/// Passes lines to the back end until there are none.
fn serve() {
    let _thread = Serving;
    loop {
        let mut queue = lock(&QUEUE);
        let Some(line) = queue.lines.pop_front() else {
            queue.is_served = false;
            return;
        };
        drop(queue);
        hand_over(&line);
    }
}

#[expect(clippy::disallowed_methods, reason = "the only thread that may call the back end")]
fn hand_over(line: &Line) {
    let &Line { level, target, ref text, journal: _ } = line;
    let mut record = Record::builder();
    record.level(level).target(target).module_path_static(Some(target));
    log::logger().log(&record.args(format_args!("{text}")).build());
}

/// A guard that lets the next line start another thread after a panic of the back end.
struct Serving;

impl Drop for Serving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&QUEUE).is_served = false;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.journal.end_of_line();
    }
}

/// The largest number of lines of all machines together. Each may have [`super::MAX_WAITING`] of them.
const MAX_LINES: usize = 1000;

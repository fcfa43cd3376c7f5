//! The line on a terminal that shows what is running. Without a terminal, a line for each case that has
//! ended.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use super::case::Done;
use crate::commands::say;
use crate::stderr;

/// The cases that are running and the number of those that have ended.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    total: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<String>,
    ended: usize,
    bad: usize,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Progress {
        Progress { is_terminal: io::stderr().is_terminal(), total, state: Mutex::default() }
    }

    pub(crate) fn begins(&self, name: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.push(name.to_owned());
        self.show(&state);
    }

    pub(crate) fn ends(&self, done: &Done) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = state.running.iter().position(|name| *name == done.name) {
            state.running.swap_remove(place);
        }
        state.ended += 1;
        state.bad += usize::from(done.verdict.is_bad());
        if self.is_terminal {
            self.show(&state);
        } else {
            say(&format!("{}: {}", done.name, done.verdict.word()));
        }
    }

    /// Removes the line, to make room for other output.
    pub(crate) fn clear(&self) {
        if self.is_terminal {
            stderr::show_progress(None);
            stderr::flush();
        }
    }

    fn show(&self, state: &State) {
        if !self.is_terminal {
            return;
        }
        let State { running, ended, bad } = state;
        let line = format!("[{ended}/{}] {bad} failed; running: {}", self.total, running.join(", "));
        let line: String = line.chars().take(WIDTH).collect();
        stderr::show_progress(Some(&line));
    }
}

/// Fits every terminal: a line that wraps could not be removed.
const WIDTH: usize = 79;

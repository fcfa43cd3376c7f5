//! Commands that run on without a host, because their machine goes on from a snapshot: the host that ran them
//! stayed behind, and the new one can take them up.
//!
//! A connection that ends may also mean that the host is gone for good. So the commands are kept for a while,
//! until a host says what has happened.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{AttachRequest, Failure, MAX_CHANNELS, ProcessInfo, Step};

use super::command::Command;

/// The commands without a host, by the numbers by which they are taken up.
#[derive(Debug, Default)]
pub(super) struct Parked {
    commands: BTreeMap<u32, Command>,
    last: u32,
    /// The time at which they end, while it is not known whether there was a snapshot.
    until: Option<Instant>,
}

impl Parked {
    /// Adds a command. Returns it if there are too many: their list has to fit into a frame.
    pub(super) fn add(&mut self, command: Command) -> Option<Command> {
        if self.commands.len() >= MAX_CHANNELS {
            return Some(command);
        }
        self.last = self.last.wrapping_add(1);
        self.commands.insert(self.last, command)
    }

    /// Keeps them for a while, until it is known what has happened.
    pub(super) fn wait(&mut self) {
        self.until = Some(Instant::now() + PATIENCE);
    }

    /// Keeps them, because the machine goes on from a snapshot.
    pub(super) fn keep(&mut self) {
        self.until = None;
    }

    /// Returns whether it is not known yet what has happened.
    pub(super) fn is_waiting(&self) -> bool {
        self.until.is_some()
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Command> + use<> {
        self.until = None;
        std::mem::take(&mut self.commands).into_values()
    }

    /// Returns whether the host that would know them has not come in time.
    pub(super) fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Returns their descriptions.
    pub(super) fn list(&self) -> Vec<ProcessInfo> {
        self.commands.iter().map(|(id, command)| command.info(*id)).collect()
    }

    /// Takes one of them for the host.
    ///
    /// # Errors
    /// There is none with this number, or its streams are others.
    pub(super) fn attach(&mut self, request: &AttachRequest) -> Result<Command, Failure> {
        let failed = |errno| Failure { step: Step::Process, subject: "".into(), errno };
        let command = self.commands.get(&request.id).ok_or_else(|| failed(libc::ESRCH))?;
        if command.info(request.id).has_terminal != request.terminal {
            return Err(failed(libc::EINVAL));
        }
        self.commands.remove(&request.id).ok_or_else(|| failed(libc::ESRCH))
    }

    /// Returns the command of a process.
    pub(super) fn find(&mut self, process: libc::pid_t) -> Option<&mut Command> {
        self.commands.values_mut().find(|command| command.process() == process)
    }

    /// Returns the entries to poll, three of each command.
    pub(super) fn poll_entries(&self) -> impl Iterator<Item = libc::pollfd> {
        self.commands.values().flat_map(|command| command.poll_entries(None, true))
    }

    /// Handles the result of polling [`Parked::poll_entries`], and the time.
    pub(super) fn handle(&mut self, answers: &[libc::pollfd], buffer: &mut [u8]) {
        let now = Instant::now();
        for (command, answers) in self.commands.values_mut().zip(answers.chunks_exact(3)) {
            command.handle(answers, None, buffer);
            if command.deadline().is_some_and(|at| now >= at) {
                command.cut_leftovers(None);
            }
        }
    }

    /// Returns the next time at which there is work.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.commands.values().filter_map(Command::deadline).chain(self.until).min()
    }
}

/// The time for a host to say that the machine goes on from a snapshot, from the end of the connection. It
/// does so at once, but it may be a very busy host.
const PATIENCE: Duration = Duration::from_secs(3);

//! Runs the machine's one command to its end: relays its streams, passes on signals and sizes, and reaps
//! processes.
//!
//! One poll loop handles the control port, SIGCHLD, and a pump per stream. Nothing else here waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_agent::protocol::emulated_host::{Ending, FromAgent, Stream, ToAgent};
use coracle_agent::relay::{self, NON_BLOCKING_CHUNK, Pump, Undelivered};

use super::command::RunningCommand;
use super::control::{ControlError, ControlPort};
use crate::pty;

/// The time that processes left behind by the command may hold its stdout or stderr open. Everything that
/// they write until then is delivered.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

/// A command that runs.
#[derive(Debug)]
pub(super) struct Session<'a> {
    control: &'a mut ControlPort,
    children: OwnedFd,
    process: libc::pid_t,
    terminal: Option<File>,
    input_is_terminal: bool,
    input: Option<Pump>,
    outputs: [Option<Pump>; 3],
    ended: Option<(Ending, Instant)>,
    leftovers_limited: bool,
}

/// The reason why the session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("control port: {0}")]
    Control(#[from] ControlError),
    #[error("a second request came")]
    SecondRequest,
}

impl<'a> Session<'a> {
    /// Connects the command's streams to the ports.
    pub(super) fn new(
        control: &'a mut ControlPort,
        command: RunningCommand,
        ports: [File; 3],
    ) -> Result<Self, SessionError> {
        let RunningCommand { process, terminal, input_is_terminal, input, outputs } = command;
        let source = OwnedFd::from(Stream::Stdin.of(&ports).try_clone()?);
        let mut pumps = outputs.into_iter().zip(ports).map(|(output, port)| {
            output.map(|output| Pump::new(output, port.into(), NON_BLOCKING_CHUNK, Undelivered::Stop))
        });
        Ok(Self {
            control,
            children: child_signals()?,
            process,
            terminal,
            input_is_terminal,
            input: Some(Pump::new(source, input, NON_BLOCKING_CHUNK, Undelivered::Stop)),
            outputs: std::array::from_fn(|_| pumps.next().flatten()),
            ended: None,
            leftovers_limited: false,
        })
    }

    /// Relays until the command has ended and its output is delivered. Returns its ending, and the bytes of
    /// each stream.
    pub(super) fn run(mut self) -> Result<(Ending, [u64; 3]), SessionError> {
        // The command may have ended before SIGCHLD was blocked.
        self.reap();
        loop {
            self.limit_leftovers();
            if let Some((ending, _)) = self.ended
                && self.outputs.iter().flatten().all(Pump::finished)
            {
                return Ok((ending, self.outputs.map(|pump| pump.map_or(0, |pump| pump.delivered()))));
            }
            self.step()?;
        }
    }

    fn step(&mut self) -> Result<(), SessionError> {
        let children = relay::poll_entry(self.children.as_raw_fd(), libc::POLLIN);
        let mut entries = vec![self.control.poll_entry(), children];
        let pumps = self.input.iter().chain(self.outputs.iter().flatten());
        entries.extend(pumps.flat_map(Pump::poll_entries));
        relay::poll(&mut entries, self.timeout_ms())?;

        // The two of this function come first.
        let [control, children, rest @ ..] = entries.as_slice() else { return Ok(()) };
        let pumps = self.input.iter_mut().chain(self.outputs.iter_mut().flatten());
        for (pump, answers) in pumps.zip(rest.as_chunks::<2>().0) {
            pump.handle(*answers);
        }
        if control.revents != 0 {
            self.obey()?;
        }
        if children.revents != 0 {
            self.clear_child_signals();
            self.reap();
        }
        Ok(())
    }

    fn timeout_ms(&self) -> i32 {
        let Some((_, since)) = self.ended else { return -1 };
        let left = LEFTOVER_GRACE.saturating_sub(since.elapsed());
        // After the grace, only the other ends of the ports are waited for.
        if left.is_zero() {
            -1
        } else {
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1)
        }
    }

    /// Ends the outputs after their present content when the grace after the command's end is over.
    fn limit_leftovers(&mut self) {
        let over = self.ended.is_some_and(|(_, since)| since.elapsed() >= LEFTOVER_GRACE);
        if over && !self.leftovers_limited {
            self.leftovers_limited = true;
            self.outputs.iter_mut().flatten().for_each(Pump::end_source_at_pending);
        }
    }

    fn obey(&mut self) -> Result<(), SessionError> {
        self.control.fill()?;
        while let Some(message) = self.control.next_message()? {
            match message {
                ToAgent::Start(_) => return Err(SessionError::SecondRequest),
                ToAgent::StdinEnd { bytes } => self.end_input(bytes),
                ToAgent::OutputClosed(stream) => {
                    if let Some(pump) = stream.of_mut(&mut self.outputs) {
                        pump.close_sink();
                    }
                }
                ToAgent::Resize(size) => {
                    // The terminal may be gone with its last user, and then nobody needs its size.
                    let _ = self.terminal.as_ref().map(|terminal| pty::resize(terminal, size));
                }
                ToAgent::Signal(signal) => {
                    self.signal(libc::c_int::from(signal));
                    self.control.send(&FromAgent::Delivered { signal })?;
                }
                ToAgent::Tick => {}
            }
        }
        Ok(())
    }

    /// Passes on the end of stdin: of a pipe as the end of a pipe, of a terminal as a hang-up.
    fn end_input(&mut self, bytes: u64) {
        if let Some(pump) = &mut self.input {
            pump.end_source_at(bytes);
        }
        if self.input_is_terminal {
            self.signal(libc::SIGHUP);
        }
    }

    fn signal(&self, signal: libc::c_int) {
        let group = self.terminal.as_ref().and_then(|terminal| pty::foreground(terminal).ok());
        let group = group.filter(|group| *group > 0).unwrap_or(self.process);
        // SAFETY: sends a signal to a process group; no memory is involved. A group that has ended is not an
        // error.
        unsafe { libc::kill(-group, signal) };
    }

    /// Reaps all ended processes.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: stores one int at the given address.
            let process = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if process <= 0 {
                return;
            }
            if process == self.process {
                self.ended = Some((Ending::of_status(status), Instant::now()));
                self.input = None;
            }
        }
    }

    fn clear_child_signals(&self) {
        let mut seen = [0_u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the pointer and the length describe `seen`. Signals of one number merge, so one read is
        // enough.
        unsafe { libc::read(self.children.as_raw_fd(), seen.as_mut_ptr().cast(), seen.len()) };
    }
}

/// Blocks SIGCHLD and returns a descriptor that is readable when one is pending (`signalfd(2)`).
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: changes the set it is given; the signal's number is a constant.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: reads the set it is given; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: reads the set it is given and opens a descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

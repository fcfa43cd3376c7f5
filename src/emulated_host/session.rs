//! The run of a machine from its boot to the command's last byte: one poll loop over the control port, the
//! caller's signals, the machine's log and a pump for each stream. Nothing else here waits, so signals are
//! always handled.
//!
//! ```text
//! Booting --hello--> Starting --started--> Running --exited--> Draining --all bytes written--> the end
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_agent::protocol::emulated_host::environment::BOOT_TIME;
use coracle_agent::protocol::emulated_host::{Ending, FromAgent, Request, Stream, ToAgent, VERSION};
use coracle_agent::relay::{self, BLOCKING_CHUNK, NON_BLOCKING_CHUNK, Pump, Undelivered};

use coracle_devices::backend::chardev::{Direction, own_description};
use coracle_devices::signals::asks_for_end;

use super::control::{ControlSocket, Peer};
use super::drain::Drain;
use super::liveness::{Kind, Liveness};
use super::machine::Machine;
use super::signals::Signals;
use super::terminal::CallerTerminal;
use super::{EmulatedExit, EmulatedHostError};
use crate::terminal::RawTerminal;

/// The interval of interrupts for a machine whose command runs: the longest stall after it has lost one.
///
/// QEMU's emulation of SVM loses an interrupt now and then, seen with 7.2 on a busy host. The local APIC
/// holds the timer's interrupt, nothing masks it, and the CPU sleeps forever. Any other interrupt makes QEMU
/// check the APIC again.
const TICK: Duration = Duration::from_millis(250);

/// The number of lost bytes of an output after which its reader counts as gone, so that a command that writes
/// without end does end.
const MAX_LOST: u64 = 64 << 20;

/// The run of one command on one machine.
#[derive(Debug)]
pub(super) struct Session {
    // Dropped in this order: the machine ends first, and then the caller gets the terminal and the signals
    // back.
    machine: Machine,
    raw_terminal: Option<RawTerminal>,
    signals: Signals,
    control: ControlSocket,
    request: Option<Request>,
    phase: Phase,
    began: Instant,
    boot_limit: Duration,
    deadline: Option<Instant>,
    next_tick: Instant,
    streams: Streams,
    liveness: Liveness,
    drain: Drain,
    /// Whether a signal that asks for the end was passed on.
    was_asked: bool,
    /// The signals that were passed on.
    passed_on: BTreeSet<u8>,
    limits: Limits,
}

/// The limits of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The time until the command must run.
    pub(super) boot: Duration,
    /// The command's own time limit, if it has one.
    pub(super) command: Option<Duration>,
    /// Whether output that nobody has read when the command ends is dropped.
    pub(super) ends_unread: bool,
}

/// The phase of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Booting,
    Starting,
    Running,
    Draining(Ending),
}

/// The pumps of the three streams, and which of their ends the agent has been sent.
#[derive(Debug)]
struct Streams {
    input: Pump,
    outputs: [Option<Pump>; 3],
    input_end_reported: bool,
    closed_reported: [bool; 3],
}

impl Session {
    /// Makes a session on a machine that was just started.
    pub(super) fn new(
        machine: Machine,
        signals: Signals,
        request: Request,
        limits: Limits,
    ) -> Result<Self, EmulatedHostError> {
        let control = machine.control.try_clone().map_err(local("copy a socket"))?;
        let streams =
            Streams::new(&machine, request.terminals).map_err(local("copy the standard streams"))?;
        Ok(Self {
            machine,
            raw_terminal: None,
            signals,
            control: ControlSocket::new(control),
            request: Some(request),
            phase: Phase::Booting,
            began: Instant::now(),
            boot_limit: limits.boot,
            deadline: Instant::now().checked_add(limits.boot),
            next_tick: Instant::now(),
            streams,
            liveness: Liveness::new(limits.command),
            drain: Drain::new(None),
            was_asked: false,
            passed_on: BTreeSet::new(),
            limits,
        })
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<EmulatedExit, EmulatedHostError> {
        loop {
            let peer = self.step()?;
            while let Some(message) = self.control.next_message().map_err(EmulatedHostError::Protocol)? {
                self.take(message)?;
            }
            while let Some(signal) = self.signals.next() {
                if let Some(exit) = self.pass_on(signal)? {
                    return Ok(exit);
                }
            }
            if self.drain.is_given_up(self.streams.progress(), Instant::now()) {
                // All output must have left the machine before the command's ending is known.
                self.streams.outputs.iter_mut().flatten().for_each(Pump::close_sink);
            }
            if let Phase::Draining(ending) = self.phase {
                if self.streams.outputs.iter().flatten().all(Pump::finished) {
                    return self.streams.undamaged(self.exit_of(ending));
                }
            } else if peer == Peer::Gone {
                return Err(self.ended());
            }
            if self.is_starting() && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(self.timed_out());
            }
            match self.liveness.unanswered(Instant::now()) {
                None => {}
                Some(Kind::Signal(signal)) => return Err(EmulatedHostError::Silent { signal }),
                Some(Kind::TimeLimit(limit)) => return Err(EmulatedHostError::TimedOut { limit }),
            }
        }
    }

    /// Waits until something happens and lets the pumps, the log and the control port handle it.
    fn step(&mut self) -> Result<Peer, EmulatedHostError> {
        let relaying = !self.is_starting();
        let signals = relay::poll_entry(self.signals.poll_fd(), libc::POLLIN);
        let mut entries = vec![self.control.poll_entry(), signals];
        entries.extend(self.machine.log_entries());
        if relaying {
            entries.extend(self.streams.pumps().flat_map(|pump| pump.poll_entries()));
        }
        relay::poll(&mut entries, self.timeout_ms()).map_err(local("wait"))?;

        let (own, rest) = entries.split_at(4);
        if relaying {
            for (pump, answers) in self.streams.pumps().zip(rest.as_chunks::<2>().0) {
                pump.handle(*answers);
            }
            self.streams.report_ends(&mut self.control);
            self.tick();
        }
        self.machine.read_logs();
        Ok(own.first().map_or(Peer::Present, |answer| self.control.handle(*answer)))
    }

    /// Sends the machine an interrupt when one is due. A machine that has not taken the last one gets no
    /// more.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.phase == Phase::Running && self.liveness.asks(now) {
            self.send_signal(0);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            if self.control.is_idle() {
                self.control.send(&ToAgent::Tick);
            }
        }
    }

    fn take(&mut self, message: FromAgent) -> Result<(), EmulatedHostError> {
        match (self.phase, message) {
            (Phase::Booting, FromAgent::Hello { version: VERSION }) => self.start(),
            (Phase::Booting, FromAgent::Hello { version }) => {
                Err(EmulatedHostError::Version { theirs: version })
            }
            (Phase::Starting, FromAgent::Started) => {
                self.phase = Phase::Running;
                self.liveness.started(Instant::now());
                let limit = self.limits.command;
                self.drain = Drain::new(limit.and_then(|limit| Instant::now().checked_add(limit)));
                Ok(())
            }
            (Phase::Starting, FromAgent::Failed(failure)) => Err(failure.into()),
            // A signal that was sent before the command's end was known is answered after it.
            (Phase::Running | Phase::Draining(_), FromAgent::Delivered { signal: _ }) => {
                self.liveness.answered();
                Ok(())
            }
            (Phase::Running, FromAgent::Exited { ending, produced }) => {
                self.phase = Phase::Draining(ending);
                self.liveness = Liveness::new(None);
                if self.limits.ends_unread {
                    self.drain = Drain::new(Some(Instant::now()));
                }
                for (pump, total) in self.streams.outputs.iter_mut().zip(produced) {
                    if let Some(pump) = pump {
                        pump.end_source_at(total);
                    }
                }
                Ok(())
            }
            (
                Phase::Booting | Phase::Starting | Phase::Running | Phase::Draining(_),
                FromAgent::Hello { .. }
                | FromAgent::Started
                | FromAgent::Failed(_)
                | FromAgent::Delivered { .. }
                | FromAgent::Exited { .. },
            ) => Err(EmulatedHostError::OutOfTurn),
        }
    }

    fn start(&mut self) -> Result<(), EmulatedHostError> {
        let mut request = self.request.take().ok_or(EmulatedHostError::OutOfTurn)?;
        let took = self.began.elapsed().as_millis().to_string();
        request.env.push((BOOT_TIME.into(), took.into()));
        self.control.send(&ToAgent::Start(Box::new(request)));
        self.phase = Phase::Starting;
        self.make_terminal_raw()
    }

    /// Passes a signal to the command, or ends the run if there is no command yet.
    fn pass_on(&mut self, signal: libc::c_int) -> Result<Option<EmulatedExit>, EmulatedHostError> {
        match (signal, self.phase) {
            (libc::SIGWINCH, _) => self.send_size(),
            (libc::SIGCONT, _) => {
                if self.raw_terminal.take().is_some() {
                    self.make_terminal_raw()?;
                }
                if self.phase == Phase::Running {
                    self.send_signal(signal);
                }
                self.send_size();
            }
            (_, Phase::Running) => {
                let now = Instant::now();
                // The first signal is for the command. Its ending is not known before its output has left the
                // machine.
                if asks_for_end(signal) && std::mem::replace(&mut self.was_asked, true) {
                    self.drain.hurry(now);
                }
                self.liveness.sent(signal, now);
                self.send_signal(signal);
            }
            (_, Phase::Booting | Phase::Starting) => return Err(EmulatedHostError::Interrupted { signal }),
            (_, Phase::Draining(_)) => return Ok(Some(EmulatedExit::Signal(signal))),
        }
        Ok(None)
    }

    /// Makes the caller's terminal raw, so that every byte passes. The command's own terminal, on the
    /// machine, does the line editing.
    fn make_terminal_raw(&mut self) -> Result<(), EmulatedHostError> {
        self.raw_terminal =
            RawTerminal::enter(io::stdin().as_fd()).map_err(local("set the terminal's mode"))?;
        Ok(())
    }

    fn exit_of(&self, ending: Ending) -> EmulatedExit {
        match ending {
            Ending::Code(code) => EmulatedExit::Code(code),
            Ending::Signal(number) if self.passed_on.contains(&number) => EmulatedExit::Signal(number.into()),
            Ending::Signal(number) => EmulatedExit::Killed(number.into()),
        }
    }

    fn send_signal(&mut self, signal: libc::c_int) {
        if let Ok(number) = u8::try_from(signal) {
            self.passed_on.insert(number);
            self.control.send(&ToAgent::Signal(number));
        }
    }

    fn send_size(&mut self) {
        // Before the start, the request has the size. Without a terminal, there is none.
        if self.phase == Phase::Booting {
            return;
        }
        let size = CallerTerminal::all().ok().and_then(|terminals| {
            terminals.iter().flatten().next().and_then(|terminal| terminal.size().ok())
        });
        if let Some(size) = size {
            self.control.send(&ToAgent::Resize(size));
        }
    }

    fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Booting | Phase::Starting)
    }

    fn timeout_ms(&self) -> i32 {
        let deadline = if self.is_starting() {
            self.deadline
        } else {
            Some(self.liveness.deadline().map_or(self.next_tick, |deadline| deadline.min(self.next_tick)))
        };
        let left =
            deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1)
    }

    fn ended(self) -> EmulatedHostError {
        let is_starting = self.is_starting();
        match self.machine.end() {
            Ok((status, last_words)) if is_starting => EmulatedHostError::BootFailed { status, last_words },
            Ok((status, last_words)) => EmulatedHostError::Lost { status, last_words },
            Err(source) => EmulatedHostError::Local { step: "wait for QEMU", source },
        }
    }

    fn timed_out(self) -> EmulatedHostError {
        match self.machine.end() {
            Ok((_, last_words)) => EmulatedHostError::BootTimeout { limit: self.boot_limit, last_words },
            Err(source) => EmulatedHostError::Local { step: "wait for QEMU", source },
        }
    }
}

impl Streams {
    fn new(machine: &Machine, terminals: [bool; 3]) -> io::Result<Self> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let callers: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let [port, ..] = &machine.streams;
        let input =
            Pump::new(source_of(stdin.as_fd())?, copy(port.as_fd())?, NON_BLOCKING_CHUNK, Undelivered::Stop);
        let mut outputs = [None, None, None];
        for stream in Stream::ALL {
            // Bytes from the port of stdin are the echo of a terminal that has no other stream.
            if stream == Stream::Stdin && terminals != [true, false, false] {
                continue;
            }
            let (Some(port), Some(caller)) =
                (machine.streams.get(stream.index()), callers.get(stream.index()))
            else {
                continue;
            };
            let (sink, chunk) = sink_of(*caller)?;
            let pump = Pump::new(copy(port.as_fd())?, sink, chunk, Undelivered::Discard);
            if let Some(place) = outputs.get_mut(stream.index()) {
                *place = Some(pump);
            }
        }
        Ok(Self { input, outputs, input_end_reported: false, closed_reported: [false; 3] })
    }

    fn pumps(&mut self) -> impl Iterator<Item = &mut Pump> {
        std::iter::once(&mut self.input).chain(self.outputs.iter_mut().flatten())
    }

    /// Returns the number of bytes that have come from the machine, and that the caller has taken.
    fn progress(&self) -> (u64, u64) {
        let sum =
            |count: fn(&Pump) -> u64| self.outputs.iter().flatten().map(count).fold(0, u64::saturating_add);
        (sum(Pump::taken), sum(Pump::delivered))
    }

    /// Returns the exit, unless a part of the command's output could not be written.
    fn undamaged(&self, exit: EmulatedExit) -> Result<EmulatedExit, EmulatedHostError> {
        for (stream, pump) in ["stdout", "stdout", "stderr"].into_iter().zip(&self.outputs) {
            if let Some(errno) = pump.as_ref().and_then(Pump::failure) {
                let source = io::Error::from_raw_os_error(errno);
                return Err(EmulatedHostError::OutputLost { stream, source, exit });
            }
        }
        Ok(exit)
    }

    /// Reports each stream of the caller's that has ended or was closed to the agent, once. Bytes that a
    /// stream cannot take for another reason are lost, up to a limit, and the command goes on.
    fn report_ends(&mut self, control: &mut ControlSocket) {
        if self.input.source_ended() && !self.input_end_reported {
            self.input_end_reported = true;
            control.send(&ToAgent::StdinEnd { bytes: self.input.taken() });
        }
        for ((stream, pump), reported) in
            Stream::ALL.into_iter().zip(&self.outputs).zip(&mut self.closed_reported)
        {
            let closed = pump.as_ref().is_some_and(|pump| {
                let loses_more = pump.taken().saturating_sub(pump.delivered()) > MAX_LOST;
                pump.sink_closed() && !pump.finished() && (pump.failure().is_none() || loses_more)
            });
            if closed && !*reported {
                *reported = true;
                control.send(&ToAgent::OutputClosed(stream));
            }
        }
    }
}

/// Returns an output of the caller's, and the largest write that does not block. That is unlimited for a
/// file, which never blocks, and for a pipe or terminal that can be opened again. One that cannot be opened
/// again may still block.
fn sink_of(stream: BorrowedFd<'_>) -> io::Result<(OwnedFd, usize)> {
    if let Some(own) = own_description(stream, Direction::Write) {
        return Ok((own.into(), NON_BLOCKING_CHUNK));
    }
    let is_file = File::from(copy(stream)?).metadata()?.is_file();
    Ok((copy(stream)?, if is_file { NON_BLOCKING_CHUNK } else { BLOCKING_CHUNK }))
}

/// Returns an input of the caller's, opened again if possible: another reader of it may be faster after a
/// poll.
fn source_of(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    own_description(stream, Direction::Read).map_or_else(|| copy(stream), |own| Ok(own.into()))
}

fn copy(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    stream.try_clone_to_owned()
}

fn local(step: &'static str) -> impl FnOnce(io::Error) -> EmulatedHostError {
    move |source| EmulatedHostError::Local { step, source }
}

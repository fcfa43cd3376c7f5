//! Starts the command with the caller's streams, terminal, directory, limits and signals.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use coracle_agent::protocol::emulated_host::{Limit, Request, StartFailure, StartStep, Stream};
use coracle_agent::relay;

use crate::pty::Pty;

/// A command that was started, and the agent's ends of its streams.
#[derive(Debug)]
pub(super) struct RunningCommand {
    /// The id of its process, session and process group.
    pub(super) process: libc::pid_t,
    /// The agent's end of its terminal.
    pub(super) terminal: Option<File>,
    /// Whether its input goes to that terminal.
    pub(super) input_is_terminal: bool,
    /// The descriptor for its input.
    pub(super) input: OwnedFd,
    /// The descriptors of its output, by stream. A terminal's output comes through one of the streams. That
    /// is stdin if neither stdout nor stderr is a terminal, and then it is the echo.
    pub(super) outputs: [Option<OwnedFd>; 3],
}

/// Runs the command of a request. Its shares must be mounted.
///
/// # Errors
/// The step that failed, with its `errno`.
pub(super) fn start(request: &Request) -> Result<RunningCommand, StartFailure> {
    let streams = StreamsOf::make(request)
        .map_err(|error| failure(StartStep::Streams, OsStr::new("stdin, stdout and stderr"), &error))?;
    std::env::set_current_dir(&request.cwd)
        .map_err(|error| failure(StartStep::EnterDirectory, request.cwd.as_os_str(), &error))?;
    let program = request.argv.first().map_or(OsStr::new(""), |program| program.as_os_str());
    let mut command = Command::new(program);
    command
        .args(request.argv.iter().skip(1))
        .env_clear()
        .envs(request.env.iter().map(|(name, value)| (name, value)));
    let [stdin, stdout, stderr] = streams.inner;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let setup = ChildSetup::of(request);
    // SAFETY: the closure makes only system calls on data that was made before the fork.
    unsafe { command.pre_exec(move || setup.apply()) };
    let child = command.spawn().map_err(|error| failure(StartStep::Execute, program, &error))?;
    Ok(RunningCommand {
        process: child.id().cast_signed(),
        terminal: streams.terminal,
        input_is_terminal: *Stream::Stdin.of(&request.terminals),
        input: streams.input,
        outputs: streams.outputs,
    })
}

/// Makes a failure as it crosses the control port.
pub(super) fn failure(step: StartStep, subject: &OsStr, error: &io::Error) -> StartFailure {
    StartFailure { step, subject: subject.to_owned(), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
}

/// Both ends of the command's three streams.
struct StreamsOf {
    inner: [Stdio; 3],
    terminal: Option<File>,
    input: OwnedFd,
    outputs: [Option<OwnedFd>; 3],
}

impl StreamsOf {
    fn make(request: &Request) -> io::Result<Self> {
        let pty = match &request.terminal {
            Some((modes, size)) => {
                let pty = Pty::open(*size)?;
                pty.set_modes(modes)?;
                Some(pty)
            }
            None => None,
        };
        let mut outputs = [None, None, None];
        if let (Some(pty), Some(stream)) = (&pty, terminal_output(request.terminals)) {
            relay::set_non_blocking(&pty.master)?;
            *stream.of_mut(&mut outputs) = Some(OwnedFd::from(pty.master.try_clone()?));
        }
        let terminal_of = |stream: Stream| pty.as_ref().filter(|_| *stream.of(&request.terminals));
        let (stdin, input): (Stdio, OwnedFd) = match terminal_of(Stream::Stdin) {
            Some(pty) => (pty.slave.try_clone()?.into(), pty.master.try_clone()?.into()),
            None => {
                let (reader, writer) = pipe()?;
                relay::set_non_blocking(&writer)?;
                (reader.into(), writer.into())
            }
        };
        let mut output = |stream: Stream| -> io::Result<Stdio> {
            if let Some(pty) = terminal_of(stream) {
                return Ok(pty.slave.try_clone()?.into());
            }
            let (reader, writer) = pipe()?;
            relay::set_non_blocking(&reader)?;
            *stream.of_mut(&mut outputs) = Some(reader.into());
            Ok(writer.into())
        };
        let inner = [stdin, output(Stream::Stdout)?, output(Stream::Stderr)?];
        Ok(Self { inner, terminal: pty.map(|pty| pty.master), input, outputs })
    }
}

/// Returns the stream whose port carries a terminal's output.
fn terminal_output(terminals: [bool; 3]) -> Option<Stream> {
    [Stream::Stdout, Stream::Stderr, Stream::Stdin].into_iter().find(|stream| *stream.of(&terminals))
}

/// The set-up of the new process between fork and exec.
struct ChildSetup {
    /// The first of its streams that is the terminal.
    terminal: Option<libc::c_int>,
    umask: libc::mode_t,
    limits: Vec<Limit>,
    ignored_signals: Vec<u8>,
}

impl ChildSetup {
    fn of(request: &Request) -> Self {
        Self {
            terminal: (0..).zip(request.terminals).find_map(|(fd, is_terminal)| is_terminal.then_some(fd)),
            umask: request.umask,
            limits: request.limits.clone(),
            ignored_signals: request.ignored_signals.clone(),
        }
    }

    fn apply(&self) -> io::Result<()> {
        // SAFETY: makes the calling process a session leader; no memory is involved.
        checked(unsafe { libc::setsid() })?;
        if let Some(fd) = self.terminal {
            // SAFETY: makes a terminal the session's; the argument is a number.
            checked(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) })?;
        }
        // SAFETY: sets a number of this process; no memory is involved.
        unsafe { libc::umask(self.umask) };
        for limit in &self.limits {
            let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
            // SAFETY: reads the structure it is given. A limit that this machine refuses is left as it is.
            unsafe { libc::setrlimit(libc::__rlimit_resource_t::from(limit.resource), &raw const value) };
        }
        for signal in &self.ignored_signals {
            // SAFETY: sets a disposition that is not a function.
            unsafe { libc::signal(libc::c_int::from(*signal), libc::SIG_IGN) };
        }
        unblock_signals()
    }
}

/// Unblocks signals. The agent blocks them, and a new process inherits that.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    checked(unsafe { libc::sigemptyset(&raw mut none) })?;
    // SAFETY: reads the set it is given; the old mask is not asked for.
    checked(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! A running command: its streams to and from the host, its signals, and its end.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{
    AgentMessage, AgentSession, Ending, ExecLimits, ExecRequest, Failure, INITIAL_WINDOW, ProcessInfo, Step,
    Stream, WindowSize,
};
use coracle_agent::relay::{poll_entry, set_non_blocking};

use super::cgroup::{Cgroup, Cgroups};
use super::spawn::{Plan, Streams, no_input};
use crate::pty::{self, Pty};

/// A command on a channel.
///
/// ```text
/// running --its process ends--> ended --its outputs end, or the grace is over--> over
/// ```
///
/// While no host has it, its outputs are kept, up to a window each. It is given no session then.
#[derive(Debug)]
pub(super) struct Command {
    channel: u32,
    process: libc::pid_t,
    group: Option<Cgroup>,
    terminal: Option<File>,
    input: Option<File>,
    /// Bytes from the host that are not in the pipe yet: at most a window.
    pending: VecDeque<u8>,
    input_ended: bool,
    outputs: [Option<File>; 2],
    /// Bytes that were read from the outputs while no host had the command.
    kept: [VecDeque<u8>; 2],
    /// Whether the processes that it started end with it.
    kill_tree: bool,
    ended: Option<(Instant, libc::c_int)>,
    program: OsString,
}

impl Command {
    /// Starts the command.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn start(
        channel: u32,
        request: &ExecRequest,
        groups: Option<&mut Cgroups>,
    ) -> Result<Self, Failure> {
        let plan = Plan::of(request)?;
        let program = request.argv.first().cloned().unwrap_or_default();
        let made = match request.terminal {
            Some(size) => Ends::of_terminal(size, request.stdin),
            None => Ends::of_pipes(request.stdin),
        };
        let Ends { streams, terminal, input, outputs } =
            made.map_err(|error| Failure::new(Step::Streams, &program, &error))?;
        // Without a group of its own, the process group must do.
        let mut groups = groups;
        let group = group_for(&request.limits, groups.as_deref_mut())
            .map_err(|error| Failure::new(Step::Limits, &program, &error))?;
        let process = match plan.spawn(streams, group.as_ref()) {
            Ok(process) => process,
            Err(failure) => {
                if let (Some(groups), Some(group)) = (groups, group) {
                    groups.release(group);
                }
                return Err(failure);
            }
        };
        let pending = VecDeque::new();
        Ok(Self {
            channel,
            process,
            group,
            terminal,
            input,
            pending,
            input_ended: false,
            outputs,
            kept: Default::default(),
            kill_tree: request.limits.kill_tree,
            ended: None,
            program,
        })
    }

    pub(super) fn process(&self) -> libc::pid_t {
        self.process
    }

    /// Returns the entries to poll: stdin's, then those of the outputs. Entries that are not wanted have the
    /// descriptor -1.
    pub(super) fn poll_entries(&self, session: Option<&AgentSession>, may_read: bool) -> [libc::pollfd; 3] {
        let fd = |file: &Option<File>| file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let output = |file: &Option<File>, stream| {
            let has_room = may_read && self.room(stream, session) > 0;
            poll_entry(if has_room { fd(file) } else { -1 }, libc::POLLIN)
        };
        let [stdout, stderr] = &self.outputs;
        let waits = if self.pending.is_empty() { 0 } else { libc::POLLOUT };
        // A terminal is watched by its output.
        let input = if waits == 0 && self.terminal.is_some() { -1 } else { fd(&self.input) };
        [poll_entry(input, waits), output(stdout, Stream::Stdout), output(stderr, Stream::Stderr)]
    }

    /// Handles the result of polling [`Command::poll_entries`].
    pub(super) fn handle(
        &mut self,
        answers: &[libc::pollfd],
        mut session: Option<&mut AgentSession>,
        buffer: &mut [u8],
    ) {
        let [input, stdout, stderr] = answers else { return };
        if input.revents & libc::POLLOUT != 0 {
            self.write_input(session.as_deref_mut());
        } else if input.revents != 0 {
            self.refuse_input(session.as_deref_mut());
        }
        if stdout.revents != 0 {
            self.read_output(Stream::Stdout, session.as_deref_mut(), buffer);
        }
        if stderr.revents != 0 {
            self.read_output(Stream::Stderr, session, buffer);
        }
    }

    /// Takes bytes for stdin.
    pub(super) fn take_input(&mut self, bytes: &[u8], session: &mut AgentSession) {
        if self.input.is_none() {
            session.taken(self.channel, bytes.len());
            return;
        }
        self.pending.extend(bytes);
        self.write_input(Some(session));
    }

    /// Ends stdin.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
        self.finish_input();
    }

    /// Sends a signal to the terminal's foreground, or to the command's group.
    pub(super) fn signal(&self, signal: u8) {
        let foreground = self.terminal.as_ref().and_then(|terminal| pty::foreground(terminal).ok());
        let group = foreground.filter(|group| *group > 0).unwrap_or(self.process);
        if self.ended.is_none() {
            // SAFETY: sends a signal to a process group; no memory is involved.
            unsafe { libc::kill(-group, libc::c_int::from(signal)) };
        }
    }

    pub(super) fn resize(&self, size: WindowSize) {
        // The terminal may be gone with its last user, and then nobody needs its size.
        let _ = self.terminal.as_ref().map(|terminal| pty::resize(terminal, size));
    }

    /// Kills all of its processes and closes its streams.
    pub(super) fn kill(&mut self) {
        if self.ended.is_none() {
            // SAFETY: sends a signal to the process group of a child that has not been waited for.
            unsafe { libc::kill(-self.process, libc::SIGKILL) };
        }
        if let Some(group) = &self.group {
            group.kill();
        }
        self.input = None;
        self.pending.clear();
        self.outputs = [None, None];
        self.kept = Default::default();
    }

    /// Records that its process has ended.
    pub(super) fn end(&mut self, status: libc::c_int, mut session: Option<&mut AgentSession>) {
        self.ended = Some((Instant::now(), status));
        match &self.group {
            Some(group) if self.kill_tree => group.kill(),
            // SAFETY: sends a signal to the process group of a child that has just been waited for.
            None if self.kill_tree => drop(unsafe { libc::kill(-self.process, libc::SIGKILL) }),
            _ => {}
        }
        self.refuse_input(session.as_deref_mut());
        if let Some(session) = session {
            session.answer(self.channel, &AgentMessage::Exited(Ending::of_status(status)));
        }
    }

    /// Returns the time at which outputs are cut off that processes left behind still hold open.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_waiting = self.outputs.iter().any(Option::is_some);
        self.ended.filter(|_| is_waiting).map(|(ended, _)| ended + LEFTOVER_GRACE)
    }

    /// Cuts off outputs that only processes left behind hold open. Everything written by now is still
    /// delivered.
    pub(super) fn cut_leftovers(&mut self, mut session: Option<&mut AgentSession>) {
        for ((stream, output), kept) in OUTPUTS.into_iter().zip(&mut self.outputs).zip(&self.kept) {
            if output.as_ref().is_some_and(|file| !has_input(file)) {
                *output = None;
                if let Some(session) = session.as_deref_mut().filter(|_| kept.is_empty()) {
                    session.end(self.channel, stream);
                }
            }
        }
    }

    /// Returns whether the command is over.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
            && self.outputs.iter().all(Option::is_none)
            && self.kept.iter().all(VecDeque::is_empty)
    }

    /// Returns its control group.
    pub(super) fn into_group(self) -> Option<Cgroup> {
        self.group
    }

    fn write_input(&mut self, mut session: Option<&mut AgentSession>) {
        while let (Some(input), (bytes @ [_, ..], _)) = (&mut self.input, self.pending.as_slices()) {
            match input.write(bytes) {
                Ok(count) => {
                    self.pending.drain(..count);
                    if let Some(session) = session.as_deref_mut() {
                        session.taken(self.channel, count);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.refuse_input(session),
            }
        }
        self.finish_input();
    }

    /// Ends the command's stdin once everything is written: a pipe is closed, and a terminal has a character
    /// for it.
    fn finish_input(&mut self) {
        if !self.input_ended || !self.pending.is_empty() {
            return;
        }
        let Some(mut input) = self.input.take() else { return };
        if self.terminal.is_some() {
            // A full terminal loses the character, as it does when typed.
            let _ = input.write(&[END_OF_FILE]);
        }
    }

    /// Reports to the host that nobody reads stdin any more. Bytes that still come are dropped.
    fn refuse_input(&mut self, session: Option<&mut AgentSession>) {
        if self.input.take().is_some() {
            self.pending.clear();
            if let Some(session) = session {
                session.refuse_input(self.channel);
            }
        }
    }

    fn read_output(&mut self, stream: Stream, session: Option<&mut AgentSession>, buffer: &mut [u8]) {
        let room = self.room(stream, session.as_deref()).min(buffer.len());
        let index = stream.index().saturating_sub(1);
        let (Some(output), Some(kept)) = (self.outputs.get_mut(index), self.kept.get_mut(index)) else {
            return;
        };
        let Some(file) = output else { return };
        let Some(space) = buffer.get_mut(..room).filter(|space| !space.is_empty()) else { return };
        match file.read(space) {
            Ok(count) if count > 0 => {
                let bytes = space.get(..count).unwrap_or_default();
                match session {
                    Some(session) => session.send(self.channel, stream, bytes),
                    None => kept.extend(bytes),
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A terminal without users reports its end as EIO.
            Ok(_) | Err(_) => {
                *output = None;
                if let Some(session) = session {
                    session.end(self.channel, stream);
                }
            }
        }
    }

    /// Returns the number of bytes that may be read from an output: as many as the host takes, or as are kept
    /// without a host.
    fn room(&self, stream: Stream, session: Option<&AgentSession>) -> usize {
        let kept = self.kept.get(stream.index().saturating_sub(1)).map_or(0, VecDeque::len);
        match session {
            // What was kept comes first.
            Some(session) if kept == 0 => session.credit(self.channel, stream),
            Some(_) => 0,
            None => (INITIAL_WINDOW as usize).saturating_sub(kept),
        }
    }
}

/// A command that its host has left behind, and that another host takes up.
impl Command {
    /// Returns its description.
    pub(super) fn info(&self, id: u32) -> ProcessInfo {
        let length = self.program.len().min(ProcessInfo::MAX_NAME);
        let name = self.program.as_bytes().get(..length).unwrap_or_default();
        let mut info = ProcessInfo::new(id, self.process.cast_unsigned(), OsStr::from_bytes(name).into());
        info.has_stdin = self.input.is_some() && !self.input_ended;
        info.has_terminal = self.terminal.is_some();
        info.has_ended = self.ended.is_some();
        info
    }

    /// Gives it to the host that asks for it on this channel.
    pub(super) fn attach(&mut self, channel: u32, session: &mut AgentSession) {
        self.channel = channel;
        session.answer(channel, &AgentMessage::Started { pid: self.process.cast_unsigned() });
        if self.input.is_none() {
            session.refuse_input(channel);
        }
        if let Some((_, status)) = self.ended {
            session.answer(channel, &AgentMessage::Exited(Ending::of_status(status)));
        }
        self.send_kept(session);
    }

    /// Returns whether output was kept that the host takes now.
    pub(super) fn can_send_kept(&self, session: &AgentSession) -> bool {
        let mut outputs = OUTPUTS.into_iter().zip(&self.kept);
        outputs.any(|(stream, kept)| !kept.is_empty() && session.credit(self.channel, stream) > 0)
    }

    /// Sends the output that was kept, as far as the host takes it.
    pub(super) fn send_kept(&mut self, session: &mut AgentSession) {
        for ((stream, kept), output) in OUTPUTS.into_iter().zip(&mut self.kept).zip(&self.outputs) {
            while !kept.is_empty() && session.credit(self.channel, stream) > 0 {
                let (bytes, _) = kept.as_slices();
                let count = bytes.len().min(session.credit(self.channel, stream));
                session.send(self.channel, stream, bytes.get(..count).unwrap_or_default());
                kept.drain(..count);
            }
            if kept.is_empty() && output.is_none() {
                session.end(self.channel, stream);
            }
        }
    }
}

/// Returns a control group for a command. Without limits, the process group must do if there is no control
/// group.
fn group_for(limits: &ExecLimits, groups: Option<&mut Cgroups>) -> io::Result<Option<Cgroup>> {
    match groups {
        Some(groups) if limits.need_controllers() => groups.make_limited(limits).map(Some),
        Some(groups) => Ok(groups.make().ok()),
        None if limits.need_controllers() => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        None => Ok(None),
    }
}

/// Both ends of a command's streams.
struct Ends {
    streams: Streams,
    terminal: Option<File>,
    input: Option<File>,
    outputs: [Option<File>; 2],
}

impl Ends {
    fn of_terminal(size: WindowSize, has_input: bool) -> io::Result<Self> {
        let Pty { master, slave } = Pty::open(size)?;
        set_non_blocking(&master)?;
        let inner = [slave.try_clone()?.into(), slave.try_clone()?.into(), slave.into()];
        let input = has_input.then(|| master.try_clone()).transpose()?;
        let outputs = [Some(master.try_clone()?), None];
        let streams = Streams { inner, is_terminal: true };
        Ok(Self { streams, terminal: Some(master), input, outputs })
    }

    fn of_pipes(has_input: bool) -> io::Result<Self> {
        let (stdin, input) = if has_input {
            let (reader, writer) = pipe()?;
            set_non_blocking(&writer)?;
            (reader.into(), Some(File::from(OwnedFd::from(writer))))
        } else {
            (no_input()?, None)
        };
        let output = || -> io::Result<(OwnedFd, File)> {
            let (reader, writer) = pipe()?;
            set_non_blocking(&reader)?;
            Ok((writer.into(), OwnedFd::from(reader).into()))
        };
        let ((stdout, from_stdout), (stderr, from_stderr)) = (output()?, output()?);
        let streams = Streams { inner: [stdin, stdout, stderr], is_terminal: false };
        Ok(Self { streams, terminal: None, input, outputs: [Some(from_stdout), Some(from_stderr)] })
    }
}

fn has_input(file: &File) -> bool {
    let mut entry = poll_entry(file.as_raw_fd(), libc::POLLIN);
    // SAFETY: one live entry is passed with a count of one, and nothing is waited for.
    unsafe { libc::poll(&raw mut entry, 1, 0) > 0 && entry.revents & libc::POLLIN != 0 }
}

/// The time that processes left behind by a command may hold its outputs open.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);
const OUTPUTS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
/// Control-D, which ends the input of a new terminal.
const END_OF_FILE: u8 = 4;

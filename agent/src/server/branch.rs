//! Branch points: processes of the guest that wait until the host has taken a snapshot of the machine, and go
//! on in each machine that continues from it.
//!
//! ```text
//! Waiting --the host waits for one--> Parked --the host closes the channel--> goes on, without an identity
//!    \--nobody does--> refused           \--a snapshot--> Left --an identity--> goes on, with it
//! ```

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{AgentMessage, AgentSession, Failure, Step};
use coracle_agent::relay::poll_entry;

use crate::branch_here::{self, Answer};

/// The processes at their branch points, and the hosts that wait for one.
#[derive(Debug, Default)]
pub(super) struct Branch {
    /// `None` if there can be no branch points here.
    listener: Option<UnixListener>,
    processes: Vec<Process>,
    /// The channels on which the host waits, and whether every user counts.
    hosts: VecDeque<(u32, bool)>,
}

/// A process that has asked.
#[derive(Debug)]
struct Process {
    stream: UnixStream,
    pid: libc::pid_t,
    uid: libc::uid_t,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Until this time, if no host waits for it.
    Waiting(Instant),
    /// The host of this channel knows it.
    Parked(u32),
    /// Its host stayed behind, or is gone.
    Left,
}

impl Branch {
    /// Listens for processes. If that is not possible, there are no branch points.
    pub(super) fn open() -> Self {
        let listener = SocketAddr::from_abstract_name(branch_here::SOCKET)
            .and_then(|address| UnixListener::bind_addr(&address))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        Self { listener: listener.ok(), ..Self::default() }
    }

    /// Makes the program known by its name: a link in a directory of the default `PATH`.
    pub(super) fn offer_program(&self) {
        if self.listener.is_some() {
            let target = format!("/proc/{}/exe", std::process::id());
            // A system without a writable `/run` has the program elsewhere, or not at all.
            let _ = fs::create_dir(PROGRAM_FOLDER).and_then(|()| symlink(target, PROGRAM));
        }
    }

    /// Returns the entries to poll. An event is only a reason to look.
    pub(super) fn poll_entries(&self) -> impl Iterator<Item = libc::pollfd> {
        let listener = self.listener.iter().map(AsRawFd::as_raw_fd);
        let processes = self.processes.iter().map(|process| process.stream.as_raw_fd());
        listener.chain(processes).map(|fd| poll_entry(fd, libc::POLLIN))
    }

    /// Returns the next time at which there is work.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let until = |process: &Process| match process.stage {
            Stage::Waiting(until) => Some(until),
            Stage::Parked(_) | Stage::Left => None,
        };
        self.processes.iter().filter_map(until).min()
    }

    /// Lets a host wait on this channel for the next process.
    pub(super) fn wait(&mut self, channel: u32, any_user: bool) {
        self.hosts.push_back((channel, any_user));
    }

    /// Takes new processes, drops those that have gone, and brings processes and hosts together.
    pub(super) fn advance(&mut self, mut session: Option<&mut AgentSession>) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if self.processes.len() < MAX_PROCESSES
                && let Ok((pid, uid)) = credentials(&stream)
            {
                let stage = Stage::Waiting(Instant::now() + PATIENCE);
                self.processes.push(Process { stream, pid, uid, stage });
            }
        }
        self.drop_gone(session.as_deref_mut());
        if let Some(session) = session {
            self.pair(session);
        }
        let now = Instant::now();
        self.release(|stage| matches!(stage, Stage::Waiting(until) if now >= until), Answer::NoHost, &[]);
    }

    /// Drops processes that have been killed, or have said anything.
    fn drop_gone(&mut self, mut session: Option<&mut AgentSession>) {
        self.processes.retain(|process| {
            let mut entry = poll_entry(process.stream.as_raw_fd(), libc::POLLIN);
            // SAFETY: one live entry is passed with a count of one, and nothing is waited for.
            if unsafe { libc::poll(&raw mut entry, 1, 0) } <= 0 {
                return true;
            }
            if let (Stage::Parked(channel), Some(session)) = (process.stage, session.as_deref_mut()) {
                let failure = Failure { step: Step::Process, subject: "".into(), errno: libc::ESRCH };
                session.answer(channel, &AgentMessage::Failed(failure));
                session.closed(channel);
            }
            false
        });
    }

    fn pair(&mut self, session: &mut AgentSession) {
        while let Some((channel, any_user)) = self.hosts.front().copied() {
            if !any_user {
                self.refuse_users();
            }
            let waits = |process: &&mut Process| matches!(process.stage, Stage::Waiting(_));
            let Some(process) = self.processes.iter_mut().find(waits) else { return };
            process.stage = Stage::Parked(channel);
            session.answer(channel, &AgentMessage::Started { pid: process.pid.cast_unsigned() });
            self.hosts.pop_front();
        }
    }

    fn refuse_users(&mut self) {
        self.processes.retain(|process| {
            let is_refused = process.uid != 0 && matches!(process.stage, Stage::Waiting(_));
            if is_refused {
                process.answer(Answer::NotRoot, &[]);
            }
            !is_refused
        });
    }

    /// Ends the wait of a host, whose process goes on. Returns false if the channel is another.
    pub(super) fn close(&mut self, channel: u32) -> bool {
        let waited = self.hosts.len();
        self.hosts.retain(|(host, _)| *host != channel);
        let released = self.release(|stage| stage == Stage::Parked(channel), Answer::First, &[]);
        released || self.hosts.len() < waited
    }

    /// Records that the connection to the host has ended.
    pub(super) fn leave(&mut self) {
        self.hosts.clear();
        for process in &mut self.processes {
            if let Stage::Parked(_) = process.stage {
                process.stage = Stage::Left;
            }
        }
    }

    /// Lets the processes whose host stayed behind go on as this machine.
    pub(super) fn go_on(&mut self, env: &[(OsString, OsString)]) {
        self.release(|stage| stage == Stage::Left, Answer::Fork, env);
    }

    /// Refuses the processes whose host is gone.
    pub(super) fn give_up(&mut self) {
        self.release(|stage| stage == Stage::Left, Answer::HostGone, &[]);
    }

    fn release(
        &mut self,
        is_meant: impl Fn(Stage) -> bool,
        answer: Answer,
        env: &[(OsString, OsString)],
    ) -> bool {
        let before = self.processes.len();
        self.processes.retain(|process| {
            let is_meant = is_meant(process.stage);
            if is_meant {
                process.answer(answer, env);
            }
            !is_meant
        });
        self.processes.len() < before
    }
}

impl Process {
    /// Sends the answer. A process that does not take it stays where it is, until it is killed.
    fn answer(&self, answer: Answer, env: &[(OsString, OsString)]) {
        let mut message = vec![answer as u8];
        for (name, value) in env {
            for part in [name.as_os_str(), OsStr::new("="), value, OsStr::new("\0")] {
                message.extend_from_slice(part.as_bytes());
            }
        }
        let prepared = self.stream.set_nonblocking(false);
        let prepared = prepared.and_then(|()| self.stream.set_write_timeout(Some(ANSWER_LIMIT)));
        let _ = prepared.and_then(|()| (&self.stream).write_all(&message));
    }
}

/// Returns the process and the user at the other end (`unix(7)`).
fn credentials(stream: &UnixStream) -> io::Result<(libc::pid_t, libc::uid_t)> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel fills the structure of this length.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((peer.pid, peer.uid)) }
}

/// The largest number of processes at their branch points.
const MAX_PROCESSES: usize = 64;
/// The time for a host to wait for a process that has reached its branch point.
const PATIENCE: Duration = Duration::from_secs(5);
const PROGRAM_FOLDER: &str = "/run/coracle";
const PROGRAM: &str = "/run/coracle/coracle-agent";
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

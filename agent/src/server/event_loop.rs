//! A single thread with one loop handles the connection to the host, the commands' streams, ended processes
//! and, for PID 1, the power button.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use coracle_agent::protocol::agent::{AgentInfo, AgentMessage, AgentSession, MAX_DATA, Power, SessionError};
use coracle_agent::relay::{poll, poll_entry};

use super::Surroundings;
use super::branch::Branch;
use super::cgroup::Cgroups;
use super::job::Job;
use super::machine;
use super::parked::Parked;
use super::transport::Line;
use crate::power::{self, PowerButton, requested};

/// The agent between and during connections.
pub(super) struct Server {
    surroundings: Surroundings,
    pub(super) groups: Option<Cgroups>,
    pub(super) parked: Parked,
    pub(super) branch: Branch,
    /// Variables of all commands, from the machine's identity.
    pub(super) env: Vec<(OsString, OsString)>,
    /// The token of the last session.
    last_token: Option<u64>,
    buffer: Box<[u8]>,
}

/// The way in which a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The other end closed the connection.
    HungUp {
        /// Whether there was a session.
        was_open: bool,
    },
    /// The host broke the protocol.
    Broken(SessionError),
}

/// The state of one connection.
pub(super) struct Connection {
    line: Line,
    pub(super) session: AgentSession,
    pub(super) jobs: BTreeMap<u32, Job>,
    greet_at: Instant,
    /// The wait before the next look for a host at the other end.
    pause: Duration,
    /// The end of the machine, which starts once the host has heard of it.
    pub(super) end: Option<Power>,
}

impl Server {
    pub(super) fn new(surroundings: Surroundings, branch: Branch) -> Self {
        // Old kernels, and systems without the right to use it, must do with process groups.
        let groups = Cgroups::open().ok();
        Self {
            surroundings,
            groups,
            parked: Parked::default(),
            branch,
            env: Vec::new(),
            last_token: None,
            buffer: vec![0; MAX_DATA].into(),
        }
    }

    /// Moves to the root of the system's init.
    pub(super) fn enter_root(&self) {
        self.surroundings.enter_root();
    }

    /// Serves one connection to its end. What runs for it is kept for a while: the machine may go on from a
    /// snapshot.
    pub(super) fn serve(&mut self, mut line: Line) -> End {
        loop {
            let session = AgentSession::after(self.last_token, token(), self.info());
            self.last_token = Some(session.token());
            let greet_at = Instant::now() + GREETING;
            let mut connection =
                Connection { line, session, jobs: BTreeMap::new(), greet_at, pause: NOBODY, end: None };
            let end = loop {
                if let Err(end) = self.step(&mut connection) {
                    break end;
                }
            };
            for job in std::mem::take(&mut connection.jobs).into_values() {
                self.park(job);
            }
            self.branch.leave();
            match end {
                // The line stays, and the next session begins at once.
                End::Broken(SessionError::Restored) => {
                    self.parked.keep();
                    connection.line.drop_output();
                }
                End::HungUp { was_open } if was_open => {
                    self.parked.wait();
                    return end;
                }
                End::HungUp { .. } => return end,
                End::Broken(_) => {
                    self.drop_parked();
                    return end;
                }
            }
            line = connection.line;
        }
    }

    /// Leaves a command to the next host, and drops anything else.
    fn park(&mut self, job: Job) {
        let left = match job {
            Job::Command(command) if !command.is_over() => self.parked.add(command).map(Job::Command),
            other => Some(other),
        };
        left.into_iter().for_each(|job| self.drop_job(job));
    }

    /// Kills the commands that no host will take up, and gives up the branch points that none has left.
    pub(super) fn drop_parked(&mut self) {
        self.branch.give_up();
        let parked = self.parked.take();
        parked.for_each(|command| self.drop_job(Job::Command(command)));
    }

    fn drop_late(&mut self) {
        if self.parked.is_late() {
            self.drop_parked();
        }
    }

    /// Does the work that needs no connection.
    pub(super) fn wait_until(&mut self, end: Instant) {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut entries = self.own_entries();
            let own = entries.len();
            let branch = self.branch.poll_entries();
            entries.extend(self.parked.poll_entries().chain(branch));
            let wake = self.parked.deadline().into_iter().chain(self.branch.deadline()).min();
            let wake = wake.map(|at| at.saturating_duration_since(Instant::now()));
            // An error of poll itself ends the wait early.
            let _ = poll(&mut entries, millis(wake.map_or(left, |wake| wake.min(left))));
            self.parked.handle(entries.get(own..).unwrap_or_default(), &mut self.buffer);
            self.heed(&mut BTreeMap::new(), None);
            self.branch.advance(None);
            self.drop_late();
        }
    }

    fn info(&self) -> AgentInfo {
        AgentInfo {
            kernel: machine::kernel_release(),
            place: self.surroundings.place,
            kills_groups: self.groups.is_some(),
        }
    }

    fn own_entries(&self) -> Vec<libc::pollfd> {
        let signals = poll_entry(self.surroundings.signals.as_raw_fd(), libc::POLLIN);
        let button = self.surroundings.button.iter().flat_map(PowerButton::poll_entries);
        std::iter::once(signals).chain(button).collect()
    }

    fn step(&mut self, connection: &mut Connection) -> Result<(), End> {
        let Connection { line, session, jobs, greet_at, .. } = connection;
        let is_clogged = session.output().len() >= MAX_OUTPUT;
        let mut entries = self.own_entries();
        let own = entries.len();
        let wants = if is_clogged { 0 } else { libc::POLLIN }
            | if session.output().is_empty() { 0 } else { libc::POLLOUT };
        entries.push(poll_entry(line.file.as_raw_fd(), wants));
        entries.extend(self.parked.poll_entries().chain(self.branch.poll_entries()));
        let of_jobs = entries.len();
        for job in jobs.values() {
            entries.extend(job.poll_entries(session, !is_clogged));
        }
        let repeats = line.is_silent && !session.is_open();
        let timeout = match jobs.values().any(|job| !is_clogged && job.can_go_on(session)) {
            true => Some(Instant::now()),
            false => {
                let own = repeats.then_some(*greet_at).into_iter().chain(self.parked.deadline());
                let own = own.chain(self.branch.deadline());
                jobs.values().filter_map(Job::deadline).chain(own).min()
            }
        };
        let timeout = timeout.map_or(-1, |at| millis(at.saturating_duration_since(Instant::now())));
        if poll(&mut entries, timeout).is_err() {
            return Err(connection.hung_up());
        }
        if repeats && Instant::now() >= *greet_at {
            session.greet();
            *greet_at = Instant::now() + GREETING;
        }
        let (rest, of_jobs) = entries.split_at(of_jobs);
        let (own_answers, rest) = rest.split_at(own);
        if own_answers.iter().any(|answer| answer.revents != 0) {
            self.heed(jobs, Some(session));
        }
        let Some((from_host, of_parked)) = rest.split_first() else { return Err(connection.hung_up()) };
        self.parked.handle(of_parked, &mut self.buffer);
        self.serve_jobs(connection, of_jobs);
        if from_host.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            self.read(connection)?;
        }
        self.branch.advance(Some(&mut connection.session));
        self.drop_late();
        self.finish_jobs(connection);
        connection.write()?;
        match connection.end {
            Some(power) if connection.session.output().is_empty() => {
                machine::end(self.surroundings.place, power)
            }
            _ => Ok(()),
        }
    }

    /// Reaps ended processes, and obeys requests to end the machine.
    fn heed(&mut self, jobs: &mut BTreeMap<u32, Job>, mut session: Option<&mut AgentSession>) {
        if let Some(ending) = requested(&self.surroundings.signals) {
            power::shut_down(ending);
        }
        if self.surroundings.button.as_mut().is_some_and(PowerButton::is_pressed) {
            power::shut_down(power::power_off);
        }
        loop {
            let mut status = 0;
            // SAFETY: stores one int at the given address.
            let process = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if process <= 0 {
                break;
            }
            let commands = jobs.values_mut().filter_map(|job| match job {
                Job::Command(command) => Some(command),
                Job::Put(_) | Job::Get(_) | Job::Aside(_) => None,
            });
            let command = commands.into_iter().find(|command| command.process() == process);
            match command {
                Some(command) => command.end(status, session.as_deref_mut()),
                None => self.parked.find(process).into_iter().for_each(|command| command.end(status, None)),
            }
        }
        if let Some(groups) = &mut self.groups {
            groups.tidy();
        }
    }

    fn serve_jobs(&mut self, connection: &mut Connection, answers: &[libc::pollfd]) {
        let Connection { session, jobs, .. } = connection;
        let mut over = Vec::new();
        for ((channel, job), answers) in jobs.iter_mut().zip(answers.chunks_exact(3)) {
            match job {
                Job::Command(command) => {
                    command.send_kept(session);
                    command.handle(answers, Some(session), &mut self.buffer);
                }
                Job::Get(get) if session.output().len() < MAX_OUTPUT && get.can_go_on(session) => {
                    match get.step(session, &mut self.buffer) {
                        Ok(false) => {}
                        Ok(true) => over.push(*channel),
                        Err(failure) => {
                            session.answer(*channel, &AgentMessage::Failed(failure));
                            over.push(*channel);
                        }
                    }
                }
                Job::Aside(job) if answers.iter().any(|answer| answer.revents != 0) => {
                    if job.read(session) {
                        over.push(*channel);
                    }
                }
                Job::Put(_) | Job::Get(_) | Job::Aside(_) => {}
            }
        }
        for channel in over {
            session.closed(channel);
            jobs.remove(&channel);
        }
    }

    /// Drops commands that are over.
    fn finish_jobs(&mut self, connection: &mut Connection) {
        let Connection { session, jobs, .. } = connection;
        let now = Instant::now();
        let mut over = Vec::new();
        for (channel, job) in jobs.iter_mut() {
            let Job::Command(command) = job else { continue };
            if command.deadline().is_some_and(|at| now >= at) {
                command.cut_leftovers(Some(session));
            }
            if command.is_over() {
                over.push(*channel);
            }
        }
        for channel in over {
            session.closed(channel);
            if let Some(job) = jobs.remove(&channel) {
                self.drop_job(job);
            }
        }
    }

    pub(super) fn drop_job(&mut self, job: Job) {
        match job {
            Job::Command(mut command) => {
                if !command.is_over() {
                    command.kill();
                }
                if let (Some(groups), Some(group)) = (&mut self.groups, command.into_group()) {
                    groups.release(group);
                }
            }
            Job::Put(put) => put.abandon(),
            Job::Get(_) | Job::Aside(_) => {}
        }
    }

    fn read(&mut self, connection: &mut Connection) -> Result<(), End> {
        match connection.line.file.read(&mut self.buffer) {
            // A console port reports this while nobody is at its other end. The former peer has gone.
            Ok(0) if connection.line.is_silent && !connection.session.is_open() => {
                std::thread::sleep(connection.pause);
                connection.pause = (connection.pause * 2).min(NOBODY_FOR_LONG);
            }
            Ok(0) => return Err(connection.hung_up()),
            Ok(count) => {
                connection
                    .session
                    .receive(self.buffer.get(..count).unwrap_or_default())
                    .map_err(End::Broken)?;
                self.decide(&connection.session);
                while let Some(event) = connection.session.next_event() {
                    self.obey(event, connection);
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => return Err(connection.hung_up()),
        }
        Ok(())
    }

    /// Keeps or kills the commands of the last session, once the host has said whether it goes on.
    fn decide(&mut self, session: &AgentSession) {
        match self.parked.is_waiting() && session.is_open() {
            true if session.is_continued() => self.parked.keep(),
            true => self.drop_parked(),
            false => {}
        }
    }
}

impl Connection {
    fn hung_up(&self) -> End {
        End::HungUp { was_open: self.session.is_open() }
    }

    /// Sends as much output as the line takes.
    fn write(&mut self) -> Result<(), End> {
        while !self.session.output().is_empty() {
            match self.line.file.write(self.session.output()) {
                Ok(0) => return Ok(()),
                Ok(count) => self.session.sent(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(self.hung_up()),
            }
        }
        Ok(())
    }
}

/// Returns a number that distinguishes this session from earlier ones, and that only its ends know.
fn token() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 8];
    // SAFETY: pointer and length are those of the array. A kernel that has no random bytes yet leaves it.
    unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), libc::GRND_NONBLOCK) };
    u64::from_ne_bytes(random) ^ u64::from(std::process::id()).rotate_left(40) ^ now.as_nanos() as u64
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// Above this many waiting bytes, nothing more is read from anywhere.
const MAX_OUTPUT: usize = 1 << 20;
/// The interval of greetings on a line that does not show whether anybody is at its other end.
const GREETING: Duration = Duration::from_secs(1);
/// The first and the longest wait for somebody at the other end of a console port.
const NOBODY: Duration = Duration::from_millis(1);
const NOBODY_FOR_LONG: Duration = Duration::from_millis(50);

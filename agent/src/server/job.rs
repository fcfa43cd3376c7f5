//! The work of a channel.

use std::time::Instant;

use coracle_agent::protocol::agent::{
    AgentMessage, AgentSession, Failure, PathRequest, Power, Request, Step,
};
use coracle_agent::relay::poll_entry;

use super::aside::Aside;
use super::cgroup::Cgroups;
use super::command::Command;
use super::files::{Get, Put};
use super::machine;
use super::paths;
use crate::network;

/// A request that takes time.
#[derive(Debug)]
pub(super) enum Job {
    Command(Command),
    Put(Put),
    Get(Get),
    Aside(Aside),
}

/// The immediate result of a request.
pub(super) enum Begun {
    Job(Box<Job>),
    Done,
    /// The machine is to end once the host has heard of it.
    End(Power),
}

impl Job {
    /// Starts a request.
    pub(super) fn begin(
        channel: u32,
        request: Request,
        session: &mut AgentSession,
        groups: Option<&mut Cgroups>,
    ) -> Result<Begun, Failure> {
        Ok(Begun::Job(Box::new(match request {
            Request::Exec(request) => {
                let command = Command::start(channel, &request, groups)?;
                let pid = command.process().cast_unsigned();
                session.answer(channel, &AgentMessage::Started { pid });
                Job::Command(command)
            }
            Request::Put(request) => Job::Put(Put::start(channel, &request)?),
            Request::Get(path) => Job::Get(Get::start_file(channel, path, session)?),
            Request::List(path) => Job::Get(Get::start_folder(channel, path)?),
            Request::Stat { path, follow } => Job::Get(Get::start_stat(channel, path, follow)?),
            Request::ReadLink(path) => Job::Get(Get::start_link(channel, path)?),
            Request::Path(request @ PathRequest::Remove { all: true, .. }) => {
                let remove = || paths::change(&request).map(|()| AgentMessage::Done);
                Job::Aside(Aside::start(channel, Step::Remove, remove)?)
            }
            Request::Path(request) => {
                paths::change(&request)?;
                session.answer(channel, &AgentMessage::Done);
                return Ok(Begun::Done);
            }
            Request::SetClock(time) => {
                machine::set_clock(time)?;
                session.answer(channel, &AgentMessage::Done);
                return Ok(Begun::Done);
            }
            Request::Network(request) => {
                let bring_up = || network::bring_up(&request).map(AgentMessage::Network);
                Job::Aside(Aside::start(channel, Step::Interface, bring_up)?)
            }
            Request::Shutdown(power) => {
                session.answer(channel, &AgentMessage::Done);
                return Ok(Begun::End(power));
            }
            // The server itself answers these.
            Request::Identify(_) | Request::Processes | Request::Attach(_) | Request::BranchPoint { .. } => {
                return Ok(Begun::Done);
            }
        })))
    }

    /// Returns the entries to poll. Entries that are not wanted have the descriptor -1.
    pub(super) fn poll_entries(&self, session: &AgentSession, may_read: bool) -> [libc::pollfd; 3] {
        match self {
            Job::Command(command) => command.poll_entries(Some(session), may_read),
            Job::Aside(job) => {
                [poll_entry(job.poll_fd(), libc::POLLIN), poll_entry(-1, 0), poll_entry(-1, 0)]
            }
            Job::Put(_) | Job::Get(_) => [poll_entry(-1, 0); 3],
        }
    }

    /// Returns whether there is work that needs no waiting.
    pub(super) fn can_go_on(&self, session: &AgentSession) -> bool {
        match self {
            Job::Get(get) => get.can_go_on(session),
            Job::Command(command) => command.can_send_kept(session),
            Job::Put(_) | Job::Aside(_) => false,
        }
    }

    /// Returns the latest time at which there is work.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Job::Command(command) => command.deadline(),
            Job::Put(_) | Job::Get(_) | Job::Aside(_) => None,
        }
    }
}

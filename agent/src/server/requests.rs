//! The host's events: requests begin, get their input, and end.

use coracle_agent::protocol::agent::{AgentEvent, AgentMessage, AgentSession, Failure, Request};

use super::event_loop::{Connection, Server};
use super::identity;
use super::job::{Begun, Job};

impl Server {
    /// Handles an event from the host.
    pub(super) fn obey(&mut self, event: AgentEvent, connection: &mut Connection) {
        let Connection { session, jobs, .. } = connection;
        match event {
            AgentEvent::Open(channel, request) => self.begin(channel, request, connection),
            AgentEvent::Data(channel, bytes) => match jobs.get_mut(&channel) {
                Some(Job::Command(command)) => command.take_input(&bytes, session),
                Some(Job::Put(put)) => {
                    if let Err(failure) = put.take(&bytes, session) {
                        jobs.remove(&channel);
                        refuse(session, channel, failure);
                    }
                }
                Some(Job::Get(_) | Job::Aside(_)) | None => {}
            },
            AgentEvent::End(channel) => match jobs.get_mut(&channel) {
                Some(Job::Command(command)) => command.end_input(),
                Some(Job::Put(_)) => {
                    let Some(Job::Put(put)) = jobs.remove(&channel) else { return };
                    match put.finish(session) {
                        Ok(()) => session.closed(channel),
                        Err(failure) => refuse(session, channel, failure),
                    }
                }
                Some(Job::Get(_) | Job::Aside(_)) | None => {}
            },
            AgentEvent::Signal(channel, signal) => {
                if let Some(Job::Command(command)) = jobs.get(&channel) {
                    command.signal(signal);
                }
            }
            AgentEvent::Resize(channel, size) => {
                if let Some(Job::Command(command)) = jobs.get(&channel) {
                    command.resize(size);
                }
            }
            AgentEvent::Close(channel) => match jobs.get_mut(&channel) {
                // Its end is still to come.
                Some(Job::Command(command)) => command.kill(),
                Some(Job::Put(_) | Job::Get(_) | Job::Aside(_)) => {
                    session.closed(channel);
                    let job = jobs.remove(&channel);
                    job.into_iter().for_each(|job| self.drop_job(job));
                }
                None if self.branch.close(channel) => session.closed(channel),
                None => {}
            },
        }
    }

    fn begin(&mut self, channel: u32, request: Request, connection: &mut Connection) {
        self.enter_root();
        let Connection { session, jobs, .. } = connection;
        let begun = match request {
            Request::Processes => {
                session.answer(channel, &AgentMessage::Processes(self.parked.list()));
                Ok(Begun::Done)
            }
            Request::Attach(request) => self.parked.attach(&request).map(|mut command| {
                command.attach(channel, session);
                Begun::Job(Box::new(Job::Command(command)))
            }),
            Request::Identify(request) => identity::take_over(&request).map(|()| {
                self.env = request.env;
                self.branch.go_on(&self.env);
                session.answer(channel, &AgentMessage::Done);
                Begun::Done
            }),
            Request::BranchPoint { any_user } => {
                self.branch.wait(channel, any_user);
                return;
            }
            Request::Exec(mut request) => {
                self.branch.offer_program();
                if !request.clear_env {
                    // Its own variables come later, and count.
                    request.env.splice(..0, self.env.iter().cloned());
                }
                Job::begin(channel, Request::Exec(request), session, self.groups.as_mut())
            }
            request => Job::begin(channel, request, session, self.groups.as_mut()),
        };
        match begun {
            Ok(Begun::Job(job)) => drop(jobs.insert(channel, *job)),
            Ok(Begun::Done) => session.closed(channel),
            Ok(Begun::End(power)) => {
                session.closed(channel);
                connection.end = Some(power);
            }
            Err(failure) => refuse(session, channel, failure),
        }
    }
}

fn refuse(session: &mut AgentSession, channel: u32, failure: Failure) {
    session.answer(channel, &AgentMessage::Failed(failure));
    session.closed(channel);
}

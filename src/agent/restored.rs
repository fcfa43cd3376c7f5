//! The agent of a machine that goes on from a snapshot: the session that stayed behind, and the identity that
//! the guest takes over before anybody may use the agent.

use std::time::SystemTime;

use coracle_agent::protocol::agent::{
    AgentInfo, AgentMessage, HostSession, IdentityRequest, Request, SavedSession,
};

use super::error::AgentError;

/// The beginning of an agent's end on the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// The session in the snapshot from which the machine goes on, if it had one.
    pub(crate) session: Option<SavedSession>,
    /// The identity that the guest has to take over.
    pub(crate) identity: Option<IdentityRequest>,
}

/// How far the guest has taken over its identity.
///
/// ```text
/// Wanted --ready--> Asked --done--> Told --looked at--> Known
///   ^                 |  \--failed--> Failed
///   \--disconnected---/
/// ```
#[derive(Debug)]
pub(super) enum Identity {
    /// The guest has it, or has to take over none.
    Known,
    Wanted(IdentityRequest),
    Asked {
        request: IdentityRequest,
        info: AgentInfo,
        channel: u32,
    },
    Told(AgentInfo),
    Failed(AgentError),
}

impl From<Option<IdentityRequest>> for Identity {
    fn from(request: Option<IdentityRequest>) -> Identity {
        request.map_or(Identity::Known, Identity::Wanted)
    }
}

impl Identity {
    /// Asks an agent that has become ready to take it over.
    pub(super) fn ask(&mut self, info: AgentInfo, session: &mut HostSession) {
        *self = match std::mem::replace(self, Identity::Known) {
            Identity::Wanted(mut request) => {
                // The time of now, after all that came before.
                request.time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                match session.open(Request::Identify(Box::new(request.clone()))) {
                    Ok(channel) => Identity::Asked { request, info, channel },
                    Err(error) => Identity::Failed(error.into()),
                }
            }
            Identity::Failed(error) => Identity::Failed(error),
            Identity::Known | Identity::Told(_) | Identity::Asked { .. } => Identity::Told(info),
        }
    }

    /// Asks the next agent, because this one has gone without an answer.
    pub(super) fn ask_again(&mut self) {
        if let Identity::Asked { request, .. } = self {
            *self = Identity::Wanted(std::mem::take(request));
        }
    }

    /// Returns whether the answer comes on this channel.
    pub(super) fn is_on(&self, number: u32) -> bool {
        matches!(self, Identity::Asked { channel, .. } if *channel == number)
    }

    /// Takes a message of that channel. The session has checked that it may come.
    pub(super) fn take(&mut self, message: AgentMessage) {
        let Identity::Asked { info, .. } = self else { return };
        match message {
            AgentMessage::Done => *self = Identity::Told(info.clone()),
            AgentMessage::Failed(failure) => *self = Identity::Failed(AgentError::of(failure)),
            _ => {}
        }
    }

    /// Returns the properties of the agent, once, when the guest has its identity.
    pub(super) fn result(&mut self) -> Option<Result<AgentInfo, AgentError>> {
        match self {
            Identity::Told(info) => {
                let info = info.clone();
                *self = Identity::Known;
                Some(Ok(info))
            }
            Identity::Failed(error) => Some(Err(error.clone())),
            Identity::Known | Identity::Wanted(_) | Identity::Asked { .. } => None,
        }
    }
}

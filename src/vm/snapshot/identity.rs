//! The identity of a machine that goes on from a snapshot: what makes its guest another one than its
//! siblings.

use std::ffi::OsString;
use std::time::Duration;

use coracle_agent::protocol::agent::{IdentityRequest, SavedSession};

use super::SnapshotError;
use super::state::MachineState;
use crate::agent::{AgentError, Past};
use crate::vm::Vm;
use crate::vm::recipe::random_bits;

/// The settings of an identity. The rest of it is new for each machine.
#[derive(Debug, Clone, Default)]
pub(super) struct ForkIdentity {
    pub(super) hostname: Option<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
}

impl ForkIdentity {
    /// Returns what the agent's end of the fork with this index begins with.
    ///
    /// # Errors
    /// The host has no random bytes.
    pub(super) fn past(self, state: &MachineState, index: Option<usize>) -> Result<Past, SnapshotError> {
        let ForkIdentity { hostname, env: own } = self;
        let mut env: Vec<(OsString, OsString)> = vec![
            (FORK_ID.into(), format!("{:032x}", random_bits()?).into()),
            (FORK_INDEX.into(), index.unwrap_or(0).to_string().into()),
        ];
        env.extend(own);
        let mut seed = Vec::new();
        for _ in 0..SEED_PIECES {
            seed.extend(random_bits()?.to_le_bytes());
        }
        let machine_id = format!("{:032x}", random_bits()?);
        let identity = IdentityRequest { hostname, machine_id, seed, time: Duration::ZERO, env };
        let session = state.agent.map(|token| SavedSession { token });
        Ok(Past { session, identity: Some(identity) })
    }
}

/// Waits until the guests of the forks have their identities. An agent that was not there yet when the
/// snapshot was taken takes it over before it does anything else, and is not waited for.
///
/// # Errors
/// The first agent that refuses, or does not answer in time.
pub(super) fn wait(vm: &Vm, state: &MachineState) -> Result<(), SnapshotError> {
    let agent = vm.agent().ok().filter(|_| state.agent.is_some());
    let Some(agent) = agent else { return Ok(()) };
    match agent.wait_ready(LIMIT) {
        // A guest that ends at once has an outcome, which tells more.
        Ok(_) | Err(AgentError::MachineEnded { .. }) => Ok(()),
        Err(source) => Err(SnapshotError::Identity { source: Box::new(source) }),
    }
}

/// The names of the variables of later commands.
const FORK_ID: &str = "CORACLE_FORK_ID";
const FORK_INDEX: &str = "CORACLE_FORK_INDEX";
/// The pieces of 16 bytes in a seed: twice what Linux's generator has as its key.
const SEED_PIECES: usize = 4;
/// The time for an agent to take over an identity.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

//! The identity of a machine that goes on from a snapshot: what makes its guest another one than its
//! siblings.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use coracle_agent::protocol::agent::{IdentityRequest, SavedSession};

use super::SnapshotError;
use super::state::MachineState;
use crate::agent::{AgentError, Past};
use crate::vm::Vm;

/// The settings of an identity. The rest of it is new for each machine.
#[derive(Debug, Clone, Default)]
pub(super) struct ForkIdentity {
    pub(super) hostname: Option<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    /// The index of the fork, from 0.
    pub(super) index: usize,
}

impl ForkIdentity {
    /// Returns what the agent's end of a machine with this identity begins with.
    ///
    /// # Errors
    /// The host has no random bytes.
    pub(super) fn past(self, state: &MachineState) -> Result<Past, SnapshotError> {
        let ForkIdentity { hostname, env: own, index } = self;
        let mut env: Vec<(OsString, OsString)> = vec![
            (FORK_ID.into(), hexadecimal(random()?).into()),
            (FORK_INDEX.into(), index.to_string().into()),
        ];
        env.extend(own);
        let mut seed = Vec::with_capacity(SEED_PIECES * size_of::<Piece>());
        for _ in 0..SEED_PIECES {
            seed.extend(random()?);
        }
        let machine_id = hexadecimal(random()?);
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

type Piece = [u8; 16];

fn random() -> Result<Piece, SnapshotError> {
    let mut bytes = Piece::default();
    // SAFETY: pointer and length are those of the array, and so few bytes are never cut short
    // (getrandom(2)).
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count < 0 { Err(SnapshotError::Random(Arc::new(io::Error::last_os_error()))) } else { Ok(bytes) }
}

fn hexadecimal(bytes: Piece) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The names of the variables of later commands.
const FORK_ID: &str = "CORACLE_FORK_ID";
const FORK_INDEX: &str = "CORACLE_FORK_INDEX";
/// Twice the bytes that Linux's generator has as its state.
const SEED_PIECES: usize = 4;
/// The time for an agent to take over an identity.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

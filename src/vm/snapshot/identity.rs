//! The identity of a machine that goes on from a snapshot: what makes its guest another one than its
//! siblings.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{CardIdentity, IdentityRequest, SavedSession};

use super::SnapshotError;
use super::state::MachineState;
use crate::agent::{AgentError, NetworkSettings, Past};
use crate::config::MacAddress;
use crate::virtio::{ForkCard, RepointError, TemplateDevice, check_id};
use crate::vm::Vm;
use crate::vm::recipe::random_bits;

/// The settings of an identity. The rest of it is new for each machine.
#[derive(Debug, Clone, Default)]
pub(super) struct ForkIdentity {
    pub(super) hostname: Option<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    /// The addresses of cards, by the cards' ids.
    pub(super) addresses: Vec<(String, NetworkSettings)>,
}

impl ForkIdentity {
    /// Checks the addresses for a machine with these devices.
    ///
    /// # Errors
    /// There is no such card, there is no agent, or the settings do not fit a card.
    pub(super) fn check(&self, devices: &[TemplateDevice], has_agent: bool) -> Result<(), RepointError> {
        for (id, settings) in &self.addresses {
            check_id(id, "net", devices)?;
            let (id, interface, count) = (id.clone(), settings.interface.clone(), settings.dns.len());
            if let Some(interface) = interface {
                return Err(RepointError::Interface { id, interface });
            }
            if count > CardIdentity::MAX_DNS {
                return Err(RepointError::NameServers { id, count, limit: CardIdentity::MAX_DNS });
            }
            if !has_agent {
                return Err(RepointError::NoAgent { id });
            }
        }
        Ok(())
    }

    /// Returns the longest time for the agent to take it over: DHCP servers may take theirs.
    pub(super) fn limit(&self) -> Duration {
        let asks = |settings: &&NetworkSettings| settings.address.is_none();
        let leases = self.addresses.iter().map(|(_, settings)| settings).filter(asks);
        leases.fold(LIMIT, |limit, settings| limit.saturating_add(settings.lease_time()))
    }

    /// Returns what the agent's end of the fork with this index begins with.
    ///
    /// # Errors
    /// The host has no random bytes.
    pub(super) fn past(
        self,
        state: &MachineState,
        index: Option<usize>,
        cards: &[ForkCard],
    ) -> Result<Past, SnapshotError> {
        let cards = self.cards(cards);
        let ForkIdentity { hostname, env: own, addresses: _ } = self;
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
        let identity = IdentityRequest { hostname, machine_id, seed, time: Duration::ZERO, env, cards };
        let session = state.agent.map(|token| SavedSession { token });
        Ok(Past { session, identity: Some(identity) })
    }

    /// Returns the cards that have another hardware address, or that get an address of the network.
    fn cards(&self, cards: &[ForkCard]) -> Vec<CardIdentity> {
        let card = |card: &ForkCard| {
            let settings = self.addresses.iter().rev().find(|(id, _)| id == card.id.as_str());
            let network = settings.map(|(_, settings)| settings.clone().into_network());
            let is_other = card.mac != card.former || network.is_some();
            let [former, mac] = [card.former, card.mac].map(MacAddress::bytes);
            is_other.then_some(CardIdentity { former, mac, network })
        };
        cards.iter().filter_map(card).collect()
    }
}

/// Waits until the guest has its identity, for at most `limit` since `began`, which all forks of one call
/// share. An agent that was not there yet when the snapshot was taken takes it over before it does anything
/// else, and is not waited for.
///
/// # Errors
/// The agent refuses, or does not answer in time.
pub(super) fn wait(
    vm: &Vm,
    state: &MachineState,
    (limit, began): (Duration, Instant),
) -> Result<(), SnapshotError> {
    let agent = vm.agent().ok().filter(|_| state.agent.is_some());
    let Some(agent) = agent else { return Ok(()) };
    match agent.wait_ready(limit.saturating_sub(began.elapsed())) {
        // A guest that ends at once has an outcome, which tells more.
        Ok(_) | Err(AgentError::MachineEnded { .. }) => Ok(()),
        Err(source) => Err(SnapshotError::Identity { limit, source: Box::new(source) }),
    }
}

/// The names of the variables of later commands.
const FORK_ID: &str = "CORACLE_FORK_ID";
const FORK_INDEX: &str = "CORACLE_FORK_INDEX";
/// The pieces of 16 bytes in a seed: twice what Linux's generator has as its key.
const SEED_PIECES: usize = 4;
/// The time for an agent to take over an identity, without that of DHCP servers.
const LIMIT: Duration = Duration::from_secs(60);

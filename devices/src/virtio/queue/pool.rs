//! The memory that chains take for their lists of buffers. It is limited for all devices of a machine
//! together, because a guest decides how long its chains are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chain::Chain;
use crate::memory::GuestMemory;

/// Counts the bytes of all chains of a machine, in flight or kept for the next request. Clones share one
/// count.
#[derive(Debug, Clone, Default)]
pub struct ChainBudget(Arc<AtomicUsize>);

impl ChainBudget {
    /// The limit in bytes, from which a device has at most one chain in flight. It suffices for 256 requests
    /// in each of 8 disks, each as long as Linux makes them: 256 buffers of 16 bytes in the list.
    pub const MAX_BYTES: usize = 8 << 20;
    /// The limit in bytes for keeping unused chains: half, so that the other half is left for chains in
    /// flight.
    const KEPT_BYTES: usize = 4 << 20;

    /// Returns whether the limit is reached. A device may then pop a chain only if it has none in flight,
    /// because one is what it needs to go on.
    pub fn is_used_up(&self) -> bool {
        self.bytes() >= Self::MAX_BYTES
    }

    /// Returns the present number of bytes.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The part of the budget that one chain takes.
#[derive(Debug)]
pub(super) struct Counted {
    budget: ChainBudget,
    bytes: usize,
}

impl Counted {
    fn nothing(budget: ChainBudget) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Counts `bytes` for this chain instead of its former number.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            let ChainBudget(all) = &self.budget;
            // The difference may be negative: both operations wrap, so the sum is right.
            all.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The unused chains of one queue, with the memory of their lists.
#[derive(Debug)]
pub(super) struct ChainPool {
    chains: Vec<Chain>,
    budget: ChainBudget,
}

impl ChainPool {
    pub(super) fn new(budget: ChainBudget) -> Self {
        Self { chains: Vec::new(), budget }
    }

    pub(super) fn budget(&self) -> &ChainBudget {
        &self.budget
    }

    /// Returns an empty chain, from the pool if it has one.
    pub(super) fn take(&mut self, memory: &GuestMemory) -> Chain {
        let new = || Chain::new(memory.clone(), Counted::nothing(self.budget.clone()));
        self.chains.pop().unwrap_or_else(new)
    }

    /// Keeps a chain for the next request, unless the budget has reached its limit for that.
    pub(super) fn give_back(&mut self, mut chain: Chain) {
        chain.clear();
        if self.budget.bytes() < ChainBudget::KEPT_BYTES {
            self.chains.push(chain);
        }
    }
}

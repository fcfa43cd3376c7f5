//! The memory that the lists of buffers take: what a guest can make this process hold by long chains is
//! bounded for all devices of a machine together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chain::Chain;
use crate::memory::GuestMemory;

/// The bytes of all chains of a machine, in flight or kept for the next request. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct ChainBudget(Arc<AtomicUsize>);

impl ChainBudget {
    /// From here on a device has one chain in flight at most. It is what 256 requests of the longest kind
    /// that Linux makes take in each of 8 disks.
    pub const MAX_BYTES: usize = 8 << 20;
    /// From here on chains in no use are not kept, so that there is room for those in flight.
    const KEPT_BYTES: usize = 4 << 20;

    /// True when no more chains are to be popped than each device needs to go on: one.
    pub fn is_used_up(&self) -> bool {
        self.bytes() >= Self::MAX_BYTES
    }

    /// The bytes now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The bytes that one chain is counted with.
#[derive(Debug)]
pub(super) struct Counted {
    budget: ChainBudget,
    bytes: usize,
}

impl Counted {
    fn nothing(budget: ChainBudget) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Counts `bytes` in place of what was counted before.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            let ChainBudget(all) = &self.budget;
            // Both wrap in the same way, so that the sum is right.
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

/// The chains of one queue that are in no use, with the memory of their lists.
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

    /// A chain to be filled.
    pub(super) fn take(&mut self, memory: &GuestMemory) -> Chain {
        let new = || Chain::new(memory.clone(), Counted::nothing(self.budget.clone()));
        self.chains.pop().unwrap_or_else(new)
    }

    /// Keeps a chain for the next request, if there is room for that.
    pub(super) fn give_back(&mut self, mut chain: Chain) {
        chain.clear();
        if self.budget.bytes() < ChainBudget::KEPT_BYTES {
            self.chains.push(chain);
        }
    }
}

//! How a driver finds a device and sets it up: a state machine that all transports share, and the registers of one.

mod core;
mod mmio;

pub use self::core::{TransportCore, TransportParts};
pub use mmio::MmioTransport;

#[cfg(test)]
mod tests;

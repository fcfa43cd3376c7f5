//! The two protocols of the agent: that of the [emulated host](emulated_host), whose agent runs one command,
//! and that of the [agent in a guest](agent), which serves the host for as long as the machine runs.

pub mod agent;
pub mod emulated_host;
mod wire;

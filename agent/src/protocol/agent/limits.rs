//! The share of its guest that a command may use.

use super::ProtocolError;
use crate::protocol::wire::{Decoder, Encoder};

/// Limits of a command and of all processes that it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecLimits {
    /// Whether the processes that it started end with it.
    pub kill_tree: bool,
    /// The largest number of processes and threads at a time (`pids.max` of the kernel's `cgroup-v2.rst`).
    pub processes: Option<u32>,
    /// Bytes of memory (`memory.max`). If they are exceeded, all of its processes are killed.
    pub memory: Option<u64>,
    /// CPU time, in percent of one CPU (`cpu.max`).
    pub cpu_percent: Option<u32>,
    /// Limits of each single process.
    pub resources: Vec<ResourceLimit>,
}

/// A limit of `setrlimit(2)`, both soft and hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// The `RLIMIT_*` number.
    pub resource: u8,
    /// The value, in the unit of the resource.
    pub value: u64,
}

impl ExecLimits {
    /// Returns whether the limits need a control group with controllers.
    pub fn need_controllers(&self) -> bool {
        self.processes.is_some() || self.memory.is_some() || self.cpu_percent.is_some()
    }

    pub(super) fn encode(&self, frame: Encoder) -> Encoder {
        let Self { kill_tree, processes, memory, cpu_percent, resources } = self;
        let frame = frame.u8(u8::from(*kill_tree)).option(*processes, Encoder::u32);
        let frame = frame.option(*memory, Encoder::u64).option(*cpu_percent, Encoder::u32);
        frame.list(resources, |frame, limit| frame.u8(limit.resource).u64(limit.value))
    }

    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            kill_tree: fields.flag("kill tree")?,
            processes: fields.option("processes", |fields| fields.u32("processes"))?,
            memory: fields.option("memory", |fields| fields.u64("memory"))?,
            cpu_percent: fields.option("cpu", |fields| fields.u32("cpu"))?,
            resources: fields.list("resources", |fields| {
                Ok(ResourceLimit { resource: fields.u8("resource")?, value: fields.u64("value")? })
            })?,
        })
    }
}

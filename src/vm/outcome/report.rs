//! The outcome as a JSON object for programs. Its keys are the fields of [`OutcomeReport`].

use serde::Serialize;

use super::{Outcome, PanicEvidence, Phase, SnapshotOrigin, TimeLimit, Times};
use crate::agent::ExecStatus;
use crate::config::milliseconds;
use crate::diagnosis::{Diagnosis, Milestone};
use crate::kvm::{VcpuFault, VcpuRegisters};
use crate::vcpu::ExitCounts;

/// The JSON object that `--outcome` writes. Later versions only add fields.
#[derive(Debug, Clone, Serialize)]
pub struct OutcomeReport<'a> {
    ending: &'a str,
    code: u8,
    reason: String,
    phase: Option<Phase>,
    progress: &'a [Milestone],
    duration_ms: f64,
    times_ms: Times,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_signal: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    panic_evidence: Option<PanicEvidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_limit: Option<TimeLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a VcpuFault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registers: Option<&'a VcpuRegisters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnosis: Option<&'a Diagnosis>,
    exits: ExitCounts,
    console_bytes: u64,
    console_bytes_dropped: u64,
    disk_errors: u64,
    frames_dropped: u64,
    later_events: u64,
    resets: u64,
    emulated_host: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    restored_from: Option<&'a SnapshotOrigin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fork: Option<u32>,
}

impl<'a> OutcomeReport<'a> {
    /// Creates the report of a virtual machine that ran.
    pub fn of(outcome: &'a Outcome, emulated_host: bool) -> OutcomeReport<'a> {
        let (command_code, command_signal) = match outcome.command {
            Some(ExecStatus::Code(code)) => (Some(code), None),
            Some(ExecStatus::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        OutcomeReport {
            ending: outcome.ending.name(),
            code: outcome.exit_code(),
            reason: outcome.reason(),
            phase: Some(outcome.phase),
            progress: &outcome.progress,
            duration_ms: milliseconds(outcome.duration),
            times_ms: outcome.times,
            workload_code: outcome.ending.workload_code(),
            command_code,
            command_signal,
            signal: outcome.signal,
            panic_evidence: outcome.ending.panic_evidence(),
            time_limit: outcome.ending.time_limit(),
            vcpu: outcome.ending.vcpu(),
            fault: outcome.ending.fault(),
            registers: outcome.ending.registers(),
            diagnosis: outcome.diagnosis.as_ref(),
            exits: outcome.exits,
            console_bytes: outcome.console_bytes,
            console_bytes_dropped: outcome.console_bytes_dropped,
            disk_errors: outcome.disk_errors,
            frames_dropped: outcome.frames_dropped,
            later_events: outcome.later_events,
            resets: outcome.resets,
            emulated_host,
            restored_from: outcome.origin.as_ref().and_then(|origin| origin.snapshot.as_ref()),
            fork: outcome.origin.as_ref().and_then(|origin| origin.fork),
        }
    }

    /// Creates the report of a virtual machine that never ran, with the exit code and the reason.
    pub fn not_run(code: u8, reason: String, emulated_host: bool) -> OutcomeReport<'static> {
        OutcomeReport {
            ending: "not-run",
            code,
            reason,
            phase: None,
            progress: &[],
            duration_ms: 0.0,
            times_ms: Times::default(),
            workload_code: None,
            command_code: None,
            command_signal: None,
            signal: None,
            panic_evidence: None,
            time_limit: None,
            vcpu: None,
            fault: None,
            registers: None,
            diagnosis: None,
            exits: ExitCounts::default(),
            console_bytes: 0,
            console_bytes_dropped: 0,
            disk_errors: 0,
            frames_dropped: 0,
            later_events: 0,
            resets: 0,
            emulated_host,
            restored_from: None,
            fork: None,
        }
    }
}

//! How a virtual machine ended: as a value, an exit code, one line of text, and a JSON object.
//!
//! [`Ending::exit_code`] is the table of exit codes that users of the command see.

mod explanation;
mod report;
mod times;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::agent::ExecStatus;
use crate::diagnosis::{Diagnosis, Milestone};
use crate::ending::signal_name;
use crate::exit_code;
use crate::snapshot_files::SnapshotId;
use crate::vcpu::ExitCounts;

pub use crate::ending::{Ending, EndingKind, HostFailure, PanicEvidence, Phase, Seconds, TimeLimit};
pub use report::OutcomeReport;
pub use times::Times;

/// The known facts about a virtual machine that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// How far the guest had come, as far as that is known.
    pub phase: Phase,
    /// The signs by which `phase` is known, in the order in which they came; signs that are found only after
    /// the end come last.
    pub progress: Vec<Milestone>,
    /// Why it ended this way, if the ending is abnormal.
    pub diagnosis: Option<Diagnosis>,
    /// The time from the first entry into the guest to the end.
    pub duration: Duration,
    /// How often the vCPUs left the guest, by exit reason.
    pub exits: ExitCounts,
    /// The number of bytes that the guest sent to its console.
    pub console_bytes: u64,
    /// How many of these bytes were lost because nobody took them in time.
    pub console_bytes_dropped: u64,
    /// How many bytes the console had received before the first lost byte. This is the virtio console, where
    /// there is one.
    pub console_lost_from: Option<u64>,
    /// Whether the console's last line has no end, such as a prompt: what a terminal shows next would be on
    /// the same line. This is the virtio console, where there is one.
    pub console_is_in_line: bool,
    /// The number of disk requests that the host could not carry out.
    pub disk_errors: u64,
    /// The number of network frames that the receiving side, guest or host, could not take.
    pub frames_dropped: u64,
    /// The number of endings that the guest requested after the first one, which counts.
    pub later_events: u64,
    /// How often the guest reset its machine and was restarted.
    pub resets: u64,
    /// The signal because of which the guest was asked to power off, or was stopped.
    pub signal: Option<i32>,
    /// How the command for which the machine ran ended, if that is known. The machine's own ending may
    /// differ.
    pub command: Option<ExecStatus>,
    /// The origin of a guest that goes on from another machine's state; `None` for one that was booted here.
    pub origin: Option<Origin>,
    /// How the time of the run divides into steps.
    pub times: Times,
}

/// The origin of a guest that goes on from another machine's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The snapshot of which its template was made; `None` for a template of a machine of this process.
    pub snapshot: Option<SnapshotOrigin>,
    /// The index of the fork, from 0; `None` for the only machine of a restore.
    pub fork: Option<u32>,
}

/// The snapshot from which a guest goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotOrigin {
    /// The path of its folder, as it was given.
    pub path: PathBuf,
    /// Its identity.
    pub id: SnapshotId,
}

impl Outcome {
    /// Returns the command's exit code for this outcome: values from 100 up are the machine's own, lower
    /// values are the guest's.
    pub fn exit_code(&self) -> u8 {
        match (&self.ending, self.signal) {
            (Ending::PoweredOff, Some(signal)) => exit_code::of_signal(signal),
            (ending, _) => ending.exit_code(),
        }
    }

    /// Describes in one line why the machine ended.
    pub fn reason(&self) -> String {
        match (&self.ending, self.signal) {
            (Ending::PoweredOff, Some(signal)) => {
                format!("{}, asked to by signal {}", self.ending, signal_name(signal))
            }
            (ending, _) if ending.panic_evidence().is_some() => {
                let said = self.diagnosis.as_ref().and_then(Diagnosis::panic_reason);
                said.map_or_else(|| self.ending.to_string(), |said| format!("{}: {said}", self.ending))
            }
            (ending, _) => ending.to_string(),
        }
    }

    /// Creates an outcome with nothing but its ending: a sample for the tests, here and in the command.
    #[doc(hidden)]
    pub fn bare(ending: Ending) -> Outcome {
        Outcome {
            ending,
            phase: Phase::Entered,
            progress: Vec::new(),
            diagnosis: None,
            duration: Duration::from_secs(1),
            exits: ExitCounts::default(),
            console_bytes: 0,
            console_bytes_dropped: 0,
            console_lost_from: None,
            console_is_in_line: false,
            disk_errors: 0,
            frames_dropped: 0,
            later_events: 0,
            resets: 0,
            signal: None,
            command: None,
            origin: None,
            times: Times::default(),
        }
    }

    /// Explains the ending in lines for a person who has already seen its one-line reason; empty if there is
    /// nothing to explain. With `with_console` the lines include the end of the console, for a console that
    /// the person has not seen.
    pub fn explanation(&self, with_console: bool) -> Vec<String> {
        explanation::lines(self, with_console)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_panic_is_the_kernel_s() {
        let mut outcome = Outcome::bare(Ending::Panicked { evidence: PanicEvidence::Device });
        assert_eq!(outcome.reason(), "the guest's kernel panicked");
        let mut said = |line: &str| {
            let panic = Some(line.to_owned());
            let (vcpus, hints, console, init_error) = (Vec::new(), Vec::new(), Vec::new(), None);
            outcome.diagnosis = Some(Diagnosis { vcpus, hints, console, panic, init_error });
            outcome.reason()
        };
        assert_eq!(
            said("[  1.5] Kernel panic - not syncing: VFS: no"),
            "the guest's kernel panicked: VFS: no"
        );
        assert_eq!(said("Kernel panic - not syncing"), "the guest's kernel panicked");
        said("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100");
        let Some(diagnosis) = &mut outcome.diagnosis else { panic!("it was set") };
        diagnosis.init_error = Some("root=/dev/vdb: there is no such device".into());
        assert_eq!(outcome.reason(), "the guest's kernel panicked: root=/dev/vdb: there is no such device");
    }

    #[test]
    fn report_has_the_exact_workload_code_where_the_exit_code_folds_it() {
        let outcome = Outcome::bare(Ending::Exited { code: 200 });
        let json = serde_json::to_value(OutcomeReport::of(&outcome, false)).unwrap();
        assert_eq!(json["workload_code"], 200);
        assert_eq!(json["code"], 100);
        assert_eq!(json["ending"], "exited");
    }

    #[test]
    fn power_off_that_a_signal_asked_for_has_its_code_and_says_which_it_was() {
        let outcome = Outcome { signal: Some(libc::SIGTERM), ..Outcome::bare(Ending::PoweredOff) };
        let json = serde_json::to_value(OutcomeReport::of(&outcome, false)).unwrap();
        assert_eq!((outcome.exit_code(), &json["code"]), (143, &143.into()));
        assert_eq!(json["ending"], "powered-off");
        assert_eq!(json["signal"], libc::SIGTERM);
        assert_eq!(json["reason"], "the guest powered off, asked to by signal 15 (SIGTERM)");
    }

    #[test]
    fn signal_does_not_hide_that_the_guest_ended_in_another_way() {
        let ending = Ending::Panicked { evidence: PanicEvidence::Device };
        let outcome = Outcome { signal: Some(libc::SIGTERM), ..Outcome::bare(ending) };
        assert_eq!(outcome.exit_code(), 110);
        let json = serde_json::to_value(OutcomeReport::of(&outcome, false)).unwrap();
        assert_eq!(json["panic_evidence"], "device");
    }
}

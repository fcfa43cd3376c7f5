//! An attack: how it is started, how it has to end, and its row in the table.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::scene::Scene;
use super::watch::{Observed, Run, watch};

/// An attack.
pub(super) struct Case {
    pub(super) name: String,
    /// Prepares the attacker, and returns the command that it attacks.
    pub(super) prepare: Prepare,
    /// The exit codes that are right: several if kinds of KVM differ.
    pub(super) codes: &'static [i32],
    /// A text that stderr has to contain; empty for none.
    pub(super) says: &'static str,
    pub(super) memory: MemoryLimit,
}

pub(super) type Prepare = Box<dyn Fn(&Scene) -> Result<Run>>;

/// The limit of the program's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// Anonymous memory besides the guest's RAM, at any time while it runs: 8 MiB.
    BesideRam,
    /// The peak of all resident memory: 32 MiB plus eight times the size of the attacking file.
    OfFile,
}

/// The result of an attack.
pub(super) struct Row {
    name: String,
    expected: String,
    /// `None` if the attack could not be run.
    observed: Option<Observed>,
    peak: Option<u64>,
    /// The deviation, if there is one.
    pub(super) difference: Option<String>,
}

impl Case {
    /// Runs the attack. A run that took too long is repeated, up to three times in all: a busy host is slow
    /// once, a hang is slow every time. A run that ended before its memory was observed is also repeated:
    /// some guests end within 2 ms.
    pub(super) fn run_patiently(&self, scene: &Scene) -> Row {
        let mut row = self.run(scene);
        let mut late = 0;
        for _ in 1..MAX_RUNS {
            let Some(observed) = &row.observed else { break };
            late += u32::from(observed.is_late());
            let is_unseen = row.peak.is_none() && !observed.is_late();
            if !is_unseen && (!observed.is_late() || late == MAX_LATE) {
                break;
            }
            row = self.run(scene);
        }
        row
    }

    fn run(&self, scene: &Scene) -> Row {
        let mut row = Row {
            name: self.name.clone(),
            expected: self.codes.iter().map(i32::to_string).collect::<Vec<_>>().join("|"),
            observed: None,
            peak: None,
            difference: None,
        };
        let prepared = scene.empty().and_then(|()| (self.prepare)(scene));
        let run = match prepared {
            Ok(run) => run,
            Err(error) => return Row { difference: Some(format!("not prepared: {error:#}")), ..row },
        };
        let file_bytes = run.file_bytes;
        match watch(run) {
            Ok(observed) => {
                row.peak = match self.memory {
                    MemoryLimit::BesideRam => observed.beside_ram,
                    MemoryLimit::OfFile => Some(observed.resident_peak),
                };
                row.difference = self.difference(&observed, row.peak, file_bytes);
                row.observed = Some(observed);
            }
            Err(error) => row.difference = Some(format!("not run: {error:#}")),
        }
        row
    }

    /// Returns the first deviation from what is required.
    fn difference(&self, observed: &Observed, peak: Option<u64>, file_bytes: u64) -> Option<String> {
        if !observed.code.is_some_and(|code| self.codes.contains(&code)) {
            let last = observed.stderr.lines().last().unwrap_or("nothing on stderr");
            return Some(format!("another ending: {last}"));
        }
        if !observed.stderr.contains(self.says) {
            return Some(format!("{:?} is not on stderr: {}", self.says, observed.stderr.trim()));
        }
        if observed.is_late() {
            return Some(format!("it may take {} s to end", LONGEST_END.as_secs()));
        }
        let limit = match self.memory {
            MemoryLimit::BesideRam => BESIDE_RAM,
            MemoryLimit::OfFile => FILE_BASE + FILE_FACTOR * file_bytes,
        };
        match peak {
            None => Some("it ended before its memory was seen".to_owned()),
            Some(peak) if peak > limit => Some(format!("it may take {} KiB", limit >> 10)),
            Some(_) => None,
        }
    }
}

impl Observed {
    /// Returns whether the run took too long. One that had to be killed does not count: it would hang again.
    fn is_late(&self) -> bool {
        self.code.is_some() && self.to_end > Some(LONGEST_END)
    }
}

impl Row {
    /// Returns the header of the table.
    pub(super) fn header() -> String {
        format!("{:<44} {:>8} {:>6} {:>8} {:>9}", "attack", "expected", "ending", "seconds", "peak KiB")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.observed.as_ref().and_then(|observed| observed.code);
        let ending = match (&self.observed, code) {
            (_, Some(code)) => code.to_string(),
            (Some(_), None) => "killed".to_owned(),
            (None, None) => "-".to_owned(),
        };
        let to_end = self.observed.as_ref().and_then(|observed| observed.to_end);
        let seconds = to_end.map(|to_end| format!("{:.2}", to_end.as_secs_f64()));
        let peak = self.peak.map(|peak| (peak >> 10).to_string());
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        write!(f, "{:<44} {:>8} {ending:>6} ", self.name, self.expected)?;
        write!(f, "{:>8} {:>9}", or_none(seconds), or_none(peak))?;
        self.difference.iter().try_for_each(|difference| write!(f, "  DIFFERS: {difference}"))
    }
}

/// How long the process may take to end after what ends the attack: a limit, a signal, the guest itself, or
/// the start for a file.
const LONGEST_END: Duration = Duration::from_secs(2);
/// The maximum number of runs of an attack, for any reason.
const MAX_RUNS: u32 = 12;
/// The maximum number of runs that took too long.
const MAX_LATE: u32 = 3;
const BESIDE_RAM: u64 = 8 << 20;
const FILE_BASE: u64 = 32 << 20;
const FILE_FACTOR: u64 = 8;

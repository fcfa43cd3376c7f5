//! A diagnosis as text: the lines that the command prints after the line of the ending.

use super::{Ending, Outcome, Phase, Seconds};
use crate::diagnosis::{Code, VcpuPlace};

/// Returns the lines without their prefix; empty if there is nothing to explain. With `with_console` they
/// include the console's last lines.
pub(crate) fn lines(outcome: &Outcome, with_console: bool) -> Vec<String> {
    let Some(diagnosis) = &outcome.diagnosis else { return Vec::new() };
    let died = outcome.ending.vcpu().is_some();
    let before_init = outcome.phase < Phase::Init;
    let mut lines = Vec::new();
    if before_init {
        lines.push(reached(outcome));
    }
    if before_init || died {
        lines.extend(diagnosis.vcpus.iter().take(PLACES).map(place));
        let more = diagnosis.vcpus.len().saturating_sub(PLACES);
        if more > 0 {
            lines.push(format!("{more} further vCPUs are in the outcome file"));
        }
        lines.extend(other_registers(&outcome.ending).into_iter().flatten());
        if died && diagnosis.vcpus.is_empty() {
            lines.push("where it died is unknown: the registers are lost".to_owned());
        }
    }
    lines.extend(diagnosis.hints.iter().map(|hint| format!("hint: {hint}")));
    if with_console && !diagnosis.console.is_empty() {
        lines.push("the console's last lines:".to_owned());
        lines.extend(diagnosis.console.iter().map(|line| format!("| {line}")));
    }
    lines
}

/// Describes how far the guest came, and by which sign that is known.
fn reached(outcome: &Outcome) -> String {
    let phase = outcome.phase;
    let milestone = outcome.progress.iter().find(|milestone| milestone.sign.phase(true) == phase);
    match milestone.map(|milestone| (milestone.sign, milestone.at)) {
        None if phase == Phase::Loaded => "it was loaded and has not run".to_owned(),
        None => format!("it reached at least {phase}; how much further is unknown"),
        Some((sign, None)) => format!("it reached at least {phase} ({sign})"),
        Some((sign, Some(at))) => format!("it reached at least {phase} ({sign} after {})", Seconds(at)),
    }
}

fn place(place: &VcpuPlace) -> String {
    let VcpuPlace { vcpu, rip, ring, halted, interrupts, code, function } = place;
    let function = function.as_ref().map_or(String::new(), |function| format!(" in {function}"));
    let doing = match (halted, interrupts) {
        (true, true) => "halted, waiting for an interrupt, before",
        (true, false) => "halted, with interrupts off, before",
        (false, _) => "at",
    };
    match code {
        Code::Instruction { .. } | Code::Undefined { .. } => {
            format!("vCPU {vcpu} was {doing} {code}, rip {rip:#x}{function}, ring {ring}")
        }
        Code::Unmapped | Code::OutsideRam { .. } => {
            format!("vCPU {vcpu} was at rip {rip:#x}{function}, ring {ring}: {code}")
        }
    }
}

/// The registers that the ending's own line does not show, in two lines.
fn other_registers(ending: &Ending) -> Option<[String; 2]> {
    ending.registers().map(|registers| [registers.general().to_string(), registers.extended().to_string()])
}

/// How many vCPUs are described one by one. A person looks at a few; the outcome file has them all.
const PLACES: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::TimeLimit;
    use super::*;
    use crate::diagnosis::{Diagnosis, Function, Hint, Milestone, Sign};

    fn outcome(phase: Phase, progress: Vec<Milestone>) -> Outcome {
        let place = VcpuPlace {
            vcpu: 0,
            rip: 0xffff_ffff_8100_1010,
            ring: 0,
            halted: false,
            interrupts: false,
            code: Code::Instruction { bytes: vec![0xf3, 0x90], text: "pause".into() },
            function: Some(Function { name: "panic".into(), offset: 0x10 }),
        };
        let console = vec!["VFS: Cannot open root device".to_owned()];
        let diagnosis = Diagnosis {
            vcpus: vec![place],
            hints: vec![Hint::NoRoot],
            console,
            panic: None,
            init_error: None,
        };
        let ending = Ending::TimedOut { kind: TimeLimit::Wall, limit: Duration::from_secs(1) };
        Outcome { phase, progress, diagnosis: Some(diagnosis), console_bytes: 28, ..Outcome::bare(ending) }
    }

    #[test]
    fn death_before_init_tells_phase_place_hint_and_console() {
        let sign = Milestone { sign: Sign::SerialProbed, at: Some(Duration::from_millis(1500)) };
        let lines = lines(&outcome(Phase::Devices, vec![sign]), true);
        assert_eq!(
            lines,
            [
                "it reached at least its drivers (its serial driver probed the port after 1.5 s)",
                "vCPU 0 was at the instruction `pause`, rip 0xffffffff81001010 in panic+0x10, ring 0",
                &format!("hint: {}", Hint::NoRoot),
                "the console's last lines:",
                "| VFS: Cannot open root device",
            ]
        );
    }

    #[test]
    fn guest_without_a_sign_is_said_to_be_unknown() {
        let lines = lines(&outcome(Phase::Entered, Vec::new()), false);
        assert!(lines.first().is_some_and(|line| line.contains("unknown")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with('|')), "{lines:?}");
    }

    #[test]
    fn time_out_after_init_is_not_explained_by_its_boot() {
        let mark = Milestone { sign: Sign::InitMark, at: Some(Duration::from_millis(900)) };
        let mut outcome = outcome(Phase::Init, vec![mark]);
        outcome.diagnosis.as_mut().unwrap().hints.clear();
        assert_eq!(lines(&outcome, false), [""; 0]);
        outcome.ending = Ending::Crashed { vcpu: 0, registers: None };
        assert_eq!(lines(&outcome, false).len(), 1, "the place of the crash is always shown");
    }
}

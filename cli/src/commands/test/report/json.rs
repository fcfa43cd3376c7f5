//! The results as JSON. Later versions only add fields.

use coracle::outcome::OutcomeReport;
use serde_json::{Value, json};

use super::super::attempts::Attempt;
use super::super::case::Done;
use super::super::tap::{Tap, TapCounts, TapOutcome, TapResult};

/// Returns an object for each case, in their order.
pub(crate) fn json(cases: &[Done], on_emulated_host: bool) -> String {
    let cases: Vec<Value> = cases.iter().map(|case| of_case(case, on_emulated_host)).collect();
    format!("{:#}\n", json!({ "cases": cases }))
}

fn of_case(case: &Done, on_emulated_host: bool) -> Value {
    let outcome = case.outcome.as_ref().map(|outcome| OutcomeReport::of(outcome, on_emulated_host));
    let tap = case.scanner.tap().map(of_tap);
    json!({
        "name": case.name,
        "verdict": case.verdict.word(),
        "code": case.verdict.code(),
        "reason": case.verdict.reason(),
        "flaky": case.is_flaky,
        "failed_runs": case.earlier.iter().map(of_run).collect::<Vec<Value>>(),
        "seconds": case.time.as_secs_f64(),
        "tap": tap,
        "outcome": outcome,
    })
}

fn of_run(run: &Attempt) -> Value {
    json!({
        "verdict": run.verdict.word(),
        "code": run.verdict.code(),
        "reason": run.verdict.reason(),
        "seconds": run.time.as_secs_f64(),
    })
}

fn of_tap(tap: &Tap) -> Value {
    let TapCounts { passed, failed, skipped, todo } = tap.counts();
    let results: Vec<Value> = tap.results().iter().map(of_result).collect();
    json!({
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "todo": todo,
        "results": results,
        "results_left_out": tap.results_left_out(),
    })
}

fn of_result(result: &TapResult) -> Value {
    let outcome = match result.outcome {
        TapOutcome::Passed => "passed",
        TapOutcome::Failed => "failed",
        TapOutcome::Skipped => "skipped",
        TapOutcome::Todo => "todo",
    };
    json!({
        "document": result.document,
        "suite": result.suite,
        "name": result.name,
        "number": result.number,
        "outcome": outcome,
        "reason": result.reason,
        "diagnostics": result.diagnostics,
    })
}

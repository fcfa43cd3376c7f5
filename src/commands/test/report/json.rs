//! The results as JSON. Fields are only ever added.

use coracle::outcome::OutcomeReport;
use serde_json::{Value, json};

use super::super::case::Done;

/// One object for each case, in their order.
pub(crate) fn json(cases: &[Done], on_emulated_host: bool) -> String {
    let cases: Vec<Value> = cases.iter().map(|case| of_case(case, on_emulated_host)).collect();
    format!("{:#}\n", json!({ "cases": cases }))
}

fn of_case(case: &Done, on_emulated_host: bool) -> Value {
    let outcome = case.outcome.as_ref().map(|outcome| OutcomeReport::of(outcome, on_emulated_host));
    let tap = case.scanner.tap().map(
        |tap| json!({ "passed": tap.passed, "failed": tap.failed, "skipped": tap.skipped, "todo": tap.todo }),
    );
    json!({
        "name": case.name,
        "verdict": case.verdict.word(),
        "code": case.verdict.code(),
        "reason": case.verdict.reason(),
        "seconds": case.time.as_secs_f64(),
        "tap": tap,
        "outcome": outcome,
    })
}

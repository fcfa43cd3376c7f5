//! The table of exit codes in `docs/outcomes.md`, and the rows of it that a test program provokes. Together,
//! the programs have to provoke each row, which `tests/exit_codes.rs` checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Finished, scratch};

/// A row, with its code and its ending.
pub type Row = (&'static str, &'static str);

/// A way to an ending.
pub struct Case {
    pub row: Row,
    /// The expected exit code.
    pub code: i32,
    /// The action; it writes the outcome to the file.
    pub run: fn(outcome: &Path) -> Finished,
}

/// The rows that need a Linux guest: see `tests/linux/exit_codes.rs`.
pub const OF_LINUX: &[Row] =
    &[("111", "command-failed"), ("126, 127", "command-failed"), ("128 + n", "command-killed")];

/// The row that needs an emulated host: see `tests/emulated_host.rs`.
pub const OF_EMULATED_HOST: Row = ("117", "not-run");

/// The row of a signal before the guest runs: see `tests/signals.rs`.
pub const OF_SIGNALS: Row = ("128 + n", "not-run");

/// Runs each case and compares its exit code and its outcome with its row.
pub fn check(cases: &[Case]) {
    for Case { row, code, run } in cases {
        let path = scratch().join(format!("exit-{code}.json"));
        let run = run(&path);
        assert_eq!(run.code(), *code, "{row:?}: {run:?}");
        expect_outcome(&path, *row, *code);
    }
}

/// Checks that the outcome report agrees with the exit code.
pub fn expect_outcome(path: &Path, (_, ending): Row, code: i32) {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!((&report["ending"], &report["code"]), (&ending.into(), &code.into()), "{report}");
}

/// Returns the rows of the table.
pub fn documented() -> BTreeSet<(String, String)> {
    let text = include_str!("../../docs/outcomes.md");
    let table = text.split("## Exit codes").nth(1).unwrap().split("\n\nMore on").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Code"));
    let cell = |text: &str| text.trim().trim_matches('`').to_owned();
    rows.map(|line| {
        let mut cells = line.split('|').skip(1);
        (cell(cells.next().unwrap()), cell(cells.next().unwrap()))
    })
    .collect()
}

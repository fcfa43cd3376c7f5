//! A suite: a TOML file of cases, each a machine as in a config file and what is looked for, over a matrix.

mod keys;
mod patterns;
mod schema;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::config::{RawConfig, Timeout, in_one_line, parse_duration};
use coracle::regular_file;
use regex_lite::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use toml::{Table, Value};

use super::TapMode;

pub(crate) use patterns::Compiler;
pub(crate) use schema::schema;

/// A case as the file has it, of one cell of the matrix.
#[derive(Debug)]
pub(crate) struct SuiteCase {
    pub(crate) name: String,
    /// The machine, with paths taken from the folder of the file.
    pub(crate) machine: RawConfig,
    pub(crate) expect: Vec<Regex>,
    pub(crate) reject: Vec<Regex>,
    pub(crate) tap: TapMode,
    pub(crate) tap_grace: Option<Timeout>,
    pub(crate) boot: Option<Duration>,
    /// What is run in the guest; empty for nothing.
    pub(crate) command: Vec<OsString>,
}

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuiteError {
    /// It cannot be read.
    #[error("--suite {}: it cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is not TOML, or not a suite.
    #[error("--suite {}: {}", path.display(), in_one_line(reason))]
    Form { path: PathBuf, reason: String },
    /// A case of it is wrong.
    #[error("--suite {}: case '{}': {}", path.display(), in_one_line(name), in_one_line(reason))]
    Case { path: PathBuf, name: String, reason: String },
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Names the schema for editors; without effect.
    #[serde(rename = "$schema", default)]
    _schema: Option<String>,
    /// What each case has that does not say otherwise.
    #[serde(default)]
    defaults: Table,
    /// Values of keys of the machine: each case runs with each combination.
    #[serde(default)]
    matrix: Table,
    #[serde(default)]
    case: Vec<Table>,
}

/// What is looked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Looks {
    expect: Vec<String>,
    reject: Vec<String>,
    tap: TapMode,
    tap_grace: Option<Timeout>,
    command: Vec<String>,
    #[serde(deserialize_with = "time")]
    assert_boot: Option<Duration>,
}

/// Reads the cases of a suite.
///
/// # Errors
/// The file or a case of it is wrong.
pub(crate) fn read(path: &Path) -> Result<Vec<SuiteCase>, SuiteError> {
    let text = regular_file::read_text(path, MAX_LEN)
        .map_err(|error| SuiteError::Read { path: path.to_owned(), source: error.into() })?;
    parse(path, &text)
}

/// Reads the cases in the text of the suite at `path`.
///
/// # Errors
/// The text or a case of it is wrong.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<SuiteCase>, SuiteError> {
    let form = |reason| SuiteError::Form { path: path.to_owned(), reason };
    // Before the suite is read: of the tree of a file and its cases only one is in memory.
    if let Some(reason) = keys::unknown(text) {
        return Err(form(reason));
    }
    let suite: Suite = toml::from_str(text).map_err(|error| form(one_line(&error, text)))?;
    if suite.case.is_empty() {
        return Err(form("it has no [[case]]".to_owned()));
    }
    let count = suite
        .case
        .iter()
        .try_fold(0_u64, |sum, case| Ok(sum.saturating_add(count_cells(&suite.matrix, case)?)));
    if count.map_err(form)? > MOST_CASES {
        return Err(form(format!("its matrix makes more than {MOST_CASES} cases")));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    let mut compiler = Compiler::default();
    let mut room = MAX_MEMORY;
    for table in &suite.case {
        for cell in cells(&suite.matrix, table) {
            let name = name_of(table, &suite.defaults, &cell);
            let wrong = |reason| SuiteError::Case { path: path.to_owned(), name: name.clone(), reason };
            let all = merged(table, &suite.defaults, &cell);
            let size = size_of::<SuiteCase>() + 2 * name.len() + all.values().map(memory).sum::<usize>();
            room = room.checked_sub(size).ok_or_else(|| form(too_large()))?;
            let case = case(&name, table, all, &mut compiler).map_err(wrong)?;
            if !names.insert(case.name.clone()) {
                return Err(wrong("another case has this name: give each its own".to_owned()));
            }
            cases.push(SuiteCase { machine: case.machine.relative_to(folder), ..case });
        }
    }
    Ok(cases)
}

/// What a case says with what it has from elsewhere: one that says a key of the matrix runs with its own value.
fn merged(table: &Table, defaults: &Table, cell: &Table) -> Table {
    let mut all = defaults.clone();
    all.extend(cell.clone());
    all.extend(table.clone());
    all
}

fn case(name: &str, table: &Table, all: Table, compiler: &mut Compiler) -> Result<SuiteCase, String> {
    if !table.get("name").is_some_and(Value::is_str) {
        return Err("it has no name".to_owned());
    }
    let (mut looks, mut machine) = (Table::new(), Table::new());
    for (key, value) in all.into_iter().filter(|(key, _)| key != "name") {
        if OF_THE_COMMAND.contains(&key.as_str()) {
            return Err(format!("`{key}` is not for a case: `coracle test` has an option for all of them"));
        }
        let place = if LOOKS.contains(&key.as_str()) { &mut looks } else { &mut machine };
        place.insert(key, value);
    }
    let looks: Looks = looks.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let machine = machine.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    Ok(SuiteCase {
        name: name.to_owned(),
        machine,
        expect: compiler.compile("expect", &looks.expect)?,
        reject: compiler.compile("reject", &looks.reject)?,
        tap: looks.tap,
        tap_grace: looks.tap_grace,
        boot: looks.assert_boot,
        command: looks.command.into_iter().map(OsString::from).collect(),
    })
}

/// The keys of the matrix that a case has no value of its own for, and their values.
fn keys<'a>(matrix: &'a Table, case: &Table) -> impl Iterator<Item = (&'a String, &'a Value)> {
    matrix.iter().filter(|(key, _)| !case.contains_key(*key))
}

/// How many combinations there are of one value of each key.
fn count_cells(matrix: &Table, case: &Table) -> Result<u64, String> {
    keys(matrix, case).try_fold(1_u64, |count, (key, values)| {
        let values = values.as_array().filter(|values| !values.is_empty());
        let values = values.ok_or_else(|| format!("matrix.{key}: write an array of values, as in [1, 4]"))?;
        Ok(count.saturating_mul(values.len() as u64))
    })
}

/// Every combination of one value of each key, the last key's values changing first, one after the other.
fn cells(matrix: &Table, case: &Table) -> impl Iterator<Item = Table> {
    let keys: Vec<(&String, &[Value])> = keys(matrix, case)
        .map(|(key, values)| (key, values.as_array().map(Vec::as_slice).unwrap_or_default()))
        .collect();
    let count = keys.iter().map(|(_, values)| values.len()).product::<usize>();
    (0..count).map(move |number| {
        let mut rest = number;
        let values = keys.iter().rev().map(|(key, values)| {
            let value = values.get(rest % values.len()).unwrap_or(&Value::Boolean(false));
            rest /= values.len();
            ((*key).clone(), value.clone())
        });
        values.collect()
    })
}

/// Bytes that a value takes in a case, about.
fn memory(value: &Value) -> usize {
    let below = match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(memory).sum(),
        Value::Table(table) => table.iter().map(|(key, value)| key.len() + 64 + memory(value)).sum(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => 0,
    };
    64 + below
}

fn too_large() -> String {
    format!("its cases take more than {} MiB of memory; use fewer or shorter values", MAX_MEMORY >> 20)
}

/// The name in the file, and the cell of the matrix.
fn name_of(table: &Table, defaults: &Table, cell: &Table) -> String {
    let own = table.get("name").or(defaults.get("name")).and_then(Value::as_str).unwrap_or("?");
    let words = cell.iter().map(|(key, value)| format!("{key}={}", label(value)));
    let words: Vec<String> = words.collect();
    if words.is_empty() { own.to_owned() } else { format!("{own} [{}]", words.join(" ")) }
}

/// A value in a name: of a path, the end that tells it from others.
fn label(value: &Value) -> String {
    match value {
        Value::String(text) => {
            text.rsplit('/').next().filter(|end| !end.is_empty()).unwrap_or(text).to_owned()
        }
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Array(values) => values.iter().map(label).collect::<Vec<_>>().join("+"),
        Value::Datetime(_) | Value::Table(_) => "?".to_owned(),
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).map(Some).map_err(D::Error::custom)
}

/// What is wrong, and in which line.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    match before {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

const LOOKS: [&str; 6] = ["expect", "reject", "tap", "tap_grace", "assert_boot", "command"];
const OF_THE_COMMAND: [&str; 3] = ["accel", "serial", "outcome"];
/// More than anybody means.
const MOST_CASES: u64 = 10_000;
/// Most bytes of the file; one of a thousand cases has less.
const MAX_LEN: u64 = 128 << 10;
/// Most bytes of memory for the cases: each holds what the defaults say.
const MAX_MEMORY: usize = 20 << 20;

#[cfg(test)]
mod tests;

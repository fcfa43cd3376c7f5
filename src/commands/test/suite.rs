//! A suite: a TOML file of cases, each a machine as in a config file and what is looked for, over a matrix.

mod schema;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use coracle::config::{RawConfig, parse_duration};
use regex_lite::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use toml::{Table, Value};

use super::scanner::Patterns;
use crate::cli::TapMode;

pub(crate) use schema::schema;

/// A case as the file has it, of one cell of the matrix.
#[derive(Debug)]
pub(crate) struct SuiteCase {
    pub(crate) name: String,
    /// The machine, with paths taken from the folder of the file.
    pub(crate) machine: RawConfig,
    pub(crate) patterns: Patterns,
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
    #[error("--suite {}: {reason}", path.display())]
    Form { path: PathBuf, reason: String },
    /// A case of it is wrong.
    #[error("--suite {}: case '{name}': {reason}", path.display())]
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
    command: Vec<String>,
    #[serde(deserialize_with = "time")]
    assert_boot: Option<Duration>,
}

/// Reads the cases of a suite.
///
/// # Errors
/// The file or a case of it is wrong.
pub(crate) fn read(path: &Path) -> Result<Vec<SuiteCase>, SuiteError> {
    let text =
        fs::read_to_string(path).map_err(|source| SuiteError::Read { path: path.to_owned(), source })?;
    let form = |reason| SuiteError::Form { path: path.to_owned(), reason };
    let suite: Suite = toml::from_str(&text).map_err(|error| form(one_line(&error, &text)))?;
    if suite.case.is_empty() {
        return Err(form("it has no [[case]]".to_owned()));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    for table in &suite.case {
        for cell in &cells(&suite.matrix, table).map_err(form)? {
            let name = name_of(table, &suite.defaults, cell);
            let wrong = |reason| SuiteError::Case { path: path.to_owned(), name: name.clone(), reason };
            let case = case(&name, table, &suite.defaults, cell).map_err(wrong)?;
            if !names.insert(case.name.clone()) {
                return Err(wrong("another case has this name: give each its own".to_owned()));
            }
            if cases.len() >= MOST_CASES {
                return Err(form(too_many()));
            }
            cases.push(SuiteCase { machine: case.machine.relative_to(folder), ..case });
        }
    }
    Ok(cases)
}

fn case(name: &str, table: &Table, defaults: &Table, cell: &Table) -> Result<SuiteCase, String> {
    // A case that says a key of the matrix runs with its own value.
    let mut all = defaults.clone();
    all.extend(cell.clone());
    all.extend(table.clone());
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
    let patterns = Patterns {
        expect: regexes("expect", &looks.expect)?,
        reject: regexes("reject", &looks.reject)?,
        tap: looks.tap,
    };
    let command = looks.command.into_iter().map(OsString::from).collect();
    Ok(SuiteCase { name: name.to_owned(), machine, patterns, boot: looks.assert_boot, command })
}

/// Compiles the patterns of the option or key `what`.
///
/// # Errors
/// One cannot be compiled: which, and why.
pub(crate) fn regexes(what: &str, patterns: &[String]) -> Result<Vec<Regex>, String> {
    let compile = |pattern: &String| {
        Regex::new(pattern)
            .map_err(|error| format!("{what} `{pattern}`: it is no regular expression: {error}"))
    };
    patterns.iter().map(compile).collect()
}

/// Every combination of one value of each key, but for those that the case has its own value of.
fn cells(matrix: &Table, case: &Table) -> Result<Vec<Table>, String> {
    let mut cells = vec![Table::new()];
    for (key, values) in matrix.iter().filter(|(key, _)| !case.contains_key(*key)) {
        let values = values.as_array().filter(|values| !values.is_empty());
        let values = values.ok_or_else(|| format!("matrix.{key}: write an array of values, as in [1, 4]"))?;
        let with = |cell: &Table, value: &Value| {
            let mut cell = cell.clone();
            cell.insert(key.clone(), value.clone());
            cell
        };
        cells = cells.iter().flat_map(|cell| values.iter().map(move |value| with(cell, value))).collect();
        if cells.len() > MOST_CASES {
            return Err(too_many());
        }
    }
    Ok(cells)
}

fn too_many() -> String {
    format!("its matrix makes more than {MOST_CASES} cases")
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

const LOOKS: [&str; 5] = ["expect", "reject", "tap", "assert_boot", "command"];
const OF_THE_COMMAND: [&str; 3] = ["accel", "serial", "outcome"];
/// More than anybody means.
const MOST_CASES: usize = 10_000;

#[cfg(test)]
mod tests;

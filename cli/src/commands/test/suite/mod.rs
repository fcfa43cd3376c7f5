//! A suite: a TOML file of test cases. Each case is a machine, as in a config file, with its expectations; a
//! matrix multiplies the cases.

mod check;
mod patterns;
mod schema;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::config::{RawConfig, Timeout, in_one_line};
use coracle_arch::regular_file;
use regex_lite::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use toml::{Table, Value};

use super::{GuestIp, Surroundings, TapMode, variable};

pub(crate) use patterns::Compiler;
pub(crate) use schema::schema;

/// A case of the file, for one cell of the matrix.
#[derive(Debug)]
pub(crate) struct SuiteCase {
    pub(crate) name: String,
    /// The machine, with relative paths resolved against the directory of the file.
    pub(crate) machine: RawConfig,
    pub(crate) expect: Vec<Regex>,
    pub(crate) reject: Vec<Regex>,
    pub(crate) tap: TapMode,
    pub(crate) tap_grace: Option<Timeout>,
    pub(crate) boot: Option<Duration>,
    /// The command to run in the guest; empty for none.
    pub(crate) command: Vec<OsString>,
    pub(crate) surroundings: Surroundings,
}

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuiteError {
    /// The file cannot be read.
    #[error("--suite {}: it cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file as a whole is not a suite.
    #[error("--suite {}: {}", path.display(), in_one_line(reason))]
    Form { path: PathBuf, reason: String },
    /// A particular line is wrong.
    #[error("--suite {}:{line}: {}", path.display(), in_one_line(reason))]
    Place { path: PathBuf, line: usize, reason: String },
}

/// The content of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Names the schema for editors, and has no effect.
    #[serde(rename = "$schema", default)]
    _schema: Option<String>,
    /// Values for cases that do not set them.
    #[serde(default)]
    defaults: Table,
    /// Lists of values for settings of the machine: each case runs with each combination.
    #[serde(default)]
    matrix: Table,
    #[serde(default)]
    case: Vec<Table>,
}

/// The expectations of a case, and its command.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Looks {
    expect: Vec<String>,
    reject: Vec<String>,
    tap: TapMode,
    tap_grace: Option<Timeout>,
    #[serde(deserialize_with = "time")]
    assert_boot: Option<Duration>,
    command: Vec<String>,
    env: Vec<Variable>,
    user: Option<String>,
    workdir: Option<PathBuf>,
    #[serde(deserialize_with = "ip")]
    ip: Option<GuestIp>,
}

/// A variable for the command: `NAME=VALUE` or `NAME`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Variable(OsString);

impl TryFrom<String> for Variable {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Variable, &'static str> {
        variable::named(text.into()).map(Variable)
    }
}

impl Looks {
    const KEYS: [&str; 10] =
        ["expect", "reject", "tap", "tap_grace", "assert_boot", "command", "env", "user", "workdir", "ip"];
    /// The keys that describe the surroundings of a command.
    const OF_A_COMMAND: [&str; 4] = ["env", "user", "workdir", "ip"];
}

/// Reads the cases of a suite.
///
/// # Errors
/// The file cannot be read, or something in it is wrong.
pub(crate) fn read(path: &Path) -> Result<Vec<SuiteCase>, SuiteError> {
    let text = regular_file::read_text(path, MAX_LEN)
        .map_err(|error| SuiteError::Read { path: path.to_owned(), source: error.into() })?;
    parse(path, &text)
}

/// Parses the cases from the text of the suite at `path`.
///
/// # Errors
/// Something in the text is wrong.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<SuiteCase>, SuiteError> {
    let form = |reason| SuiteError::Form { path: path.to_owned(), reason };
    let place = |line, reason: String| {
        let reason = check::excerpt(&reason, REASON_CHARS);
        SuiteError::Place { path: path.to_owned(), line, reason }
    };
    let mut compiler = Compiler::default();
    // Checked before the suite is parsed, so that only one of the two trees, that of the file and that of its
    // cases, is in memory.
    let lines = check::check(text, &mut compiler).map_err(|fault| place(fault.line, fault.reason))?;
    let suite: Suite = toml::from_str(text).map_err(|error| form(error.message().to_owned()))?;
    if suite.case.is_empty() {
        return Err(form("it has no [[case]]".to_owned()));
    }
    let counts = suite.case.iter().map(|case| count_cells(&suite.matrix, case));
    if counts.fold(0, u64::saturating_add) > MAX_CASES {
        let makes = if suite.matrix.is_empty() { "it has" } else { "its matrix makes" };
        return Err(form(format!("{makes} more than {MAX_CASES} cases")));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let labels = Labels::of(&suite.matrix);
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    let mut room = MAX_MEMORY;
    for (index, table) in suite.case.iter().enumerate() {
        let wrong =
            |reason| place(lines.get(index).copied().unwrap_or(1), format!("case[{index}]: {reason}"));
        for cell in cells(&suite.matrix, table) {
            let own = table.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
            let name = labels.name(own.ok_or_else(|| wrong("it has no name".to_owned()))?, &cell);
            let all = merged(table, &suite.defaults, &cell);
            let size = size_of::<SuiteCase>() + 2 * name.len() + all.values().map(memory).sum::<usize>();
            room = room.checked_sub(size).ok_or_else(|| form(too_large()))?;
            if !names.insert(name.clone()) {
                let advice = "give each case a name of its own, and list each value of the matrix once";
                let name = check::excerpt(&name, NAME_CHARS);
                return Err(wrong(format!("another case is called '{name}': {advice}")));
            }
            let case = case(name, all, &mut compiler).map_err(wrong)?;
            let of_a_command = Looks::OF_A_COMMAND.iter().find(|key| table.contains_key(**key));
            if let Some(key) = of_a_command.filter(|_| case.command.is_empty()) {
                return Err(wrong(format!("`{key}` is for a command, and there is none: add `command`")));
            }
            cases.push(SuiteCase { machine: case.machine.relative_to(folder), ..case });
        }
    }
    Ok(cases)
}

/// Merges a case with the defaults and a cell of the matrix. A case that sets a key of the matrix itself
/// keeps its own value.
fn merged(table: &Table, defaults: &Table, cell: &Table) -> Table {
    let mut all = defaults.clone();
    all.extend(cell.clone());
    all.extend(table.clone());
    all
}

fn case(name: String, all: Table, compiler: &mut Compiler) -> Result<SuiteCase, String> {
    let (looks, machine): (Table, Table) = all
        .into_iter()
        .filter(|(key, _)| key != "name")
        .partition(|(key, _)| Looks::KEYS.contains(&key.as_str()));
    let message = |error: toml::de::Error| error.message().to_owned();
    let looks: Looks = looks.try_into().map_err(message)?;
    Ok(SuiteCase {
        name,
        machine: machine.try_into().map_err(message)?,
        expect: compiler.compile("expect", &looks.expect)?,
        reject: compiler.compile("reject", &looks.reject)?,
        tap: looks.tap,
        tap_grace: looks.tap_grace,
        boot: looks.assert_boot,
        command: looks.command.into_iter().map(OsString::from).collect(),
        surroundings: Surroundings {
            env: looks.env.into_iter().map(|Variable(text)| text).collect(),
            user: looks.user.map(OsString::from),
            workdir: looks.workdir,
            ip: looks.ip,
        },
    })
}

/// Returns the keys of the matrix that a case does not set itself, with their values.
fn keys<'a>(matrix: &'a Table, case: &Table) -> impl Iterator<Item = (&'a String, &'a Value)> {
    matrix.iter().filter(|(key, _)| !case.contains_key(*key))
}

/// Counts the combinations of one value of each key.
fn count_cells(matrix: &Table, case: &Table) -> u64 {
    let counts = keys(matrix, case).map(|(_, values)| values.as_array().map_or(0, Vec::len) as u64);
    counts.fold(1, u64::saturating_mul)
}

/// Returns every combination of one value of each key; the last key's value changes fastest.
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

/// Estimates the memory that a value takes in a case, in bytes.
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

/// How the names of cases refer to the values of the matrix.
struct Labels<'a> {
    /// The short labels that several values of a key share.
    ambiguous: HashSet<(&'a str, String)>,
}

impl<'a> Labels<'a> {
    fn of(matrix: &'a Table) -> Labels<'a> {
        let (mut seen, mut ambiguous) = (HashSet::new(), HashSet::new());
        for (key, values) in matrix {
            for value in values.as_array().into_iter().flatten() {
                let label = (key.as_str(), label(value, true));
                if let Some(label) = seen.replace(label) {
                    ambiguous.insert(label);
                }
            }
        }
        Labels { ambiguous }
    }

    /// Returns the name of a case: the name in the file, with the cell of the matrix.
    fn name(&self, own: &str, cell: &Table) -> String {
        let words = cell.iter().map(|(key, value)| {
            let short = (key.as_str(), label(value, true));
            let is_known_by_it = !self.ambiguous.contains(&short);
            format!("{key}={}", if is_known_by_it { short.1 } else { label(value, false) })
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { own.to_owned() } else { format!("{own} [{}]", words.join(" ")) }
    }
}

/// Formats a value for a name. For a path, the last component is enough if no other value shares it.
fn label(value: &Value, is_short: bool) -> String {
    match value {
        Value::String(text) => {
            let end = text.rsplit('/').next().filter(|end| is_short && !end.is_empty());
            end.unwrap_or(text).to_owned()
        }
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Array(values) => {
            values.iter().map(|value| label(value, is_short)).collect::<Vec<_>>().join("+")
        }
        Value::Datetime(_) | Value::Table(_) => "?".to_owned(),
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    match Timeout::deserialize(from)? {
        Timeout::After(time) => Ok(Some(time)),
        Timeout::None => Err(D::Error::custom("`none` is not a time: leave out the key")),
    }
}

fn ip<'de, D: Deserializer<'de>>(from: D) -> Result<Option<GuestIp>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Keys of a config file that a case cannot have, with their replacements.
const OF_THE_COMMAND: [(&str, &str); 3] = [
    ("accel", "use `coracle test --accel`, which applies to all cases"),
    ("serial", "its console belongs to the test: use `coracle test --artifacts` to keep it"),
    ("outcome", "use `coracle test --json`, which has the outcome of each case"),
];
/// The longest error message, in characters: longer than the list of keys.
const REASON_CHARS: usize = 1000;
const NAME_CHARS: usize = 100;
/// The maximum number of cases, far more than a suite needs. It bounds the product of the matrix.
const MAX_CASES: u64 = 10_000;
/// The maximum size of the file, in bytes: more than a suite of a thousand cases needs.
const MAX_LEN: u64 = 128 << 10;
/// The maximum memory of all cases, in bytes: each case holds a copy of the defaults.
const MAX_MEMORY: usize = 20 << 20;

#[cfg(test)]
mod tests;

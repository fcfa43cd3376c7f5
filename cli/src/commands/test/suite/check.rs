//! Checks every key and value of a suite where it is written, before the tables are merged into cases, whose
//! keys come from several tables. So an error names its line and its path, as in `case[3].initrds[1]`. The
//! schema defines the keys and the form of their values; the type that parses a value decides what the value
//! means.

use std::ops::Range;

use coracle::config::{RawConfig, nearest};
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::patterns::Compiler;
use super::schema::schema;
use super::{Looks, OF_THE_COMMAND};

/// An error, and its line, counted from 1.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// Checks the text of a suite, and returns the line of each of its cases.
///
/// # Errors
/// The first error: in the order of its tables, and within a table in the order of the file.
pub(super) fn check(text: &str, compiler: &mut Compiler) -> Result<Vec<usize>, Fault> {
    let document = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(" ");
        Fault { line: line_of(text, error.span().map_or(0, |span| span.start)), reason: message }
    })?;
    let document = document.get_ref();
    let schema = schema();
    let mut checker = Checker { text, compiler };
    // The values of tables are checked one by one below.
    checker.table("", document, &schema, |_, _, _| Ok(()))?;
    for name in ["defaults", "matrix"] {
        if let Some(DeValue::Table(table)) = document.get(name).map(Spanned::get_ref) {
            let meaning = if name == "matrix" { Checker::meanings } else { Checker::meaning };
            checker.table(name, table, part(part(&schema, "properties"), name), meaning)?;
        }
    }
    let cases = document.get("case").and_then(|cases| cases.get_ref().as_array());
    let mut lines = Vec::new();
    let (mut line, mut seen) = (1, 0);
    for (index, case) in cases.into_iter().flatten().enumerate() {
        let Some(table) = case.get_ref().as_table() else { continue };
        let schema = part(part(part(&schema, "properties"), "case"), "items");
        checker.table(&format!("case[{index}]"), table, schema, Checker::meaning)?;
        // In order, so that counting lines passes over the text only once.
        let start = case.span().start;
        line += text.get(seen..start).map_or(0, |between| between.matches('\n').count());
        seen = seen.max(start);
        lines.push(line);
    }
    Ok(lines)
}

struct Checker<'a> {
    text: &'a str,
    compiler: &'a mut Compiler,
}

/// A key of the file, with its value.
type Entry<'a, 'text> = (&'a Spanned<std::borrow::Cow<'text, str>>, &'a Spanned<DeValue<'text>>);

impl Checker<'_> {
    /// Checks the keys of a table and the form of their values, then each value by `meaning`.
    fn table<'text>(
        &mut self,
        path: &str,
        table: &DeTable<'text>,
        schema: &Value,
        meaning: impl Fn(&mut Self, &str, Entry<'_, 'text>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let known = part(schema, "properties");
        let mut entries: Vec<Entry<'_, 'text>> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name: &str = key.get_ref();
            let shown = excerpt(name, EXCERPT_CHARS);
            let path = if path.is_empty() { shown } else { format!("{path}.{shown}") };
            if let Some((_, instead)) =
                OF_THE_COMMAND.iter().find(|(of_the_command, _)| *of_the_command == name)
            {
                return Err(self.fault(&key.span(), format!("{path}: a case cannot have it; {instead}")));
            }
            let Some(schema) = known.get(name) else {
                return Err(self.fault(&key.span(), unknown(&path, name, known)));
            };
            if path == "case" && value.get_ref().is_table() {
                return Err(self.fault(&key.span(), "case: there may be several; write [[case]]".to_owned()));
            }
            self.form(&path, value, schema, None)?;
            meaning(self, &path, (key, value))?;
        }
        Ok(())
    }

    /// Checks that a value, and each of its items, has the type that the schema requires.
    fn form(
        &self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        schema: &Value,
        example: Option<&Value>,
    ) -> Result<(), Fault> {
        let example = example.or(part(schema, "examples").get(0));
        let items = value.get_ref().as_array();
        let is_empty = part(schema, "minItems") == 1 && items.is_some_and(|items| items.is_empty());
        if !fits(value.get_ref(), schema) || is_empty {
            let found = excerpt(self.text.get(value.span()).unwrap_or_default(), EXCERPT_CHARS);
            let reason = format!("{path}: expected {}, found {found}", expected(schema, example));
            return Err(self.fault(&value.span(), reason));
        }
        for (index, item) in items.into_iter().flatten().enumerate() {
            let example = example.and_then(|example| example.get(0));
            self.form(&format!("{path}[{index}]"), item, part(schema, "items"), example)?;
        }
        Ok(())
    }

    /// Checks the meaning of a value of a case.
    fn meaning(&mut self, path: &str, (key, value): Entry<'_, '_>) -> Result<(), Fault> {
        let mut one = DeTable::new();
        one.insert(key.clone(), value.clone());
        let one = Deserializer::from(Spanned::new(value.span(), one));
        let name: &str = key.get_ref();
        if name == "name" {
            return Ok(());
        }
        if !Looks::KEYS.contains(&name) {
            return RawConfig::deserialize(one).map(drop).map_err(|error| self.meant(path, value, &error));
        }
        let looks = Looks::deserialize(one).map_err(|error| self.meant(path, value, &error))?;
        for (index, pattern) in looks.expect.iter().chain(&looks.reject).enumerate() {
            if let Err(reason) = self.compiler.one(&format!("{path}[{index}]"), pattern) {
                let item = value.get_ref().get(index).unwrap_or(value);
                return Err(self.fault(&item.span(), reason));
            }
        }
        Ok(())
    }

    /// Checks the meaning of the values of a key of the matrix.
    fn meanings(&mut self, path: &str, (key, values): Entry<'_, '_>) -> Result<(), Fault> {
        let values = values.get_ref().as_array().into_iter().flatten().enumerate();
        for (index, value) in values {
            self.meaning(&format!("{path}[{index}]"), (key, value))?;
        }
        Ok(())
    }

    /// Creates the error for a value that its type refuses: at the item that is wrong, if that is known.
    fn meant(&self, path: &str, value: &Spanned<DeValue<'_>>, error: &Error) -> Fault {
        let span = error.span().unwrap_or(value.span());
        let items = value.get_ref().as_array().into_iter().flatten();
        let index =
            items.enumerate().find(|(_, item)| item.span().contains(&span.start) && span != value.span());
        let item = index.map(|(index, _)| format!("[{index}]")).unwrap_or_default();
        self.fault(&span, format!("{path}{item}: {}", error.message().lines().collect::<Vec<_>>().join(" ")))
    }

    fn fault(&self, at: &Range<usize>, reason: String) -> Fault {
        Fault { line: line_of(self.text, at.start), reason }
    }
}

/// Returns whether a value has a type that the schema allows. Its lists of allowed strings are checked where
/// the value is parsed.
fn fits(value: &DeValue<'_>, schema: &Value) -> bool {
    let is = |name: &str| match value {
        DeValue::String(_) => name == "string",
        DeValue::Integer(_) => matches!(name, "integer" | "number"),
        DeValue::Float(_) => name == "number",
        DeValue::Boolean(_) => name == "boolean",
        DeValue::Array(_) => name == "array",
        DeValue::Table(_) => name == "object",
        DeValue::Datetime(_) => false,
    };
    types(schema).any(is)
}

/// Returns the types that a schema allows.
fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let is_choice = schema.get("enum").is_some();
    let one = part(schema, "type").as_str();
    let many = part(schema, "type").as_array().into_iter().flatten().filter_map(Value::as_str);
    is_choice.then_some("string").into_iter().chain(one).chain(many)
}

/// Describes what a value has to be.
fn expected(schema: &Value, example: Option<&Value>) -> String {
    let words = types(schema).map(|name| match name {
        "string" => "a string",
        "number" => "a number",
        "integer" => "a whole number",
        "boolean" => "true or false",
        "array" => "an array",
        _ => "a table",
    });
    let words = words.collect::<Vec<_>>().join(" or ");
    match example.filter(|_| words != "true or false") {
        Some(example) => format!("{words} such as {example}"),
        None => words,
    }
}

/// Creates the message for a key that the table does not have.
fn unknown(path: &str, name: &str, known: &Value) -> String {
    let mut keys: Vec<String> = known.as_object().into_iter().flat_map(|keys| keys.keys().cloned()).collect();
    // Keys that only a suite has come first.
    keys.sort_by_key(|key| (key != "name", !Looks::KEYS.contains(&key.as_str()), key.clone()));
    let list = keys.join(", ");
    let near = nearest(name, keys).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    let the = if near.is_empty() { "the" } else { "The" };
    format!("{path}: there is no such key; {near}{the} keys are {list}")
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).map_or(1, |before| before.matches('\n').count() + 1)
}

/// Shortens a text for use in a sentence: to its first line, and at most `most` characters.
pub(super) fn excerpt(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let is_cut = line.len() < text.len() || line.chars().nth(most).is_some();
    let start: String = line.chars().take(most).collect();
    if is_cut { format!("{start} ...") } else { start }
}

const EXCERPT_CHARS: usize = 40;

/// Returns a part of a schema; null if it is missing.
fn part<'a>(schema: &'a Value, key: &str) -> &'a Value {
    schema.get(key).unwrap_or(&Value::Null)
}

//! The JSON Schema of a suite: the settings of a config file for the machine, and the expectations. TOML
//! editors use it too.

use coracle::config;
use serde_json::{Map, Value, json};

use super::OF_THE_COMMAND;

/// Returns the schema, in JSON Schema 2020-12.
pub(crate) fn schema() -> Value {
    let mut case = machine();
    case.extend(looks());
    let defaults = case.clone();
    let mut matrix = case.clone();
    for value in matrix.values_mut() {
        let examples = json!([value.get("examples")]);
        *value = json!({ "type": "array", "minItems": 1, "items": value, "examples": examples });
    }
    case.insert(
        "name".to_owned(),
        json!({ "description": "The name of the case", "type": "string", "examples": ["boots"] }),
    );
    let table =
        |properties| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let named = |properties| {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["name"],
            "properties": properties,
        })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A suite of boot tests of Coracle",
        "description": "The file of `coracle test --suite FILE`. Relative paths are resolved against its directory.",
        "type": "object",
        "additionalProperties": false,
        "required": ["case"],
        "properties": {
            "$schema": {
                "description": "The location of this schema, for editors; it has no effect",
                "type": "string",
            },
            "defaults": table(defaults),
            "matrix": table(matrix),
            "case": { "type": "array", "minItems": 1, "items": named(case) },
        },
    })
}

/// Returns the settings of a case's machine.
fn machine() -> Map<String, Value> {
    let mut schema = config::schema();
    let mut properties = match schema.get_mut("properties").map(Value::take) {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    properties.retain(|name, _| name != "$schema" && !OF_THE_COMMAND.iter().any(|(key, _)| key == name));
    properties
}

fn looks() -> [(String, Value); 10] {
    [
        ("expect".to_owned(), regexes("Regular expressions that lines of the console have to match")),
        ("reject".to_owned(), regexes("Regular expressions that no line of the console may match")),
        (
            "tap".to_owned(),
            json!({
                "description": "TAP or KTAP results: auto counts them if they come, require fails without them, \
                    ignore treats them as text",
                "enum": ["auto", "require", "ignore"],
                "examples": ["require"],
            }),
        ),
        (
            "tap_grace".to_owned(),
            json!({
                "description": "With tap = \"require\": end a guest that has been silent for this long after the \
                    last of its planned results; none waits for it to end; a number is in seconds",
                "type": ["string", "number"],
                "examples": ["1s", "none"],
            }),
        ),
        (
            "command".to_owned(),
            json!({
                "description": "Command to run in the guest; it has to exit with 0",
                "type": "array",
                "items": { "type": "string" },
                "examples": [["sh", "-c", "test -e /dev/vda"]],
            }),
        ),
        (
            "env".to_owned(),
            json!({
                "description": "Variables for the command: NAME=VALUE, or NAME for the value on this machine",
                "type": "array",
                "items": { "type": "string", "pattern": "^[^=]" },
                "examples": [["CI=1", "LANG"]],
            }),
        ),
        (
            "user".to_owned(),
            json!({
                "description": "User for the command: a name or number, optionally followed by a colon and a group",
                "type": "string",
                "examples": ["1000:100"],
            }),
        ),
        (
            "workdir".to_owned(),
            json!({
                "description": "Working directory of the command in the guest",
                "type": "string",
                "examples": ["/tmp"],
            }),
        ),
        (
            "ip".to_owned(),
            json!({
                "description": "Network of the first card, configured before the command: dhcp, or ADDRESS/LENGTH \
                    followed by a comma-separated list of gateway=ADDRESS, dns=ADDRESS and, for dhcp, timeout=TIME",
                "type": "string",
                "examples": ["dhcp"],
            }),
        ),
        (
            "assert_boot".to_owned(),
            json!({
                "description": "How long the guest may take to reach its init; a number is in seconds",
                "type": ["string", "number"],
                "examples": ["150ms"],
            }),
        ),
    ]
}

fn regexes(about: &str) -> Value {
    json!({
        "description": about,
        "type": "array",
        "items": { "type": "string", "format": "regex", "minLength": 1 },
        "examples": [["ready in \\d+ ms"]],
    })
}

#[cfg(test)]
mod tests {
    use super::super::Looks;
    use super::*;

    #[test]
    fn every_key_of_a_case_is_in_the_schema_and_those_of_the_command_are_not() {
        let schema = schema();
        let case = schema["properties"]["case"]["items"]["properties"].as_object().unwrap();
        for key in Looks::KEYS.iter().chain(&["name", "kernel", "cpus", "timeout"]) {
            assert!(case.contains_key(*key), "{key}");
        }
        for (key, _) in OF_THE_COMMAND {
            assert!(!case.contains_key(key), "{key}");
        }
        assert_eq!(schema["properties"]["matrix"]["properties"]["cpus"]["type"], "array");
    }
}

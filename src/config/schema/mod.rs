//! The JSON Schema of the config file, generated from the list of settings. Its tests compare it with the
//! types that parse the file.

use serde_json::{Map, Value, json};

use super::RawConfig;

/// Returns the schema, in JSON Schema 2020-12. It describes the form of each field; `coracle config check`
/// also checks the ranges of sizes and times, and whether files can be used.
pub fn schema() -> Value {
    let properties: Map<String, Value> =
        RawConfig::properties().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A virtual machine of Coracle",
        "description": "The config file of `coracle run`. Flags override it. Relative paths are taken from the \
                        folder that the file is in.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

#[cfg(test)]
mod tests;

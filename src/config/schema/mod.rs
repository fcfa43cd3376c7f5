//! The JSON Schema of the config file, from the one list of settings; its tests hold it against the types
//! that read the file.

use serde_json::{Map, Value, json};

use super::RawConfig;

/// The schema, in JSON Schema 2020-12. It says the form of each field; ranges of sizes and times, and whether
/// files can be used, are for `coracle config check`.
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

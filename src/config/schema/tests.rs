//! Compares the schema with the types that parse the file.

use std::path::Path;

use coracle_arch::field;
use serde::de::{Deserialize, Deserializer, Error, Visitor, value};

use super::*;

/// A deserializer that only records which fields a struct asks for.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
        Err(value::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, value::Error> {
        self.0.extend(fields);
        Err(value::Error::custom("the names are known"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn read(field: &str, value: &Value) -> Result<RawConfig, String> {
    let text = json!({ field: value }).to_string();
    RawConfig::from_json(text.as_bytes()).map_err(|fault| fault.to_string())
}

#[test]
fn schema_has_the_fields_of_the_file_in_their_order() {
    let mut fields = Vec::new();
    RawConfig::deserialize(FieldNames(&mut fields)).unwrap_err();
    let described: Vec<_> = RawConfig::properties().into_iter().map(|(name, _)| name).collect();
    assert_eq!(described, fields);
}

#[test]
fn schema_and_file_refuse_unknown_fields() {
    assert_eq!(schema()["additionalProperties"], json!(false));
    assert!(read("surprise", &json!(1)).is_err());
}

#[test]
fn every_example_is_taken_and_sets_its_field() {
    for (name, property) in RawConfig::properties() {
        let examples = property["examples"].as_array().unwrap();
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            assert_ne!(read(name, example), Ok(RawConfig::default()), "{name}: {example}");
        }
        assert!(property["description"].as_str().is_some_and(|about| !about.is_empty()), "{name}");
    }
}

#[test]
fn every_type_that_the_schema_does_not_allow_is_refused() {
    let kinds = [
        ("string", json!("")),
        ("number", json!(1.5)),
        ("integer", json!(1)),
        ("boolean", json!(true)),
        ("array", json!([])),
        ("object", json!({})),
    ];
    for (name, property) in RawConfig::properties() {
        let allowed = match &property["type"] {
            // An enumeration of strings.
            Value::Null => vec!["string"],
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            kind => kind.as_str().into_iter().collect(),
        };
        for (kind, value) in &kinds {
            let is_number = *kind == "integer" && allowed.contains(&"number");
            if !allowed.contains(kind) && !is_number {
                assert!(read(name, value).is_err(), "{name}: {value} is accepted, but is not {allowed:?}");
            }
        }
    }
}

/// Tries a value of each kind for each key: whatever the schema does not allow is refused, and every listed
/// choice is accepted.
#[test]
fn keys_of_objects_are_those_of_the_file() {
    let kinds = [
        ("string", json!("x")),
        ("number", json!(1.5)),
        ("integer", json!(1)),
        ("boolean", json!(true)),
        ("array", json!([])),
        ("object", json!({})),
    ];
    let mut objects = 0;
    for (name, property) in RawConfig::properties() {
        let (form, is_list) = match property.get("items") {
            Some(items) => (items, true),
            None => (&property, false),
        };
        let Some(object) = form.get("oneOf").map(|forms| &forms[1]) else { continue };
        objects += 1;
        assert_eq!(object["additionalProperties"], json!(false), "{name}");
        let needed = object.get("required").and_then(|names| names[0].as_str());
        for (key, schema) in object["properties"].as_object().unwrap() {
            let allowed = match &schema["type"] {
                Value::Null => vec!["string"],
                Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                kind => kind.as_str().into_iter().collect(),
            };
            let of = |value: &Value| {
                let mut one = json!({});
                if let Some(needed) = needed.filter(|needed| needed != key) {
                    one[needed] = json!("a");
                }
                one[key] = value.clone();
                read(name, &if is_list { json!([one]) } else { one })
            };
            for (kind, value) in &kinds {
                let is_number = *kind == "integer" && allowed.contains(&"number");
                if !allowed.contains(kind) && !is_number {
                    let fault = of(value).unwrap_err();
                    assert!(fault.contains(&format!("{key}: invalid type")), "{name}: {fault}");
                }
            }
            for word in schema["enum"].as_array().into_iter().flatten() {
                assert!(of(word).is_ok(), "{name}: {key}: {word}");
            }
        }
    }
    assert_eq!(objects, 5);
}

#[test]
fn limits_and_choices_are_those_of_the_file() {
    for (name, property) in RawConfig::properties() {
        if let (Some(least), Some(most)) = (property["minimum"].as_u64(), property["maximum"].as_u64()) {
            assert!(read(name, &json!(least)).is_ok() && read(name, &json!(most)).is_ok(), "{name}");
            assert!(
                read(name, &json!(least - 1)).is_err() && read(name, &json!(most + 1)).is_err(),
                "{name}"
            );
        }
        if property.get("enum").is_some() || property.get("pattern").is_some() {
            assert!(read(name, &json!("no such word")).is_err(), "{name}");
        }
    }
}

#[test]
fn flags_win_and_relative_paths_move_for_every_field() {
    let folder = Path::new("/folder/of/the/file");
    for (name, property) in RawConfig::properties() {
        let told = read(name, &property["examples"][0]).unwrap();
        assert_eq!(told.clone().over(RawConfig::default()), told, "{name} is lost from the flags");
        assert_eq!(RawConfig::default().over(told.clone()), told, "{name} is lost from the file");
        assert_eq!(told.clone().relative_to(folder) != told, PATHS.contains(&name), "{name}");
    }
    let nets = read("nets", &json!(["socket=net", "tap=tap0"])).unwrap().relative_to(folder);
    assert_eq!(nets, read("nets", &json!(["socket=/folder/of/the/file/net", "tap=tap0"])).unwrap());
    let serial = read("serial", &json!("socket=console")).unwrap().relative_to(folder);
    assert_eq!(serial, read("serial", &json!("socket=/folder/of/the/file/console")).unwrap());
}

#[test]
fn fields_that_errors_name_are_settings() {
    // What the library alone has is not in the list.
    for field in field::ALL.iter().filter(|field| **field != field::LEASE_LIMIT) {
        assert!(RawConfig::NAMES.contains(&field.setting()), "{field} is not a setting");
    }
}

/// The fields that contain paths.
const PATHS: [&str; 7] = ["kernel", "initrds", "root", "modules", "disks", "vsock", "outcome"];

//! The properties of a setting's type: how it is deserialized from a config file, its schema, and the paths
//! in it. A new type needs one line: here, or, if it has keys, in its own file.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
use serde_json::{Value, json};

use super::written::{Form, Time, written};
use super::{
    Accel, AcpiMode, ConsoleDevice, CpuAffinity, CpuModel, CpuQuota, HaltPolicy, KernelProtocol,
    MemoryConfig, ResetPolicy, RtcMode, Timeout, VcpuCount,
};

/// A type of settings in a config file.
pub(super) trait Setting: Sized {
    /// The type that deserializes it: itself, unless its serde representation differs.
    type Read: DeserializeOwned + Into<Self>;

    /// Returns its JSON Schema, without a description.
    fn form() -> Value;

    /// Calls `change` with every path in the value.
    fn each_path(&mut self, change: &mut dyn FnMut(&mut PathBuf)) {
        let _ = change;
    }
}

/// Deserializes a setting; `null` counts as not given. No file can have a path with a NUL character, so such
/// a path is refused.
pub(super) fn read<'de, T: Setting, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let mut value: Option<T> = Option::<T::Read>::deserialize(from)?.map(Into::into);
    let mut refused = None;
    each_path(&mut value, &mut |path| {
        if path.as_os_str().as_bytes().contains(&0) {
            refused.get_or_insert_with(|| path.clone());
        }
    });
    match refused {
        None => Ok(value),
        Some(path) => Err(D::Error::custom(format!(
            "the path `{}` contains a NUL character: write it without that character",
            path.display()
        ))),
    }
}

/// Calls `change` with every path in a setting, if it is given.
pub(super) fn each_path<T: Setting>(told: &mut Option<T>, change: &mut dyn FnMut(&mut PathBuf)) {
    if let Some(value) = told {
        value.each_path(change);
    }
}

/// Returns the schema's property for a setting.
pub(super) fn property(mut form: Value, about: &str, examples: Vec<Value>) -> Value {
    if let Some(form) = form.as_object_mut() {
        form.insert("description".to_owned(), about.into());
        form.insert("examples".to_owned(), examples.into());
    }
    form
}

/// Implements [`Setting`]: `setting!(TYPE as FORM IN JSON, SCHEMA)` for a type that is parsed by its
/// `FromStr`, `setting!(TYPE, SCHEMA)` for one with a serde representation, and `setting!(TYPE keyed KEYED
/// TYPE, SCHEMA OF TEXT)` for one that can also be an object; each with `|value, change| ...` if it contains
/// paths.
macro_rules! setting {
    ($type:ident as $json:expr, $($rest:tt)+) => {
        written!($type, $json);
        setting!($type, $($rest)+);
    };
    ($type:ident keyed $keyed:ident, $text:expr $(, |$value:ident, $change:ident| $paths:expr)?) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::config::keyed::read::<$type, $keyed, D>(from)
            }
        }
        setting!($type, $crate::config::keyed::form::<$keyed>(&$text) $(, |$value, $change| $paths)?);
    };
    ($type:ty, $form:expr $(, |$value:ident, $change:ident| $paths:expr)?) => {
        impl $crate::config::setting::Setting for $type {
            type Read = Self;

            fn form() -> serde_json::Value {
                $form
            }

            $(
                fn each_path(&mut self, $change: &mut dyn FnMut(&mut std::path::PathBuf)) {
                    let $value = self;
                    $paths
                }
            )?
        }
    };
}

pub(super) use setting;

setting!(Accel as Form::Text, choice(&["auto", "kvm", "emulate"]));
setting!(AcpiMode as Form::Text, choice(&["on", "off"]));
setting!(ConsoleDevice as Form::Text, choice(&["serial", "virtio"]));
setting!(HaltPolicy as Form::Text, choice(&["wait", "exit"]));
setting!(KernelProtocol as Form::Text, choice(&["auto", "linux", "pvh"]));
setting!(ResetPolicy as Form::Text, choice(&["exit", "reboot"]));
setting!(RtcMode as Form::Text, choice(&["auto", "on", "off"]));
setting!(bool, json!({ "type": "boolean" }));
setting!(String, text());
setting!(PathBuf, text(), |path, change| change(path));
setting!(VcpuCount as Form::Number, json!({ "type": "integer", "minimum": 1, "maximum": VcpuCount::MAX }));
setting!(CpuAffinity, pattern(r"^[0-9][0-9,=-]*$"));
setting!(CpuQuota as Form::TextOrNumber, quantity(r"^[0-9]+%?$"));
setting!(MemoryConfig as Form::TextOrNumber, quantity(r"^([0-9]+[KMGTkmgt]?([Ii]?[Bb])?|size=.+)$"));
setting!(Timeout as Form::TextOrNumber, quantity(r"^(none|[0-9]*\.?[0-9]*(ms|s|m|min|h)?)$"));
setting!(CpuModel, text(), |cpu, change| {
    if let CpuModel::Template(path) = cpu {
        change(path);
    }
});

impl Setting for Duration {
    type Read = Time;

    fn form() -> Value {
        quantity(r"^[0-9]*\.?[0-9]*(ms|s|m|min|h)?$")
    }
}

impl<T: Setting + DeserializeOwned> Setting for Vec<T> {
    type Read = Self;

    fn form() -> Value {
        json!({ "type": "array", "items": T::form() })
    }

    fn each_path(&mut self, change: &mut dyn FnMut(&mut PathBuf)) {
        self.iter_mut().for_each(|value| value.each_path(change));
    }
}

pub(super) fn text() -> Value {
    json!({ "type": "string" })
}

pub(super) fn pattern(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

/// Returns the schema of text with a unit, or a number. The pattern applies to the text only.
fn quantity(pattern: &str) -> Value {
    json!({ "type": ["string", "number"], "pattern": pattern })
}

fn choice(words: &[&str]) -> Value {
    json!({ "enum": words })
}

//! Values with keys, such as a disk: one table of keys serves both the text of a flag (`PATH,key=value,flag`)
//! and an object in a config file (`{"path": "a.img", "ro": true}`). In an object, hyphens in keys become
//! underscores.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde_json::{Map, Value, json};

use super::ConfigError;
use super::nearest::nearest;
use super::words::{Word, once};

/// A key of a value.
#[derive(Debug)]
pub(super) struct Key {
    /// The key's name in text.
    pub name: &'static str,
    /// The kind of its JSON value.
    pub kind: Kind,
    /// The description for the schema.
    pub about: &'static str,
}

/// The key of the id of a device.
pub(super) const ID: Key = Key {
    name: "id",
    kind: Kind::Text,
    about: "Id of the device in snapshots and forks: 1 to 32 characters out of a to z, 0 to 9, _ and -",
};

/// The JSON values that a key accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`; in text, the key alone.
    Flag,
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// A string with a unit, or a number.
    Quantity,
    /// A string out of this list.
    Choice(&'static [&'static str]),
}

/// A value that has keys.
pub(super) trait Keyed: Sized {
    /// The state of the value while its keys are read.
    type Draft;

    /// All keys, in the order of the documentation.
    const KEYS: &'static [Key];

    /// The keys of which an object needs one; empty if it needs none.
    const NEEDS: &'static [&'static str];

    /// Creates a value without any entries.
    fn draft() -> Self::Draft;

    /// Applies an entry. Returns `None` if the entry is unknown or contradicts earlier ones.
    fn set(draft: &mut Self::Draft, word: &Word) -> Option<Result<(), ConfigError>>;

    /// Creates the error for an entry that was refused.
    fn refused(word: &str) -> ConfigError;

    /// Completes the value.
    ///
    /// # Errors
    /// A required key is missing.
    fn finish(draft: Self::Draft) -> Result<Self, ConfigError>;
}

/// Applies the entries of a list to `draft`.
///
/// # Errors
/// An entry is unknown, repeated, or contradicts earlier ones, or a required key is missing.
pub(super) fn with_words<T: Keyed>(mut draft: T::Draft, words: Vec<Word>) -> Result<T, ConfigError> {
    for word in once(words).map_err(|word| T::refused(&word))? {
        take::<T>(&mut draft, &word)?;
    }
    T::finish(draft)
}

fn take<T: Keyed>(draft: &mut T::Draft, word: &Word) -> Result<(), ConfigError> {
    T::set(draft, word).unwrap_or_else(|| Err(T::refused(&word.text)))
}

/// Returns what an error adds if an unknown key is similar to a known one.
pub(super) fn meant<T: Keyed>(word: &str) -> String {
    let key = word.split('=').next().unwrap_or_default();
    let known: Vec<String> = T::KEYS.iter().map(|key| key.name.to_owned()).collect();
    if known.iter().any(|name| name == key) {
        return String::new();
    }
    nearest(key, known).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default()
}

/// Returns the schema of a value that is either text of the form `text` or an object.
pub(super) fn form<T: Keyed>(text: &Value) -> Value {
    let properties: Map<String, Value> = T::KEYS.iter().map(|key| (key.in_json(), key.schema())).collect();
    let needs = match T::NEEDS {
        [] => json!({}),
        [one] => json!({ "required": [one] }),
        several => {
            let each: Vec<Value> = several.iter().map(|name| json!({ "required": [name] })).collect();
            json!({ "oneOf": each })
        }
    };
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let (Some(object), Value::Object(needs)) = (object.as_object_mut(), needs) {
        object.extend(needs);
    }
    json!({ "type": ["string", "object"], "oneOf": [text, object] })
}

impl Key {
    fn in_json(&self) -> String {
        self.name.replace('-', "_")
    }

    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Text => json!({ "type": "string" }),
            Kind::Number => json!({ "type": "integer" }),
            Kind::Quantity => json!({ "type": ["string", "number"] }),
            Kind::Choice(words) => json!({ "enum": words }),
        };
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("description".to_owned(), self.about.into());
        }
        schema
    }
}

/// Deserializes a `T` from text as on the command line, or a `K` from an object.
pub(super) fn read<'de, T, K, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display> + From<K>,
    K: Keyed,
    D: Deserializer<'de>,
{
    from.deserialize_any(TextOrObject(PhantomData))
}

struct TextOrObject<T, K>(PhantomData<(T, K)>);

impl<'de, T: FromStr<Err: Display> + From<K>, K: Keyed> Visitor<'de> for TextOrObject<T, K> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<T, A::Error> {
        let (mut draft, mut seen) = (K::draft(), Vec::new());
        while let Some(name) = object.next_key::<String>()? {
            object.next_value_seed(Entry::<K> { name, draft: &mut draft, seen: &mut seen })?;
        }
        if !K::NEEDS.is_empty() && !K::NEEDS.iter().any(|needed| seen.contains(needed)) {
            let names: Vec<String> = K::NEEDS.iter().map(|name| format!("`{name}`")).collect();
            return Err(A::Error::custom(format!("the object lacks {}", names.join(" or "))));
        }
        K::finish(draft).map(T::from).map_err(A::Error::custom)
    }
}

/// The value of one key of an object.
struct Entry<'a, K: Keyed> {
    name: String,
    draft: &'a mut K::Draft,
    seen: &'a mut Vec<&'static str>,
}

impl<'de, K: Keyed> DeserializeSeed<'de> for Entry<'_, K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let Entry { name, draft, seen } = self;
        let Some(key) = K::KEYS.iter().find(|key| key.in_json() == name) else {
            let known: Vec<String> = K::KEYS.iter().map(Key::in_json).collect();
            let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let near =
                nearest(&name, known).map_or_else(|| format!("there are {list}"), |near| did_you_mean(&near));
            return Err(D::Error::custom(format!("unknown field `{name}`: {near}")));
        };
        if seen.contains(&key.name) {
            return Err(D::Error::custom(format!("duplicate field `{name}`")));
        }
        seen.push(key.name);
        match from.deserialize_any(KeyValue(key))? {
            Some(word) => take::<K>(draft, &word).map_err(D::Error::custom),
            None => Ok(()),
        }
    }
}

/// Returns the question that follows an unknown name.
pub(super) fn did_you_mean(near: &str) -> String {
    format!("did you mean `{near}`?")
}

/// Converts a key's value to the entry that it would be in text; `None` for `false` and `null`, which have no
/// entry.
struct KeyValue(&'static Key);

impl KeyValue {
    fn entry<E: Error>(
        &self,
        takes: bool,
        value: impl Display,
        found: Unexpected<'_>,
    ) -> Result<Option<Word>, E> {
        if takes {
            Ok(Some(Word::pair(self.0.name, &value.to_string())))
        } else {
            Err(E::invalid_type(found, self))
        }
    }

    fn takes_text(&self) -> bool {
        matches!(self.0.kind, Kind::Text | Kind::Quantity | Kind::Choice(_))
    }

    fn takes_number(&self) -> bool {
        matches!(self.0.kind, Kind::Number | Kind::Quantity)
    }
}

impl Visitor<'_> for KeyValue {
    type Value = Option<Word>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind {
            Kind::Flag => f.write_str("true or false"),
            Kind::Text => f.write_str("a string"),
            Kind::Number => f.write_str("a whole number"),
            Kind::Quantity => f.write_str("a string or a number"),
            Kind::Choice(words) => write!(f, "one of {}", words.join(", ")),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Word>, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Option<Word>, E> {
        match self.0.kind {
            Kind::Flag => Ok(yes.then(|| Word::flag(self.0.name))),
            _ => Err(E::invalid_type(Unexpected::Bool(yes), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<Word>, E> {
        self.entry(self.takes_text(), text, Unexpected::Str(text))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<Word>, E> {
        self.entry(self.takes_number(), number, Unexpected::Unsigned(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<Word>, E> {
        self.entry(self.takes_number(), number, Unexpected::Signed(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Option<Word>, E> {
        self.entry(self.0.kind == Kind::Quantity, number, Unexpected::Float(number))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{DiskConfig, NetChoice, RawConfig, RootConfig, SerialConfig, VsockConfig};

    fn read(json: &str) -> Result<RawConfig, String> {
        RawConfig::from_json(json.as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn object_is_what_its_text_is() {
        let disks = |json: &str| read(&format!("{{\"disks\": [{json}]}}")).unwrap().disks.unwrap();
        for (object, text) in [
            (r#"{"path": "a.img"}"#, "a.img"),
            (r#"{"path": "a.img", "readonly": true}"#, "path=a.img,ro"),
            (r#"{"ro": true, "path": "a,b=c"}"#, "a,,b=c,ro"),
            (
                r#"{"path": "a", "cow": true, "cow_size": "64M", "on_error": "pause"}"#,
                "a,cow,cow-size=64M,on-error=pause",
            ),
            (r#"{"path": "a", "ro": false, "cow_size": 64, "id": null}"#, "a,cow-size=64"),
            (
                r#"{"path": "a", "engine": "io_uring", "poll": 50, "queues": 4, "serial": "x,y"}"#,
                "a,engine=io_uring,poll=50us,queues=4,serial=x,,y",
            ),
        ] {
            assert_eq!(disks(object), [text.parse::<DiskConfig>().unwrap()], "{object}");
            assert_eq!(disks(&format!("{text:?}")), disks(object));
        }
        let raw = read(
            r#"{"nets": [{"mac": "02:00:00:00:00:07", "socket": "/run/n", "mtu": 9000, "poll": "off"},
                         {"tap": "t"}, {"fd": 3}],
                "vsock": {"cid": 9, "uds": "v,sock"},
                "root": {"path": "r.img", "cow_size": "1M", "as": "disk", "keep_ids": true},
                "serial": {"file": "a,b", "limit": "none"}}"#,
        )
        .unwrap();
        let nets = ["socket=/run/n,mac=02:00:00:00:00:07,mtu=9000,poll=off", "tap=t", "fd=3"];
        assert_eq!(raw.nets.unwrap(), nets.map(|text| text.parse::<NetChoice>().unwrap()));
        assert_eq!(raw.vsock, Some("cid=9,uds=v,,sock".parse::<VsockConfig>().unwrap()));
        assert_eq!(raw.root, Some("r.img,cow-size=1M,as=disk,keep-ids".parse::<RootConfig>().unwrap()));
        assert_eq!(raw.serial, Some("file=a,,b,limit=none".parse::<SerialConfig>().unwrap()));
        let raw = read(r#"{"serial": {"socket": "s"}, "vsock": {}}"#).unwrap();
        assert_eq!(
            (raw.serial, raw.vsock),
            (Some(SerialConfig::Socket("s".into())), Some(VsockConfig::default()))
        );
    }

    #[test]
    fn fault_of_an_object_names_the_key() {
        for (json, said) in [
            (
                r#"{"disks": ["a", {"path": "b", "redonly": true}]}"#,
                "1: disks[1].redonly: there is no such field; did you mean `readonly`?",
            ),
            (
                r#"{"disks": [{"path": "b", "cow-size": 1}]}"#,
                "1: disks[0].cow-size: there is no such field; did you mean `cow_size`?",
            ),
            (
                r#"{"vsock": {"port": 3}}"#,
                "1: vsock.port: there is no such field; there are `uds`, `cid`, `id`",
            ),
            (r#"{"disks": [{"ro": true}]}"#, "1: disks[0]: the object lacks `path`"),
            (r#"{"nets": [{"mtu": 9000}]}"#, "1: nets[0]: the object lacks `tap` or `fd` or `socket`"),
            (
                "{\"disks\": [{\"path\": \"b\",\n \"ro\": \"yes\"}]}",
                "2: disks[0].ro: invalid type: string \"yes\", expected true or false",
            ),
            (r#"{"disks": [{"path": 5}]}"#, "1: disks[0].path: invalid type: integer `5`, expected a string"),
            (
                r#"{"disks": [{"path": "a", "queues": "2"}]}"#,
                "1: disks[0].queues: invalid type: string \"2\", expected a whole number",
            ),
            (r#"{"disks": [{"path": "a", "path": "b"}]}"#, "1: disks[0].path: duplicate field `path`"),
        ] {
            assert_eq!(read(json).unwrap_err(), said, "{json}");
        }
        for (json, field, words) in [
            (
                r#"{"disks": [{"path": "a", "queues": 17}]}"#,
                "disks[0].queues",
                "`queues=17` does not go with a disk",
            ),
            (r#"{"disks": [{"path": ""}]}"#, "disks[0].path", "names no disk"),
            (
                r#"{"disks": [{"path": "a", "ro": true, "cow": true}]}"#,
                "disks[0].cow",
                "`cow` does not go with a disk",
            ),
            (r#"{"disks": [{"path": "a", "cow_size": 0}]}"#, "disks[0].cow_size", "`0` is zero"),
            (r#"{"nets": [{"tap": "t", "fd": 3}]}"#, "nets[0].fd", "`fd=3` does not go with a network card"),
            (r#"{"nets": [{"tap": "a/b"}]}"#, "nets[0].tap", "`tap=a/b` is not the end of a network card"),
            (r#"{"vsock": {"cid": 2}}"#, "vsock.cid", "guest address (CID)"),
            (r#"{"serial": {"socket": "s", "limit": "1M"}}"#, "serial.limit", "`limit=1M` does not go with"),
            (r#"{"serial": {"file": "s", "socket": "s"}}"#, "serial.socket", "`socket=s` does not go with"),
            (r#"{"root": {"path": "r", "as": "ram"}}"#, "root.as", "`as=ram` does not go with a root"),
        ] {
            let said = read(json).unwrap_err();
            assert!(said.starts_with(&format!("1: {field}: ")) && said.contains(words), "{json}: {said}");
        }
    }

    #[test]
    fn near_key_is_meant_in_text_too() {
        for (told, near) in [
            ("a,redonly".parse::<DiskConfig>().map(drop), Some("readonly")),
            ("a,cow_size=1".parse::<DiskConfig>().map(drop), Some("cow-size")),
            ("a,queues=17".parse::<DiskConfig>().map(drop), None),
            ("a,keep-id".parse::<RootConfig>().map(drop), Some("keep-ids")),
            ("tap=t,mtv=9000".parse::<NetChoice>().map(drop), Some("mtu")),
            ("cidd=3".parse::<VsockConfig>().map(drop), Some("cid")),
            ("file=a,limt=1M".parse::<SerialConfig>().map(drop), Some("limit")),
        ] {
            let said = told.unwrap_err().to_string();
            let meant = near.map(|near| format!("did you mean `{near}`?"));
            assert!(meant.map_or(!said.contains("did you"), |meant| said.contains(&meant)), "{said}");
        }
    }
}

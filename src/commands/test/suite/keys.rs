//! Keys of a suite that nobody knows: each is an error that names its table and its line, before the tables are
//! merged into cases, which have the keys of several.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::schema::schema;
use super::{LOOKS, OF_THE_COMMAND};

/// What is wrong with the first such key of a suite; `None` for what is not TOML, too.
pub(super) fn unknown(text: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let document = document.get_ref();
    let known = known();
    let cases = document.get("case").and_then(|cases| cases.get_ref().as_array());
    let named = cases.into_iter().flatten().filter_map(|case| Some((title(case.get_ref()), table(case)?)));
    let shared = ["defaults", "matrix"].into_iter();
    let shared = shared.filter_map(|name| Some((format!("[{name}]"), table(document.get(name)?)?)));
    shared.chain(named).find_map(|(title, table)| {
        let is_unknown = |key: &&Spanned<_>| {
            let key: &str = AsRef::<str>::as_ref(Spanned::get_ref(key));
            !known.iter().any(|known| known == key) && !OF_THE_COMMAND.contains(&key)
        };
        // Of several, the first in the file.
        let key = table.keys().filter(is_unknown).min_by_key(|key| key.span().start)?;
        let line = text.get(..key.span().start)?.matches('\n').count() + 1;
        let list = known.join(", ");
        Some(format!("line {line}: {title} has no key `{}`; its keys are {list}", key.get_ref()))
    })
}

/// The keys of a case, as the schema has them.
fn known() -> Vec<String> {
    let case = schema()["properties"]["case"]["items"]["properties"].take();
    let keys = case.as_object().into_iter().flat_map(|properties| properties.keys().cloned());
    let mut keys: Vec<String> = keys.collect();
    // Those that only a suite has come first.
    keys.sort_by_key(|key| (key != "name", !LOOKS.contains(&key.as_str()), key.clone()));
    keys
}

fn table<'a, 'text>(value: &'a Spanned<DeValue<'text>>) -> Option<&'a DeTable<'text>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// How a case is called in a sentence.
fn title(case: &DeValue<'_>) -> String {
    let name = case.get("name").and_then(|name| name.get_ref().as_str());
    name.map_or_else(|| "a case without a name".to_owned(), |name| format!("case '{name}'"))
}

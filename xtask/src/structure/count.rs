//! How many files name a device or an ending: these are the files that a change to it, or the addition of a
//! similar one, has to touch.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Args;

use super::names::{self, Name};
use super::ratchet::{Ratchet, Verdicts};
use super::sources::Source;

/// The device or ending to count.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct CountArguments {
    /// A device, as in `balloon`
    pub(crate) name: Option<String>,
    /// An ending, by its name in `Ending`, as in `Halted`
    #[arg(long)]
    pub(crate) ending: Option<String>,
}

/// The limit for a device with a flag and a field of the configuration: the list of settings, its type, and
/// the two files that open and attach it.
const MAX_FILES: usize = 4;

/// The limit for a device with a handle for programs: in addition, the file that returns the handle, and the
/// type that holds it.
const MAX_FILES_WITH_HANDLE: usize = 6;

/// The devices, with the number of files that may name each.
const DEVICES: &[(&str, usize)] =
    &[("balloon", MAX_FILES_WITH_HANDLE), ("vsock", MAX_FILES_WITH_HANDLE), ("rng", MAX_FILES)];

/// Devices that more files name; CONTRIBUTING.md says why. The numbers may only decrease.
const MORE_FILES: &[Ratchet] = &[Ratchet { name: "vsock", most: 11 }];

/// The limit for an ending: the file of `Ending`, which has its exit code, message and kind, and the code
/// that creates it. The time limits are watched in two places, and that of a command in a third.
const MAX_FILES_OF_ENDING: usize = 4;

/// The file that defines the endings.
const ENDINGS_PATH: &str = "src/ending/mod.rs";

/// The crates of which a machine consists. The agent runs on the other side of the devices.
const CRATES: &[&str] = &["src/", "cli/src/", "devices/src/", "arch/src/", "image/src/"];

/// The lines of each file that name something.
type Places = BTreeMap<String, Vec<usize>>;

/// Checks each device and each ending against its limit.
///
/// # Errors
/// A file is not valid Rust.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) -> Result<()> {
    let names = read(sources)?;
    for (device, limit) in DEVICES {
        let files = device_places(&names, device).len();
        let listed = MORE_FILES.iter().find(|listed| listed.name == *device);
        verdicts.judge(&format!("device {device}"), "files", files, *limit, listed);
    }
    for ending in endings(sources)? {
        let files = ending_places(&names, &ending).len();
        verdicts.judge(&format!("Ending::{ending}"), "files", files, MAX_FILES_OF_ENDING, None);
    }
    Ok(())
}

/// Prints the lines that `arguments` ask for, and the number of files.
///
/// # Errors
/// A file is not valid Rust.
pub(super) fn print(sources: &[Source], arguments: &CountArguments) -> Result<()> {
    let names = read(sources)?;
    if let Some(ending) = &arguments.ending {
        check_known("--ending", ending, &endings(sources)?)?;
    }
    let places = match (&arguments.name, &arguments.ending) {
        (_, Some(ending)) => ending_places(&names, ending),
        (name, None) => device_places(&names, name.as_deref().unwrap_or_default()),
    };
    if let Some(name) = arguments.name.as_deref().filter(|_| places.is_empty()) {
        let known: Vec<String> = DEVICES.iter().map(|(device, _)| (*device).to_owned()).collect();
        check_known("count", name, &known)?;
    }
    for (path, lines) in &places {
        lines.iter().for_each(|line| println!("{path}:{line}"));
    }
    let lines: usize = places.values().map(Vec::len).sum();
    println!("{} files, {lines} lines", places.len());
    Ok(())
}

/// Refuses a name that is not one of those that `known` lists.
fn check_known(what: &str, name: &str, known: &[String]) -> Result<()> {
    let list = known.join(", ");
    anyhow::ensure!(
        known.iter().any(|one| one == name),
        "{what} {name}: no file names it; write one of {list}"
    );
    Ok(())
}

/// Returns the names in each file of the product.
fn read(sources: &[Source]) -> Result<Vec<(&str, Vec<Name>)>> {
    let product = sources
        .iter()
        .filter(|source| CRATES.iter().any(|of| source.path.starts_with(of)) && !source.is_test());
    product
        .map(|source| {
            let names = names::of_file(&source.text).with_context(|| source.path.clone())?;
            Ok((source.path.as_str(), names))
        })
        .collect()
}

/// Returns the lines that name a device outside its own files and directories.
fn device_places(files: &[(&str, Vec<Name>)], device: &str) -> Places {
    let device = words(device);
    let others =
        files.iter().filter(|(path, _)| !path.split(['/', '.']).any(|part| has(&words(part), &device)));
    places(others, |_, name| has(&words(&name.text), &device))
}

/// Returns the lines that name a variant of `Ending`.
fn ending_places(files: &[(&str, Vec<Name>)], ending: &str) -> Places {
    places(files.iter(), |path, name| {
        let is_path = match name.within.as_deref() {
            Some("Self") | None => path == ENDINGS_PATH,
            Some(within) => within == "Ending",
        };
        is_path && name.text == ending
    })
}

fn places<'a>(
    files: impl Iterator<Item = &'a (&'a str, Vec<Name>)>,
    is_one: impl Fn(&str, &Name) -> bool,
) -> Places {
    let mut places = Places::new();
    for (path, names) in files {
        let mut lines: Vec<usize> =
            names.iter().filter(|name| is_one(path, name)).map(|name| name.line).collect();
        lines.dedup();
        if !lines.is_empty() {
            places.insert((*path).to_owned(), lines);
        }
    }
    places
}

/// Returns the variants of `Ending`.
fn endings(sources: &[Source]) -> Result<Vec<String>> {
    let source = sources.iter().find(|source| source.path == ENDINGS_PATH);
    let source = source.with_context(|| format!("{ENDINGS_PATH} is not there"))?;
    let endings = names::variants(&source.text, "Ending")?;
    anyhow::ensure!(!endings.is_empty(), "{ENDINGS_PATH} has no enum Ending");
    Ok(endings)
}

/// Splits a name into words: `VsockConfig`, `vsock_config` and `"vsock config"` have two.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut was_lower = false;
    for letter in name.chars() {
        let is_start = words.is_empty() || (letter.is_uppercase() && was_lower);
        was_lower = letter.is_lowercase() || letter.is_ascii_digit();
        if is_start || !letter.is_alphanumeric() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter.is_alphanumeric()) {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn has(words: &[String], part: &[String]) -> bool {
    !part.is_empty() && words.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn device_is_counted_outside_its_own_files_tests_and_docs() {
        let sources = [
            source("devices/src/virtio/balloon/handler.rs", "struct Balloon;"),
            source("src/virtio/balloon.rs", "struct Balloon;"),
            source("src/virtio/tests.rs", "struct Balloon;"),
            source("xtask/src/main.rs", "struct Balloon;"),
            source(
                "src/docs.rs",
                "/// A balloon.\nstruct Ballooning; // balloon\n#[cfg(test)] mod tests { fn balloon() {} }",
            ),
            source("src/one.rs", "\nuse x::BalloonConfig as balloon;\nconst BALLOON_PAGES: u8 = 0;"),
            source("cli/src/two.rs", "const NAME: &str = \"--balloon\";"),
        ];
        let places = device_places(&read(&sources).unwrap(), "balloon");
        let shown: Vec<_> = places.iter().map(|(path, lines)| format!("{path} {lines:?}")).collect();
        assert_eq!(shown, ["cli/src/two.rs [1]", "src/one.rs [2, 3]"]);
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let sources =
            [source(ENDINGS_PATH, "pub enum Ending { Halted, Reset }"), source("src/a.rs", "use x::Rng;")];
        let print = |name: Option<&str>, ending: Option<&str>| {
            let [name, ending] = [name, ending].map(|text| text.map(str::to_owned));
            print(&sources, &CountArguments { name, ending }).map_err(|error| error.to_string())
        };
        assert_eq!(print(Some("rng"), None), Ok(()));
        assert_eq!(print(None, Some("Halted")), Ok(()));
        let said = print(None, Some("halted")).unwrap_err();
        assert_eq!(said, "--ending halted: no file names it; write one of Halted, Reset");
        assert!(print(Some("nosuch"), None).unwrap_err().contains("write one of balloon, vsock, rng"));
    }

    #[test]
    fn ending_is_counted_by_its_path_and_in_its_own_file() {
        let sources = [
            source(
                ENDINGS_PATH,
                "pub enum Ending { Halted, Reset { source: By } }\nimpl Ending { fn f() { Self::Halted } }",
            ),
            source("src/vm/a.rs", "fn f() { Ending::Halted; Other::Reset }"),
        ];
        assert_eq!(endings(&sources).unwrap(), ["Halted", "Reset"]);
        let names = read(&sources).unwrap();
        assert_eq!(ending_places(&names, "Halted").len(), 2);
        assert_eq!(ending_places(&names, "Reset").into_keys().collect::<Vec<_>>(), [ENDINGS_PATH]);
    }
}

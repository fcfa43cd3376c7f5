//! Names for cases without one in a suite, and for the files of all cases. No two files have the same name.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;

use coracle::config::RawConfig;

use super::attempts::MAX_RETRIES;
use super::case::Case;

/// Names the only case after its kernel, else its root, else its initrds, with its command appended.
pub(crate) fn default_name(raw: &RawConfig, command: &[OsString]) -> String {
    let guest = match (&raw.kernel, &raw.root, &raw.initrds) {
        (Some(kernel), _, _) => Some(end_of(kernel)),
        (None, Some(root), _) => Some(end_of(&root.path)),
        (None, None, Some(initrds)) => {
            Some(initrds.iter().map(|path| end_of(path)).collect::<Vec<_>>().join("+"))
        }
        (None, None, None) => None,
    };
    let words = guest.into_iter().chain(command.iter().map(|word| word.to_string_lossy().into_owned()));
    let name = words.collect::<Vec<_>>().join(" ");
    match name.split_whitespace().collect::<Vec<_>>().join(" ") {
        name if name.is_empty() => "default guest".to_owned(),
        name if name.chars().count() > NAME_CHARS => {
            name.chars().take(NAME_CHARS).chain("...".chars()).collect()
        }
        name => name,
    }
}

/// Returns the last component of a path, by which people recognize a file.
fn end_of(path: &Path) -> String {
    path.file_name().map_or(Cow::Borrowed("/"), OsStr::to_string_lossy).into_owned()
}

/// Returns the name of the console log of a run, after `earlier` runs.
pub(crate) fn log_name(file_name: &str, earlier: usize) -> String {
    let run = if earlier == 0 { String::new() } else { format!("{RETRY}{earlier}") };
    format!("{file_name}{run}.log")
}

/// Gives each case a unique name for its files. The names of several cases may yield the same file name, and
/// that of one case may equal that of another's retry.
pub(crate) fn name_files(cases: &mut [Case]) {
    let mut taken = HashSet::new();
    // Maps a name to the last number that was appended to it.
    let mut numbers: HashMap<String, u32> = HashMap::new();
    for case in cases {
        let plain = file_name(&case.name);
        let number = numbers.entry(plain.clone()).or_default();
        case.file_name = loop {
            *number += 1;
            let name = if *number == 1 { plain.clone() } else { format!("{plain}-{number}") };
            // Some file systems do not distinguish upper and lower case.
            let key = name.to_lowercase();
            if is_free(&key, &taken) {
                taken.insert(key);
                break name;
            }
        };
    }
}

/// Returns whether neither this name nor that of one of its retries is that of another case or its retry.
fn is_free(name: &str, taken: &HashSet<String>) -> bool {
    let is_retry_of_other = name.rsplit_once(RETRY).is_some_and(|(other, number)| {
        number.parse().is_ok_and(|number: u8| number <= MAX_RETRIES) && taken.contains(other)
    });
    let mut retries = (1..=MAX_RETRIES).map(|number| format!("{name}{RETRY}{number}"));
    !taken.contains(name) && !is_retry_of_other && !retries.any(|retry| taken.contains(&retry))
}

/// Turns the name of a case into a file name, which cannot lead out of its directory.
fn file_name(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
    let words = name.split(|c| !is_plain(c)).filter(|word| !word.is_empty());
    let mut name: String = words.collect::<Vec<_>>().join("_").chars().take(NAME_CHARS).collect();
    name.truncate(name.floor_char_boundary(NAME_BYTES));
    if name.is_empty() || name.starts_with('.') { format!("_{name}") } else { name }
}

/// Separates the name of a file from the number of the retry.
const RETRY: &str = ".retry-";
const NAME_CHARS: usize = 60;
/// File systems allow 255 bytes; a number, a retry and `.log` need some of them.
const NAME_BYTES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        let mut cases: Vec<Case> = names.iter().map(|name| Case::sample(name)).collect();
        name_files(&mut cases);
        cases.into_iter().map(|case| case.file_name).collect()
    }

    #[test]
    fn names_of_cases_make_names_of_files() {
        assert_eq!(file_name("boots [cpus=4]"), "boots_cpus=4");
        assert_eq!(file_name("../../etc/passwd"), "_.._.._etc_passwd");
        for letter in ["ä", "𐐀"] {
            let name = format!("{}-10000", file_name(&letter.repeat(1000)));
            assert!(log_name(&name, MAX_RETRIES.into()).len() < 255);
        }
    }

    #[test]
    fn no_case_takes_the_file_of_another() {
        let long = "long ".repeat(20);
        let files = files(&["a b", "a_b", "A b", "a b-2", "a-b", &format!("{long}1"), &format!("{long}2")]);
        assert_eq!(files[..5], ["a_b", "a_b-2", "A_b-3", "a_b-2-2", "a-b"]);
        assert_eq!(files[6], format!("{}-2", files[5]));
    }

    #[test]
    fn no_case_takes_the_file_of_a_retry() {
        for names in [
            &["x", "x.retry-1"][..],
            &["x.retry-1", "x"],
            &["x.Retry-10", "X", "x"],
            &["x", "x.retry", "x:retry", "x_retry", "x.retry:"],
            &["x.retry-1.retry-1", "x.retry-1", "x"],
            &["x", "x.retry-01", "x.retry-+1"],
        ] {
            let logs = files(names);
            let logs = logs.iter().flat_map(|file| (0..=10).map(|run| log_name(file, run).to_lowercase()));
            let all: Vec<String> = logs.collect();
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{names:?}: {all:?}");
        }
        assert_eq!(files(&["x.retry-11", "x"]), ["x.retry-11", "x"]);
    }

    #[test]
    fn case_without_a_name_has_that_of_what_it_runs() {
        let name = |json: &str, command: &[&str]| {
            let raw = serde_json::from_str(json).unwrap();
            default_name(&raw, &command.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert_eq!(name("{}", &[]), "default guest");
        assert_eq!(name(r#"{"kernel": "a/bzImage", "root": "b/fs.tar"}"#, &[]), "bzImage");
        assert_eq!(name(r#"{"root": "b/fs.tar,rw"}"#, &[]), "fs.tar");
        assert_eq!(name(r#"{"root": "/"}"#, &["true"]), "/ true");
        assert_eq!(name(r#"{"initrds": ["a/x.cpio", "b/y.cpio"]}"#, &[]), "x.cpio+y.cpio");
        assert_eq!(name("{}", &["sh", "-c", "a\n\tb"]), "sh -c a b");
        assert_eq!(name("{}", &["echo", &"x".repeat(100)]).chars().count(), NAME_CHARS + 3);
    }
}

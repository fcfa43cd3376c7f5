//! Finds flags in the texts of the library. Its errors and hints have to name fields, by
//! `coracle_arch::field`, and the command adds the flags; another program has no flags.

use anyhow::{Context, Result};

use super::names;
use super::ratchet::Verdicts;
use super::sources::Source;

/// Looks for flags in the string literals of the library's crates.
///
/// # Errors
/// A file is not valid Rust.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) -> Result<()> {
    for source in sources.iter().filter(|source| !source.is_test() && is_library(&source.path)) {
        for name in names::of_file(&source.text).with_context(|| source.path.clone())? {
            if let Some(flag) = flag_in(&name.text) {
                verdicts.faults.push(format!(
                    "{}:{}: a text of the library has the flag {flag}; name the field instead (coracle_arch::field)",
                    source.path, name.line
                ));
            }
        }
    }
    Ok(())
}

fn is_library(path: &str) -> bool {
    ["src/", "image/src/", "devices/src/", "arch/src/"].iter().any(|tree| path.starts_with(tree))
}

/// Returns the first flag in a string literal that is a text: a single word is an argument for another
/// program.
fn flag_in(literal: &str) -> Option<String> {
    let text = literal.strip_prefix('"')?.strip_suffix('"')?;
    if !text.contains(' ') {
        return None;
    }
    let text = OTHERS.iter().fold(text.to_owned(), |text, other| text.replace(other, ""));
    let words = text.split(|c: char| c.is_whitespace() || "`'\"(),;:=".contains(c));
    let mut flags = words.filter(|word| {
        let long =
            word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
        long || SHORT.contains(word)
    });
    flags.next().map(str::to_owned)
}

/// The command's own flags of one letter.
const SHORT: &[&str] = &["-a", "-i", "-v"];

/// Flags of other programs, which texts may name.
const OTHERS: &[&str] = &["cargo xtask guest --tuned", "umoci unpack --image", "ulimit -v"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_no_flags_and_other_programs_may() {
        for (literal, flag) in [
            (r#""--root {}: it cannot be opened""#, Some("--root")),
            (r#""use `--accel emulate`""#, Some("--accel")),
            (r#""give it one with -i FILE""#, Some("-i")),
            (r#""{ROOT} {}: it cannot be opened""#, None),
            (r#""unpack it (`umoci unpack --image DIR`)""#, None),
            (r#""check it with `gzip -t`""#, None),
            (r#""--version""#, None),
            ("dashes", None),
        ] {
            assert_eq!(flag_in(literal).as_deref(), flag, "{literal}");
        }
    }

    #[test]
    fn product_code_of_the_library_is_read() {
        let faults = |path: &str, text: &str| {
            let mut verdicts = Verdicts::default();
            check(&[Source { path: path.to_owned(), text: text.to_owned() }], &mut verdicts).unwrap();
            verdicts.faults
        };
        let error = "#[error(\"give --memory {size}\")]\nstruct A;";
        for library in ["src/a.rs", "image/src/a.rs", "devices/src/a.rs", "arch/src/a/b.rs"] {
            assert_eq!(faults(library, error).len(), 1, "{library}");
        }
        for other in ["cli/src/a.rs", "agent/src/a.rs", "src/a/tests.rs"] {
            assert!(faults(other, error).is_empty(), "{other}");
        }
        assert!(faults("src/a.rs", "//! With --memory 1G.\n/// With --memory 1G.\nstruct A;").is_empty());
    }
}

//! Checks that every crate of the workspace denies the lints against panics.

use super::ratchet::Verdicts;
use super::sources::Source;

const LINTS: &[&str] =
    &["clippy::indexing_slicing", "clippy::unwrap_used", "clippy::expect_used", "clippy::panic"];

/// The lints that a crate which reads a guest's or a file's numbers denies as well.
const ARITHMETIC: &str = "clippy::arithmetic_side_effects";
const READERS: &[&str] = &["arch/", "devices/", "image/"];

/// Directories with workspaces of their own.
const OTHERS: &[&str] = &["fuzz/", "examples/cargo-runner/"];

/// Checks the root of each crate. `sources` are Rust. The fuzz targets are excluded, as they have to panic
/// when they find something, and so is the example that stands for a user's package; both are workspaces of
/// their own.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) {
    for source in sources {
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| {
            source.path.strip_suffix(root).is_some_and(|package| package.is_empty() || package.ends_with('/'))
        });
        if !is_root || OTHERS.iter().any(|other| source.path.starts_with(other)) {
            continue;
        }
        let code: String = source.text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let head = code.split_once("mod ").map_or(code.as_str(), |(head, _)| head);
        let is_reader = READERS.iter().any(|crate_root| source.path.starts_with(crate_root));
        let wanted = LINTS.iter().chain(is_reader.then_some(&ARITHMETIC));
        for lint in wanted.filter(|lint| !head.contains("deny(") || !head.contains(**lint)) {
            verdicts.faults.push(format!("{}: the crate does not deny {lint}", source.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> usize {
        let mut verdicts = Verdicts::default();
        check(&[Source { path: path.to_owned(), text: text.to_owned() }], &mut verdicts);
        verdicts.faults.len()
    }

    #[test]
    fn root_without_the_lints_is_a_fault() {
        let good = format!("//! Docs.\n#![deny({})]\nmod a;", LINTS.join(", "));
        assert_eq!(faults("src/lib.rs", &good), 0);
        assert_eq!(faults("cli/src/main.rs", &good.replace("clippy::panic", "clippy::all")), 1);
        assert_eq!(faults("cli/src/main.rs", &good.replace("#![deny", "//! [deny")), LINTS.len());
        assert_eq!(faults("cli/src/main.rs", &good.replace("deny", "allow")), LINTS.len());
        assert_eq!(faults("src/lib.rs", "mod a;"), LINTS.len());
        assert_eq!(faults("src/other.rs", "mod a;"), 0);
        assert_eq!(faults("image/src/lib.rs", &good), 1);
        assert_eq!(
            faults("image/src/lib.rs", &format!("#![cfg_attr(not(test), deny({ARITHMETIC}))]\n{good}")),
            0
        );
    }
}

//! Puts a run's table, picture and summary into the documents: between a pair of marks each, so that nothing
//! is copied by hand and no ratio mixes two runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::table::{FLOOR, Table, shown};
use super::{bare, chart};
use crate::workspace::Workspace;

/// Writes `docs/peers.svg`, and the parts of `docs/benchmarks.md` and `README.md` between the marks.
pub(super) fn publish(workspace: &Workspace, table: &Table, host: &str, printed: &str) -> Result<()> {
    let docs = workspace.root.join("docs");
    fs::write(docs.join("peers.svg"), chart::draw(table, host)).context("cannot write docs/peers.svg")?;
    replace(&docs.join("benchmarks.md"), &format!("```\n{}\n```", printed.trim_end()))?;
    replace(&workspace.root.join("README.md"), &wrapped(&summary(table, host)))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let document = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let document = between_marks(&document, text)
        .with_context(|| format!("{} has no lines `{BEGIN}` and `{END}`", path.display()))?;
    fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the document with `text` between the marks; `None` if it lacks them.
fn between_marks(document: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

/// Returns the README's sentences.
fn summary(table: &Table, host: &str) -> String {
    let row = |name: &str| table.rows.iter().find(|row| row.name == name);
    let value = |name: &str, index: usize| row(name)?.values.get(index)?.ok().map(shown);
    let figure = |name: &str, unit: &str| {
        let others = table.columns.iter().enumerate().skip(FLOOR);
        let others: Vec<String> =
            others.filter_map(|(index, column)| Some(format!("{column} {}", value(name, index)?))).collect();
        format!("{}{unit} ({})", value(name, 0).unwrap_or_default(), others.join(", "))
    };
    format!(
        "From exec to the first byte of a bare guest: {}. CPU time of a whole life: {}. Private dirty memory of a \
         waiting machine, besides the guest's RAM: {}. Lives a second, 8 at once: {}. {host}.",
        figure(bare::FIRST_BYTE, " ms"),
        figure(bare::CPU_TIME, " ms"),
        figure(bare::PRIVATE_DIRTY, " KiB"),
        figure(bare::LIVES_A_SECOND, ""),
    )
}

/// Breaks the text into lines of at most 120 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 120 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

const BEGIN: &str = "<!-- written by `cargo xtask bench peers --publish` -->";
const END: &str = "<!-- end -->";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::peers::table::Better;

    #[test]
    fn text_between_the_marks_is_replaced_and_the_rest_stays() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nz <!-- end -->\n");
        assert_eq!(
            between_marks(&document, "new").unwrap(),
            format!("a\n{BEGIN}\nnew\n{END}\nz <!-- end -->\n")
        );
        assert_eq!(between_marks("a\n<!-- end -->", "new"), None);
        assert_eq!(between_marks(BEGIN, "new"), None);
    }

    #[test]
    fn documents_have_the_marks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for name in ["README.md", "docs/benchmarks.md"] {
            let document = fs::read_to_string(root.join(name)).unwrap();
            assert!(between_marks(&document, "").is_some(), "{name}");
        }
    }

    #[test]
    fn summary_has_what_was_measured_in_lines_that_fit() {
        let mut table = Table::new(["coracle", "floor", "QEMU", "gone"].into_iter().map(str::to_owned));
        for name in [bare::FIRST_BYTE, bare::CPU_TIME, bare::PRIVATE_DIRTY, bare::LIVES_A_SECOND] {
            table.row(name, Better::Less, [Ok(2.0), Ok(1.5), Ok(40.0), Err("not here")].into_iter());
        }
        let text = wrapped(&summary(&table, "Host: a CPU"));
        assert!(text.contains("2.00 ms (floor 1.50, QEMU 40.0)") && !text.contains("gone"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    }
}

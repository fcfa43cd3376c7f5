//! Puts a run's table, picture and summary into the documents: between a pair of marks each, so that nothing
//! is copied by hand and no ratio mixes two runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::table::{FLOOR, PEERS, Table, shown};
use super::{bare, chart};
use crate::workspace::Workspace;

/// Writes `docs/peers.svg`, and the parts of `docs/benchmarks.md` and `README.md` between the marks.
pub(super) fn publish(workspace: &Workspace, table: &Table, host: &str, printed: &str) -> Result<()> {
    let docs = workspace.root.join("docs");
    fs::write(docs.join("peers.svg"), chart::draw(table, host)).context("cannot write docs/peers.svg")?;
    let text = format!("```\n{}\n```\n\n{}", printed.trim_end(), wrapped(&losses(table)));
    replace(&docs.join("benchmarks.md"), &text)?;
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

/// Returns the sentences on the rows in which a peer is better, and on those far above the floor.
fn losses(table: &Table) -> String {
    let columns = table.columns.iter().enumerate();
    let behind = table.rows.iter().flat_map(|row| {
        let peers = columns.clone().skip(PEERS).map(|(index, name)| (name, row.ratio(index)));
        peers.filter_map(|(name, ratio)| {
            let ratio = ratio.filter(|ratio| *ratio < 1.0)?;
            Some(format!("{} ({name}: {ratio:.2}x)", row.title(table)))
        })
    });
    let above = table.rows.iter().filter_map(|row| {
        let times = 1.0 / row.ratio(FLOOR)?;
        (times > NEAR_THE_FLOOR).then(|| format!("{} ({times:.2})", row.title(table)))
    });
    format!(
        "Coracle loses in: {}. More than {NEAR_THE_FLOOR} times the floor: {}.",
        list(&behind.collect::<Vec<_>>()),
        list(&above.collect::<Vec<_>>())
    )
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none of the rows".to_owned() } else { items.join("; ") }
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

/// The ratio up to which a row is near the floor: the rest is within a third of the bare calls.
const NEAR_THE_FLOOR: f64 = 1.3;

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
    fn losses_are_named_with_their_rows_peers_and_ratios() {
        assert_eq!(
            losses(&crate::bench::peers::table::tests::sample()),
            "Coracle loses in: speed (peer: 0.50x). More than 1.3 times the floor: none of the rows."
        );
        let mut table = Table::new(["ours", "floor", "peer"].into_iter().map(str::to_owned));
        table.row("time", Better::Less, [Ok(2.0), Ok(1.0), Ok(4.0)].into_iter());
        table.row("  the same, slowly", Better::Less, [Ok(4.0), Err("-"), Ok(2.0)].into_iter());
        assert_eq!(
            losses(&table),
            "Coracle loses in: time (slowly) (peer: 0.50x). More than 1.3 times the floor: time (2.00)."
        );
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

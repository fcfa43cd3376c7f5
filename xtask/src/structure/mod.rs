//! Checks of the tree's structure: `cargo xtask ci` runs them, CONTRIBUTING.md explains them.

mod count;
mod flags;
mod length;
mod lints;
mod names;
mod order;
mod paths;
mod ratchet;
mod sources;
mod width;
mod words;

use anyhow::{Result, ensure};

pub(crate) use self::count::CountArguments;
use self::ratchet::Verdicts;
use crate::workspace::Workspace;

/// Looks for rooms that import one above them, and checks every count against its limit. Prints the counts
/// that have fallen below the number in their table; with `places` also each line that is too long, and each
/// phrase and doc to be removed.
///
/// # Errors
/// There is a violation, or a source file cannot be read.
pub(crate) fn check(workspace: &Workspace, places: bool) -> Result<()> {
    let mut verdicts = Verdicts::default();
    for tree in order::TREES {
        verdicts.faults.extend(order::faults(&workspace.root.join(tree.directory), tree.rooms)?);
    }
    let rust = sources::all(&workspace.root, &[".rs"])?;
    length::check(&rust, &mut verdicts);
    width::check(&rust, &mut verdicts);
    lints::check(&rust, &mut verdicts);
    count::check(&rust, &mut verdicts)?;
    flags::check(&rust, &mut verdicts)?;
    let written = sources::all(&workspace.root, &[".rs", ".md", ".toml"])?;
    words::check(&written, &mut verdicts);
    if places {
        width::places(&rust).iter().chain(&words::places(&written)).for_each(|place| println!("{place}"));
    }
    verdicts.news.iter().for_each(|news| println!("{news}"));
    ensure!(verdicts.faults.is_empty(), "{}", verdicts.faults.join("\n"));
    Ok(())
}

/// Prints the lines that name a device or an ending.
///
/// # Errors
/// A source file cannot be read.
pub(crate) fn count(workspace: &Workspace, arguments: &CountArguments) -> Result<()> {
    count::print(&sources::all(&workspace.root, &[".rs"])?, arguments)
}

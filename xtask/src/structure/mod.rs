//! What the shape of the tree promises, checked: `cargo xtask ci` runs it, CONTRIBUTING.md explains it.

mod order;
mod paths;

use anyhow::{Result, ensure};

use crate::workspace::Workspace;

/// Looks for rooms that import one above them.
///
/// # Errors
/// There are some, or a source file cannot be read.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut faults = Vec::new();
    for tree in order::TREES {
        faults.extend(order::faults(&workspace.root.join(tree.directory), tree.rooms)?);
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

//! `cargo xtask payloads`: the bare guests as files, to boot them by hand or in another VMM.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// Writes every payload to `payloads/NAME.elf` in the target folder and lists them.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target.join("payloads");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for payload in coracle_payload::ALL {
        let path = folder.join(format!("{}.elf", payload.name));
        fs::write(&path, payload.elf()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: {}", path.display(), payload.about);
    }
    Ok(())
}

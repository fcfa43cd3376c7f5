//! Checks that the rooms of a crate depend on each other in one direction only: from top to bottom.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::paths;

/// A crate whose rooms have an order.
pub(super) struct Tree {
    /// The directory of its sources, from the top of the workspace.
    pub(super) directory: &'static str,
    /// The rooms, lowest first: each may import those before it.
    pub(super) rooms: &'static [&'static str],
}

/// The order of the rooms. A new room is placed above those that it needs. Before moving a room up to permit
/// an import, ask what that import says about the code.
pub(super) const TREES: &[Tree] = &[LIBRARY, IMAGE, COMMAND, AGENT];

const LIBRARY: Tree = Tree {
    directory: "src",
    rooms: &[
        "error",
        "exit_code",
        "thread",
        "config",
        "memory",
        "snapshot_files",
        "kvm",
        "cpu",
        "ending",
        "gate",
        "terminal",
        "io_loop",
        "vcpu",
        "emulated_host",
        "host",
        "virtio",
        "console",
        "diagnosis",
        "agent",
        "vm",
    ],
};

const IMAGE: Tree = Tree {
    directory: "image/src",
    rooms: &["sparse", "temporary", "compression", "guest_data", "kernel_image", "rootfs", "initramfs"],
};

const COMMAND: Tree = Tree {
    directory: "cli/src",
    rooms: &["memory", "guest_text", "nearest", "stderr", "logger", "fault", "arguments", "commands"],
};

const AGENT: Tree = Tree {
    directory: "agent/src",
    rooms: &[
        "boot_mark",
        "protocol",
        "relay",
        "root_device",
        "mark",
        "report",
        "modules",
        "console",
        "mounts",
        "signals",
        "pty",
        "new_root",
        "network",
        "furnish",
        "power",
        "branch_here",
        "server",
        "roles",
    ],
};

/// Returns the violations of the order, one per line.
///
/// # Errors
/// A file cannot be read.
pub(super) fn faults(directory: &Path, rooms: &[&str]) -> Result<Vec<String>> {
    let exports: HashMap<String, String> = match fs::read_to_string(directory.join("lib.rs")) {
        Ok(root) => paths::exports(&root)?.into_iter().collect(),
        Err(_) => HashMap::new(),
    };
    let rank = |room: &str| rooms.iter().position(|known| *known == room);
    let mut faults = Vec::new();
    for file in sources(directory)? {
        let relative = file.strip_prefix(directory).unwrap_or(&file);
        let module = module_of(relative);
        let Some(own) = module.first() else { continue };
        let Some(own_rank) = rank(own) else {
            bail!(
                "{}: the room `{own}` is not in the table of xtask/src/structure/order.rs",
                relative.display()
            );
        };
        let source = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let paths = paths::of_file(&source, &module, 1).with_context(|| relative.display().to_string())?;
        for name in paths.into_iter().filter_map(|path| path.into_iter().next()) {
            let room = exports.get(&name).unwrap_or(&name);
            if rank(room).is_some_and(|rank| rank > own_rank) {
                faults.push(format!("{}: `{own}` is below `{room}` and imports it", relative.display()));
            }
        }
    }
    faults.sort();
    faults.dedup();
    Ok(faults)
}

/// Returns the module path of a file from the crate's root; empty for the root itself.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    if matches!(module.as_slice(), [only] if only == "lib" || only == "main") {
        module.clear();
    }
    module
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the violations of a crate with these files.
    fn faults_of(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let directory = std::env::temp_dir().join(format!("coracle-order-{}-{name}", std::process::id()));
        for (file, source) in files {
            let file = directory.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, source).unwrap();
        }
        let faults = faults(&directory, &["low", "high"]);
        fs::remove_dir_all(&directory).unwrap();
        faults.unwrap_or_else(|error| vec![format!("{error:#}")])
    }

    #[test]
    fn rooms_import_downward_only() {
        let root = ("lib.rs", "mod high; mod low; pub use high::{Top};");
        let downward = ("high/mod.rs", "use crate::low::A;");
        assert_eq!(faults_of("good", &[root, downward, ("low/mod.rs", "use super::low;")]), [""; 0]);
        for (name, upward) in [
            ("path", "use crate::high::B;"),
            ("super", "mod inner { use super::super::high; }"),
            ("root", "fn f(top: crate::Top) {}"),
        ] {
            let faults = faults_of(name, &[root, downward, ("low/mod.rs", upward)]);
            assert_eq!(faults, ["low/mod.rs: `low` is below `high` and imports it"], "{upward}");
        }
    }

    #[test]
    fn room_without_a_place_is_a_fault() {
        let faults = faults_of("unknown", &[("lib.rs", ""), ("other.rs", "")]);
        assert!(faults[0].contains("`other` is not in the table"), "{faults:?}");
    }
}

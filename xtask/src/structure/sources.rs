//! The files of the workspace that the checks read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A file of the workspace.
pub(super) struct Source {
    /// Its path from the top of the workspace.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    /// Returns whether the file has tests only: a file in `tests/`, `tests.rs`, or a room of test tools.
    pub(super) fn is_test(&self) -> bool {
        let mut parts = self.path.split('/');
        parts.any(|part| matches!(part, "tests" | "tests.rs" | "testing") || part.ends_with("_tests.rs"))
    }
}

/// Returns every file below `root` with one of `extensions`, sorted by path. Hidden directories, cargo's
/// target directory and fuzz corpora are left out.
///
/// # Errors
/// A directory or a file cannot be read, or a file is not text.
pub(super) fn all(root: &Path, extensions: &[&str]) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    collect(root, "", extensions, &mut found)?;
    found.sort_by(|one: &Source, other| one.path.cmp(&other.path));
    Ok(found)
}

fn collect(root: &Path, below: &str, extensions: &[&str], found: &mut Vec<Source>) -> Result<()> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && !LEFT_OUT.contains(&name.as_str()) {
                collect(root, &path, extensions, found)?;
            }
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
            found.push(Source { path, text });
        }
    }
    Ok(())
}

const LEFT_OUT: &[&str] = &["target", "corpus", "artifacts"];

//! The paths of the workspace, its build directory and the data directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{capture, cargo};

/// The directories that tasks read and write.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// The directory of kernels, initramfs and packages: `$CORACLE_DATA`, or else `coracle` in the user's
    /// cache directory.
    pub(crate) data: PathBuf,
    /// The names of the root package's integration tests.
    pub(crate) test_targets: Vec<String>,
}

impl Workspace {
    /// Asks cargo for the layout.
    ///
    /// # Errors
    /// `cargo metadata` fails, or there is neither a home nor a cache directory.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
        let json = capture(
            cargo().args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"]).arg(manifest),
        )?;
        let metadata: Metadata =
            serde_json::from_str(&json).context("cannot read what cargo metadata wrote")?;
        let is_test = |target: &&Target| target.kind.iter().any(|kind| kind == "test");
        let test_targets = metadata
            .packages
            .iter()
            .filter(|package| package.name == ROOT_PACKAGE)
            .flat_map(|package| package.targets.iter().filter(is_test))
            .map(|target| target.name.clone())
            .collect();
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            data: data_folder()?,
            test_targets,
        })
    }
}

/// Returns the directory in which `coracle` itself looks first for the default guest.
fn data_folder() -> Result<PathBuf> {
    if let Some(folder) = folder_variable("CORACLE_DATA") {
        return std::path::absolute(folder).context("cannot make CORACLE_DATA an absolute path");
    }
    let cache = folder_variable("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
    let cache = cache.or_else(|| folder_variable("HOME").map(|home| home.join(".cache")));
    let cache = cache.context("no place for the guest's files: set CORACLE_DATA, XDG_CACHE_HOME or HOME")?;
    Ok(cache.join("coracle"))
}

fn folder_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

const ROOT_PACKAGE: &str = "coracle";

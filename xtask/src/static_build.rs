//! Static release builds: the agent that becomes PID 1, the `coracle` binary that is given to users, and these tasks where
//! they run in a guest.

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{cargo, run};
use crate::workspace::Workspace;

/// Builds the agent and returns the path of its binary.
pub(crate) fn agent(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "coracle-agent", &flags(workspace))
}

/// Builds `coracle` and returns the path of its binary.
pub(crate) fn coracle(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "coracle", &flags(workspace))
}

/// Builds these tasks, for the measurements that run elsewhere, and returns the path of their binary. Its errors can have
/// backtraces.
pub(crate) fn tasks(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "xtask", &[STATIC.to_owned()])
}

/// Builds one package's binary of the same name. The target is named even though it is the build machine's
/// own: only then do the flags below leave out procedural macros, which cannot be static. A target folder of
/// their own keeps these builds and the usual ones from undoing each other.
fn build(workspace: &Workspace, package: &str, flags: &[String]) -> Result<PathBuf> {
    let folder = workspace.target.join("static");
    run(cargo()
        .current_dir(&workspace.root)
        .args([
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--package",
            package,
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    Ok(folder.join(TARGET).join("release").join(package))
}

/// Static, and small: one copy of functions that are the same, the short form of relocations, and no tables for unwinding. The
/// linker is the one that Rust brings.
fn flags(workspace: &Workspace) -> [String; 5] {
    let script = workspace.root.join("xtask/src/static.ld");
    [
        STATIC.to_owned(),
        "-Clink-arg=-Wl,--icf=all".to_owned(),
        "-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned(),
        "-Clink-arg=-Wl,--no-eh-frame-hdr".to_owned(),
        format!("-Clink-arg=-Wl,-T,{}", script.display()),
    ]
}

const STATIC: &str = "-Ctarget-feature=+crt-static";

/// The only target there is a standard library with a static C library for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

//! Static release builds: the agent that becomes PID 1, the `coracle` binary for users, and these tasks when
//! they run in a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cargo, run};
use crate::workspace::Workspace;

/// Builds the agent and returns the path of its binary.
pub(crate) fn agent(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "coracle-agent", "coracle-agent", "agent", &flags(&workspace.root), |_| {})
}

/// Builds the agent and returns the path of a file with the compressed binary, in the form that the feature
/// `bundled-agent` takes.
pub(crate) fn packed_agent(workspace: &Workspace) -> Result<PathBuf> {
    let path = agent(workspace)?;
    let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // Zstandard: xz would be a tenth smaller, but takes four times as long to decompress, for which every
    // machine would wait.
    let packed = zstd::bulk::compress(&program, LEVEL).context("cannot compress the agent")?;
    let path = path.with_extension("zst");
    // Leave an identical file alone, so that the crate that includes it is not rebuilt.
    if fs::read(&path).ok().as_ref() != Some(&packed) {
        fs::write(&path, packed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

/// Builds `coracle` with the agent in it, and returns the path of its binary.
pub(crate) fn coracle(workspace: &Workspace) -> Result<PathBuf> {
    let agent = packed_agent(workspace)?;
    let flags = [&flags(&workspace.root)[..], &INLINE_LESS.map(str::to_owned)].concat();
    build(workspace, "coracle-cli", "coracle", "release", &flags, |cargo| {
        cargo.args(["--features", "bundled-agent"]).env("CORACLE_BUNDLED_AGENT", agent);
    })
}

/// Builds these tasks, for the measurements that run elsewhere, and returns the path of their binary. Its
/// errors can have backtraces.
pub(crate) fn tasks(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "xtask", "xtask", "release", &[STATIC.to_owned()], |_| {})
}

/// Builds the floor that monitors are compared with, and returns the path of its binary.
pub(crate) fn floor(workspace: &Workspace) -> Result<PathBuf> {
    build(workspace, "coracle-floor", "kvm-floor", "release", &[STATIC.to_owned(), FIXED.to_owned()], |_| {})
}

/// Builds one package's binary. The target is explicit although it is the build machine's own: only then do
/// the flags below not apply to procedural macros, which cannot be static. A separate target directory keeps
/// these builds and the ordinary ones from invalidating each other.
fn build(
    workspace: &Workspace,
    package: &str,
    program: &str,
    profile: &str,
    flags: &[String],
    more: impl FnOnce(&mut Command),
) -> Result<PathBuf> {
    let folder = workspace.target.join("static");
    let mut cargo = cargo();
    cargo
        .current_dir(&workspace.root)
        .args(["build", "--quiet", "--bins", "--package", package, "--profile", profile])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    more(&mut cargo);
    run(&mut cargo)?;
    Ok(folder.join(TARGET).join(profile).join(program))
}

/// Static, and small: identical functions are merged, relocations are compact and share no page with code,
/// there are no unwind tables, and less of the C library. The linker is the one that comes with Rust.
fn flags(root: &Path) -> [String; 7] {
    let script = root.join("xtask/src/static.ld");
    [
        STATIC.to_owned(),
        "-Clink-arg=-Wl,--icf=all".to_owned(),
        "-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned(),
        "-Clink-arg=-Wl,--no-eh-frame-hdr".to_owned(),
        "-Clink-arg=-Wl,-z,separate-loadable-segments".to_owned(),
        format!("-Clink-arg=-Wl,-T,{}", script.display()),
        // resources/small_libc.s
        "--cfg=coracle_small_libc".to_owned(),
    ]
}

/// The inlining thresholds, for functions without and with `#[inline]`: the defaults are ten times as high.
/// This saves an eighth of the size, and neither a life nor the disk is slower. The agent is optimized for
/// size anyway, which this would undo.
const INLINE_LESS: [&str; 2] = ["-Cllvm-args=-inline-threshold=15", "-Cllvm-args=-inlinehint-threshold=30"];
const STATIC: &str = "-Ctarget-feature=+crt-static";
/// At a fixed address, a program has nothing to relocate when it starts.
const FIXED: &str = "-Crelocation-model=static";

/// The only target for which Rust has a standard library with a static C library.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The highest level that every decoder of the format has to support.
const LEVEL: i32 = 19;

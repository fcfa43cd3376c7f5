//! The examples that tests run. They are built here because the tests may run on an emulated host, without
//! cargo.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{capture, cargo, run};
use crate::workspace::Workspace;

/// Builds the smallest program that embeds Coracle, and the tests of `examples/cargo-runner`, which are
/// copied to a path that the Linux tests know: `examples` in the target directory.
///
/// # Errors
/// An example does not build or violates a lint, or its tests cannot be copied.
pub(crate) fn make(workspace: &Workspace) -> Result<()> {
    // With the same options as the tests, so that nothing is built twice.
    let embed = ["build", "--quiet", "--workspace", "--example", EMBED];
    run(cargo().current_dir(&workspace.root).args(embed))?;
    let example = workspace.root.join("examples/cargo-runner");
    let folder = workspace.target.join("examples");
    // The example has a target directory and options of its own: those of these tasks are for the workspace.
    let in_example = |arguments: &[&str]| {
        let mut command = cargo();
        command.current_dir(&example).env("CARGO_TARGET_DIR", folder.join("target")).args(arguments);
        command
    };
    run(&mut in_example(&["clippy", "--quiet", "--offline", "--all-targets", "--", "-D", "warnings"]))?;
    let messages =
        capture(&mut in_example(&["test", "--no-run", "--quiet", "--offline", "--message-format=json"]))?;
    let programs = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let find = |program: Message| (program.target?.name == TESTS).then_some(program.executable).flatten();
    let program = programs.filter_map(find).next().context("cargo has built no tests of the example")?;
    let place = folder.join(TESTS);
    fs::copy(&program, &place).with_context(|| format!("cannot make {}", place.display()))?;
    println!("tests of the example: {}", place.display());
    Ok(())
}

/// The relevant part of cargo's messages.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

const EMBED: &str = "embed-minimal";
/// The integration tests of `examples/cargo-runner`.
const TESTS: &str = "machine";

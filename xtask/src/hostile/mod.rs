//! `cargo xtask hostile`: attacks on the release program by bare guests, files and peers, each with the
//! ending that it has to have, the time that it may take to end, and the memory that it may use.
//!
//! It needs `/dev/kvm` of any kind and the default guest's files, but not root. Everything that attacks is
//! created here or is a payload of this repository.

mod agents;
mod case;
mod files;
mod guests;
mod scene;
mod tar;
mod watch;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{guest, static_build};
pub(crate) use agents::call as call_agent;
use case::{Case, Row};
use scene::Scene;

/// The program to attack, and the attacks.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HostileArguments {
    /// Run only attacks whose name contains this
    #[arg(default_value = "")]
    only: String,
    /// Program to attack [default: a new static build]
    #[arg(long, value_name = "PROGRAM")]
    coracle: Option<PathBuf>,
    /// Call an agent that attacks in this way: used for the rows of the table that need a separate process
    #[arg(long, hide = true, value_enum)]
    pub(crate) agent: Option<agents::Attack>,
}

/// Attacks the program that `arguments` name, or a new build of it. Returns `true` if every row is as
/// required.
///
/// # Errors
/// The program cannot be built, or there is no such attack.
pub(crate) fn run(workspace: &Workspace, arguments: &HostileArguments) -> Result<bool> {
    if let Some(coracle) = &arguments.coracle {
        let tally = attack(coracle, &arguments.only)?;
        println!("{tally}");
        return Ok(tally.failed == 0);
    }
    guest::make(workspace, false)?;
    // The peak memory of a child starts with that of its parent, and building has raised ours: so attack from
    // a fresh process.
    let mut attack = Command::new(std::env::current_exe().context("cannot find this program")?);
    attack.args(["hostile", "--coracle"]).arg(static_build::coracle(workspace)?).arg(&arguments.only);
    let status = attack.status().context("cannot start this program again")?;
    Ok(status.success())
}

/// Runs every attack whose name contains `only`, prints the table, and counts the rows: a row that deviates
/// has failed.
///
/// # Errors
/// No attack has such a name.
fn attack(coracle: &Path, only: &str) -> Result<Tally> {
    let scene = Scene::new(coracle)?;
    let cases: Vec<Case> = [guests::cases(), agents::cases(), files::cases()].into_iter().flatten().collect();
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.name.contains(only)).collect();
    if chosen.is_empty() {
        bail!("no attack has {only:?} in its name");
    }
    let mut tally = Tally::default();
    if !scene.has_kvm() {
        println!("skipped: /dev/kvm cannot be opened, and every attack runs against a machine or beside one");
        return Ok(Tally { skipped: chosen.len() as u64, ..tally });
    }
    println!("{}", Row::header());
    for case in chosen {
        let row = case.run_patiently(&scene);
        println!("{row}");
        match row.difference {
            None => tally.passed += 1,
            Some(_) => tally.failed += 1,
        }
    }
    Ok(tally)
}

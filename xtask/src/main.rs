//! Development tasks: `cargo xtask TASK`. Users run nothing of this.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod assets;
mod bench;
mod ci;
mod demo;
mod dist;
mod examples;
mod fuzz;
mod guest;
mod hostile;
mod initramfs;
mod packages;
mod payloads;
mod process;
mod record;
mod setup;
mod static_build;
mod structure;
mod tally;
mod test;
mod tools;
mod tuned;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::hostile::HostileArguments;
use crate::record::RecordArguments;
use crate::tally::Tally;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Coracle")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set up what is missing, build in release and boot the default guest
    Demo,
    /// Set up what is missing and run every test; the last line counts them
    Test,
    /// Run every check that a change must pass, the tests included
    Ci,
    /// Check the shape of the tree: the order of rooms, lengths, lints, the files that name a device, and
    /// phrases
    Structure {
        /// Also print each line that is too long, and each phrase or doc to be removed
        #[arg(long)]
        places: bool,
    },
    /// Print the files and lines, outside its own files, that name a device or an ending
    Count(structure::CountArguments),
    /// Install the Debian packages that are missing (as root), or print the command that does (otherwise)
    Setup,
    /// Make the default guest and the emulated host's system in the data directory (without root)
    Guest {
        /// Use the newest packages instead of those already downloaded
        #[arg(long)]
        update: bool,
        /// Also build the tuned kernel from Debian's kernel source, if it is missing (some ten minutes)
        #[arg(long)]
        tuned: bool,
        /// Also make the disk of tools (fio, iperf3) for guests of the tests
        #[arg(long)]
        tools: bool,
    },
    /// Write the bare guests of the tests to files and list them
    Payloads,
    /// Build the guest agent for the feature `bundled-agent`, and print the path of the file
    Agent,
    /// Build the static binary for users and check its size
    Dist,
    /// Fuzz everything that a guest or a file can reach, with AddressSanitizer
    Fuzz(fuzz::FuzzArguments),
    /// Attack the release program by guests and files, and print a table; exits with 1 if a row deviates
    Hostile(HostileArguments),
    /// Run a short session of the release program at a terminal and draw it as docs/session.svg
    Record(RecordArguments),
    /// Measure, and print a table
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
}

fn main() -> ExitCode {
    match perform(&Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: &Task) -> Result<ExitCode> {
    if let Task::Bench { bench: bench::Bench::Part { part } } = task {
        bench::run_part(part)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Task::Hostile(HostileArguments { agent: Some(attack), .. }) = task {
        hostile::call_agent(*attack)?;
        return Ok(ExitCode::SUCCESS);
    }
    let workspace = Workspace::find()?;
    match task {
        Task::Demo => return demo::run(&workspace),
        Task::Test => return Ok(exit_code(test_and_report(&workspace))),
        Task::Ci => return Ok(exit_code(ci::check(&workspace))),
        Task::Structure { places } => structure::check(&workspace, *places)?,
        Task::Count(arguments) => structure::count(&workspace, arguments)?,
        Task::Hostile(arguments) => return hostile::run(&workspace, arguments).map(exit_code),
        Task::Setup => setup::make_ready()?,
        Task::Guest { update, tuned, tools } => {
            guest::make(&workspace, *update)?;
            if *tuned {
                tuned::make(&workspace, *update)?;
            }
            if *tools {
                tools::make(&workspace)?;
            }
        }
        Task::Payloads => payloads::write(&workspace)?,
        Task::Fuzz(arguments) => fuzz::start(&workspace, arguments)?,
        Task::Agent => println!("{}", static_build::packed_agent(&workspace)?.display()),
        Task::Dist => dist::make(&workspace)?,
        Task::Record(arguments) => record::run(&workspace, arguments)?,
        Task::Bench { bench } => bench::run(&workspace, bench)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the tests and ends stdout with their tally, whatever happens; `true` if all have passed.
fn test_and_report(workspace: &Workspace) -> bool {
    let tally = test::run(workspace).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        Tally { failed: 1, ..Tally::default() }
    });
    println!("{tally}");
    tally.failed == 0
}

fn exit_code(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

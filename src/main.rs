//! The `coracle` command: parse, act, and turn the outcome into an exit code. The only place that ends the process.

mod cli;
mod commands;
mod logger;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    restore_terminal_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let code = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::HostEmulate(args) => commands::host_emulate::run(args),
    };
    ExitCode::from(code)
}

/// Help and version are answers (0); anything else is bad usage (125).
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to tell when the stream for it is closed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(commands::BAD_USAGE) } else { ExitCode::SUCCESS }
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        coracle::terminal::RawTerminal::restore();
        report(panic);
    }));
}

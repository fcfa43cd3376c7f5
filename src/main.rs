//! The `coracle` command: parse, act, and turn the outcome into an exit code. The only place that ends the process.

mod cli;
mod commands;
mod logger;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use coracle::terminal::RawTerminal;

use crate::cli::{Cli, Command};

#[cfg(coracle_small_libc)]
std::arch::global_asm!(include_str!("../resources/small_libc.s"));

fn main() -> ExitCode {
    end_with_117_on_panic();
    if std::io::stdin().is_terminal() {
        RawTerminal::restore_on_fatal_signals();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let code = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Test(args) => commands::test::run(args),
        Command::CargoRunner(args) => commands::cargo_runner::run(args),
        Command::Cpu(command) => commands::cpu::run(command),
        Command::Config(args) => commands::config::run(args),
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

/// A panic is a defect of ours and has a code of its own. The terminal is restored first.
fn end_with_117_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        RawTerminal::restore();
        report(panic);
        commands::say("this is a defect of Coracle; please report it with the lines above");
        // SAFETY: ends the process at once: no destructor or exit handler could wait for the thread that panics.
        unsafe { libc::_exit(i32::from(commands::DEFECT)) };
    }));
}

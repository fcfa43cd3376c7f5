//! The `coracle` command: parses the command line, acts, and turns the outcome into an exit code. Only this
//! file ends the process.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arguments;
mod commands;
mod fault;
mod guest_text;
mod logger;
mod memory;
mod stderr;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use coracle::command::RawTerminal;
use coracle::error::field;
use coracle::exit_code;
use coracle_devices::backend::unix_socket;

use crate::arguments::{Cli, Command};
use crate::stderr::Weight;

#[cfg(coracle_small_libc)]
#[path = "../../resources/small_libc.rs"]
mod small_libc;

fn main() -> ExitCode {
    memory::share_heap();
    end_with_117_on_panic();
    ignore_sigxfsz();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            let arguments: Vec<OsString> = std::env::args_os().collect();
            if let Some(reason) = arguments::suggest::not_utf8(&error, &arguments) {
                stderr::say(&reason);
                stderr::flush();
                return ExitCode::from(exit_code::BAD_USAGE);
            }
            let arguments: Vec<String> =
                arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
            arguments::suggest::add_to(&mut error, &arguments);
            return usage(&error);
        }
    };
    field::name_fields(match cli.command {
        Command::Config(_) => |field| Some(field.setting().to_owned()),
        _ => arguments::flag_of,
    });
    let code = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Restore(args) => commands::restore::run(args),
        Command::Snapshot(command) => commands::snapshot::run(command),
        Command::Test(args) => commands::test::run(args),
        Command::CargoRunner(args) => commands::cargo_runner::run(args),
        Command::Cpu(command) => commands::cpu::run(command),
        Command::Config(args) => commands::config::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::HostEmulate(args) => commands::host_emulate::run(args),
    };
    stderr::flush();
    ExitCode::from(code)
}

/// Prints help and version, which are answers (code 0), or the error for bad usage (code 125).
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let written = error.print().and_then(|()| std::io::stdout().flush());
        let code = commands::written(written, 0);
        stderr::flush();
        return ExitCode::from(code);
    }
    stderr::write(Weight::Sentence, error.render().to_string());
    stderr::flush();
    ExitCode::from(exit_code::BAD_USAGE)
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error instead of ending the process.
fn ignore_sigxfsz() {
    // SAFETY: the call only sets the signal's disposition; no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Gives a panic, which is a defect of ours, its own exit code. The terminal is restored first.
fn end_with_117_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        RawTerminal::restore();
        stderr::say(&panic.to_string());
        // A static build has no frames to show, and leaves out the code that would name them (small_libc.rs).
        if !cfg!(coracle_small_libc) {
            let trace = Backtrace::capture();
            if trace.status() == BacktraceStatus::Captured {
                stderr::write(Weight::Sentence, trace.to_string());
            }
        }
        stderr::say("this is a defect of Coracle; please report it with the lines above");
        stderr::flush();
        // End without destructors and exit handlers, which might wait for the thread that panics.
        end_at_once(exit_code::HOST_FAILED);
    }));
}

/// Ends the process without destructors. Removes the files of sockets, which would block the next run.
pub(crate) fn end_at_once(code: u8) -> ! {
    unix_socket::remove_files();
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code.into()) }
}

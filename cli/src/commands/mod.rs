//! The subcommands. Every function here returns an exit code of `docs/outcomes.md`.

pub(crate) mod cargo_runner;
pub(crate) mod config;
pub(crate) mod cpu;
mod crossing;
pub(crate) mod doctor;
pub(crate) mod host_emulate;
mod place;
mod report_file;
pub(crate) mod restore;
pub(crate) mod run;
mod settings;
pub(crate) mod snapshot;
pub(crate) mod test;

use std::error::Error;
use std::io::{self, ErrorKind, Write};

use coracle::command::emulated_host::EmulatedExit;
use coracle::exit_code;
use coracle::host::EmulatedHostError;

use run::copying::OutputFile;

pub(crate) use crate::stderr::say;

/// Returns the exit code of a command that ran on an emulated host. On an error, returns the error's code and
/// message, after printing the last lines of QEMU and of the emulated host's kernel.
pub(crate) fn emulated_exit_code(exit: Result<EmulatedExit, EmulatedHostError>) -> Result<u8, (u8, String)> {
    match exit {
        Ok(EmulatedExit::Code(code)) => Ok(code),
        Ok(EmulatedExit::Signal(signal) | EmulatedExit::Killed(signal)) => Ok(exit_code::of_signal(signal)),
        Err(error) => {
            if let Some(words) = error.last_words() {
                let lines = words.console.iter().map(|line| ("console", line));
                let lines = lines.chain(words.qemu.iter().map(|line| ("qemu", line)));
                lines.for_each(|(from, line)| say(&format!("emulated host's {from}: {line}")));
            }
            Err((error.exit_code(), chain(&error)))
        }
    }
}

/// Writes the answer of a command to stdout and returns `code`; if stdout cannot be written, reports that and
/// returns 125. A closed pipe is not an error: the reader has seen enough.
pub(crate) fn answer(text: &str, code: u8) -> u8 {
    let write = |mut stdout: OutputFile| stdout.write_all(format!("{text}\n").as_bytes());
    written(OutputFile::stdout().and_then(write), code)
}

/// Returns `code`, or 125 after a report if `written`, the result of writing to stdout, is an error other
/// than a closed pipe.
pub(crate) fn written(written: io::Result<()>, code: u8) -> u8 {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(&format!("stdout cannot be written: {error}"));
            exit_code::BAD_USAGE
        }
        _ => code,
    }
}

/// Formats an error with all its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    coracle::error::whole(error)
}

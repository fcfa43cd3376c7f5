//! Writes log lines to stderr, for the command only: the library logs through `log` and installs no logger.

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::guest_text::for_terminal;
use crate::stderr::{self, Weight};

/// Shows errors and warnings; with `verbose` 1 also information, with 2 debug messages, and with 3 traces.
pub(crate) fn start(verbose: u8) {
    log::set_max_level(match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    // Setting the logger fails only if one is already set, and this is the only place that sets one.
    let _ = log::set_logger(&Stderr);
}

/// Writes a line if `--verbose` is given.
pub(crate) fn info(line: &str) {
    if log::max_level() >= LevelFilter::Info {
        stderr::write(Weight::Log, format!("coracle: {line}\n"));
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        let line = record.args().to_string();
        stderr::write(Weight::Log, format!("coracle: {level}{}\n", for_terminal(&line)));
    }

    fn flush(&self) {}
}

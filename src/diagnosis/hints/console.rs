//! Rules about a kernel that printed nothing, or not enough.

use super::{Facts, Hint, Setting};
use crate::ending::EndingKind;

/// Nothing was printed, and the command line asks for no output on this machine's consoles.
pub(super) fn no_console(facts: &Facts<'_>) -> Option<Hint> {
    let named = CONSOLE_PARAMETERS.iter().any(|name| facts.parameters(name).next().is_some());
    (is_silent(facts) && !named && !has_early_console(facts)).then_some(Hint::NoConsole)
}

/// The command line sends output to consoles that this machine lacks.
pub(super) fn foreign_console(facts: &Facts<'_>) -> Option<Hint> {
    let is_here = |console| console == COM1 || (facts.has_virtio_console && console == VIRTIO_CONSOLE);
    let elsewhere = !facts.parameters("console").map(device).any(is_here);
    let console = facts.parameters("console").last().map(device)?;
    (is_silent(facts) && elsewhere && !has_early_console(facts))
        .then(|| Hint::ForeignConsole { console: console.to_owned() })
}

/// The command line sends output to a console here, but the kernel has no driver for it.
pub(super) fn driver_missing(facts: &Facts<'_>) -> Option<Hint> {
    let (option, source) =
        DRIVER_OPTIONS.iter().find_map(|option| Some((*option, facts.is_not(Setting::BuiltIn, option)?)))?;
    let wanted = facts.parameters("console").any(|console| device(console) == COM1);
    (is_silent(facts) && wanted).then_some(Hint::ConsoleDriverMissing { option, source })
}

/// The command line sends output to a console here and the kernel may have a driver, but died before it
/// printed.
pub(super) fn early_console(facts: &Facts<'_>) -> Option<Hint> {
    let wanted = facts.parameters("console").any(|console| device(console) == COM1);
    let possible = driver_missing(facts).is_none();
    let could_help = is_silent(facts) && wanted && possible && !has_early_console(facts);
    (could_help && !facts.interpreted && !facts.has_word(QUIET)).then_some(Hint::EarlyConsole)
}

/// The command line keeps the kernel quiet, and its messages would help. A panic is printed all the same.
pub(super) fn quiet(facts: &Facts<'_>) -> Option<Hint> {
    let is_unexplained = matches!(facts.ending.kind(), EndingKind::Died | EndingKind::TimedOut);
    let silenced = is_unexplained && facts.has_word(QUIET);
    (facts.linux_before_init() && silenced && !facts.interpreted).then_some(Hint::Quiet)
}

fn is_silent(facts: &Facts<'_>) -> bool {
    facts.linux_before_init() && facts.console_bytes == 0
}

fn has_early_console(facts: &Facts<'_>) -> bool {
    EARLY_PARAMETERS.iter().any(|name| facts.parameters(name).next().is_some())
}

/// Returns a console's device without its options.
fn device(console: &str) -> &str {
    console.split(',').next().unwrap_or_default()
}

const QUIET: &str = "quiet";
/// The first serial port, as Linux names it.
const COM1: &str = "ttyS0";
/// The virtio console.
const VIRTIO_CONSOLE: &str = "hvc0";
const CONSOLE_PARAMETERS: &[&str] = &["console"];
const EARLY_PARAMETERS: &[&str] = &["earlyprintk", "earlycon"];
/// Options that COM1 output needs, the most general first.
const DRIVER_OPTIONS: &[&str] =
    &["CONFIG_PRINTK", "CONFIG_TTY", "CONFIG_SERIAL_8250", "CONFIG_SERIAL_8250_CONSOLE"];

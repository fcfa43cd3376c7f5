//! From flags and config file to the configuration of a machine, for every subcommand that creates one.

use coracle::config::{
    ConsoleDevice, NetChoice, NetConfig, RawConfig, SerialConfig, VmConfig, default_cmdline_with, names_root,
};
use coracle::error::field::NETS;
use coracle::exit_code;

use super::chain;
use crate::arguments::VmArgs;

/// Combines the flags with the config file; the flags take precedence.
///
/// # Errors
/// The config file cannot be read, or something in it is wrong.
pub(super) fn raw(args: &VmArgs) -> Result<RawConfig, Failure> {
    let mut flags = args.given();
    if let Some(root) = &mut flags.root {
        root.keep_ids |= args.keep_ids;
    }
    match &args.config {
        None => Ok(flags),
        Some(path) => RawConfig::open(path).map(|file| flags.over(file)).map_err(|error| Failure::of(&error)),
    }
}

/// Why there is no outcome: one line of text, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) reason: String,
}

impl Failure {
    /// Creates the failure for bad usage or configuration.
    pub(super) fn usage(reason: impl Into<String>) -> Failure {
        Failure { code: exit_code::BAD_USAGE, reason: reason.into() }
    }

    /// Creates the failure for an error with its causes.
    pub(super) fn of(error: &dyn std::error::Error) -> Failure {
        Failure::usage(chain(error))
    }
}

/// Returns whether the user has named the guest's root.
pub(super) fn has_root(raw: &RawConfig) -> bool {
    // A `--` in the command line also applies to what is appended to it.
    let line = raw.cmdline.iter().chain(raw.append.iter().flatten());
    raw.root.is_some() || names_root(&line.map(String::as_str).collect::<Vec<_>>().join(" "))
}

/// Creates and checks the configuration, with the command's defaults for settings that were not given.
/// `default_words` are the kernel parameters of the default guest.
///
/// # Errors
/// Two values contradict each other.
pub(super) fn config(raw: &RawConfig, default_words: &'static str) -> Result<VmConfig, Failure> {
    let words = raw.append.iter().flatten().map(String::as_str);
    let mut defaults = Vec::new();
    if raw.kernel.is_none() {
        defaults.push(if has_root(raw) { "quiet" } else { default_words });
    }
    let console = raw.console.unwrap_or_default();
    match (console, &raw.serial) {
        (ConsoleDevice::Serial, _) => {}
        // Both consoles go to the terminal. The kernel's messages stay on the serial port, and only the shell
        // of the default guest uses the virtio console.
        (ConsoleDevice::Virtio, Some(SerialConfig::Stdio)) => defaults.insert(0, "coracle.terminal=hvc0"),
        // The last `console=` becomes /dev/console of the guest. The serial port still gets the kernel's
        // messages, from which endings are explained.
        (ConsoleDevice::Virtio, _) => defaults.insert(0, "console=hvc0"),
    }
    let cmdline = match &raw.cmdline {
        None => default_cmdline_with(defaults.into_iter().chain(words)),
        Some(line) => std::iter::once(line.as_str()).chain(words).collect::<Vec<_>>().join(" "),
    };
    let mut config = VmConfig { cmdline, ..VmConfig::default() };
    raw.set_in(&mut config);
    config.nets = nets(raw.nets.as_deref().unwrap_or_default())?;
    if raw.serial.is_none() && console == ConsoleDevice::Serial {
        config.serial = SerialConfig::Stdio;
    }
    Ok(config)
}

/// Returns the network cards; `none` cannot be combined with others.
fn nets(choices: &[NetChoice]) -> Result<Vec<NetConfig>, Failure> {
    let cards = choices.iter().filter_map(|choice| match choice {
        NetChoice::None => None,
        NetChoice::Card(card) => Some(card.clone()),
    });
    let cards: Vec<NetConfig> = cards.collect();
    if !cards.is_empty() && choices.contains(&NetChoice::None) {
        return Err(Failure::usage(format!("{NETS}: `none` cannot be combined with a network card")));
    }
    Ok(cards)
}

//! From flags and config file to the configuration of a machine: for every command that makes one.

use coracle::config::{
    ConsoleDevice, NetChoice, NetConfig, RawConfig, RootConfig, SerialConfig, Timeout, VmConfig,
    default_cmdline_with, names_root,
};
use coracle::exit_code;
use coracle::guest_data::{self, GuestData};

use super::chain;
use crate::arguments::VmArgs;

/// What the flags say, over what the config file says.
///
/// # Errors
/// The config file cannot be read or is wrong.
pub(super) fn raw(args: &VmArgs) -> Result<RawConfig, Failure> {
    let flags = RawConfig {
        schema: None,
        kernel: args.kernel.clone(),
        initrds: (!args.initrds.is_empty()).then(|| args.initrds.clone()),
        root: args.root.clone().map(|root| RootConfig { keep_ids: root.keep_ids || args.keep_ids, ..root }),
        append: (!args.append.is_empty()).then(|| args.append.clone()),
        cmdline: args.cmdline.clone(),
        protocol: args.protocol,
        kaslr: args.kaslr.then_some(true),
        modules: args.modules.clone(),
        cpus: args.cpus,
        cpu: args.cpu.clone(),
        cpu_affinity: args.cpu_affinity.clone(),
        cpu_quota: args.cpu_quota,
        memory: args.memory,
        disks: (!args.disks.is_empty()).then(|| args.disks.clone()),
        nets: (!args.nets.is_empty()).then(|| args.nets.clone()),
        rng: args.rng.then_some(true),
        balloon: args.balloon.then_some(true),
        vsock: args.vsock.clone(),
        timeout: args.timeout,
        boot_timeout: args.boot_timeout,
        idle_timeout: args.idle_timeout,
        console: None,
        serial: None,
        acpi: args.acpi,
        on_reset: args.on_reset,
        on_halt: args.on_halt,
        host_timeout: args.host_timeout,
        accel: args.accel,
        outcome: None,
    };
    match &args.config {
        None => Ok(flags),
        Some(path) => RawConfig::open(path).map(|file| flags.over(file)).map_err(|error| Failure::of(&error)),
    }
}

/// Why there is no outcome: one line and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) reason: String,
}

impl Failure {
    /// Bad usage or configuration.
    pub(super) fn usage(reason: impl Into<String>) -> Failure {
        Failure { code: exit_code::BAD_USAGE, reason: reason.into() }
    }

    /// The same, for an error and its causes.
    pub(super) fn of(error: &dyn std::error::Error) -> Failure {
        Failure::usage(chain(error))
    }
}

/// Whether the user has said where the guest's root is.
pub(super) fn has_root(raw: &RawConfig) -> bool {
    // A `--` in the one takes what follows in the other along.
    let line = raw.cmdline.iter().chain(raw.append.iter().flatten());
    raw.root.is_some() || names_root(&line.map(String::as_str).collect::<Vec<_>>().join(" "))
}

/// The checked configuration, with the defaults of the command for what was not told; `default_words` are for the default
/// guest.
///
/// # Errors
/// A value does not go with another, or the default guest is not there.
pub(super) fn config(raw: &RawConfig, default_words: &'static str) -> Result<VmConfig, Failure> {
    let words = raw.append.iter().flatten().map(String::as_str);
    let mut defaults = Vec::new();
    let mut initrds = raw.initrds.clone().unwrap_or_default();
    let kernel = match &raw.kernel {
        Some(kernel) => kernel.clone(),
        None => {
            let find = |what| guest_data::find(what).map_err(|error| Failure::of(&error));
            if has_root(raw) {
                defaults.push("quiet");
            } else {
                initrds.insert(0, find(GuestData::GuestInitramfs)?);
                defaults.push(default_words);
            }
            guest_data::default_kernel(raw.kaslr.unwrap_or_default()).map_err(|error| Failure::of(&error))?
        }
    };
    let console = raw.console.unwrap_or_default();
    match (console, &raw.serial) {
        (ConsoleDevice::Serial, _) => {}
        // The kernel's messages are seen as they are: only the shell of the default guest is on the other.
        (ConsoleDevice::Virtio, Some(SerialConfig::Stdio)) => defaults.insert(0, "coracle.terminal=hvc0"),
        // The last one is the guest's own; the serial port keeps the kernel's messages, from which endings are explained.
        (ConsoleDevice::Virtio, _) => defaults.insert(0, "console=hvc0"),
    }
    let cmdline = match &raw.cmdline {
        None => default_cmdline_with(defaults.into_iter().chain(words)),
        Some(line) => std::iter::once(line.as_str()).chain(words).collect::<Vec<_>>().join(" "),
    };
    Ok(VmConfig {
        protocol: raw.protocol.unwrap_or_default(),
        kaslr: raw.kaslr.unwrap_or_default(),
        initrds,
        root: raw.root.clone(),
        modules: raw.modules.clone(),
        cmdline,
        vcpus: raw.cpus.unwrap_or_default(),
        cpu: raw.cpu.clone().unwrap_or_default(),
        cpu_affinity: raw.cpu_affinity.clone(),
        cpu_quota: raw.cpu_quota,
        memory: raw.memory.unwrap_or_default(),
        console,
        serial: raw.serial.clone().unwrap_or(match console {
            ConsoleDevice::Serial => SerialConfig::Stdio,
            ConsoleDevice::Virtio => SerialConfig::Null,
        }),
        disks: raw.disks.clone().unwrap_or_default(),
        nets: nets(raw.nets.as_deref().unwrap_or_default())?,
        rng: raw.rng.unwrap_or_default(),
        balloon: raw.balloon.unwrap_or_default(),
        vsock: raw.vsock.clone(),
        timeout: raw.timeout.and_then(Timeout::limit),
        boot_timeout: raw.boot_timeout,
        idle_timeout: raw.idle_timeout,
        acpi: raw.acpi.unwrap_or_default(),
        on_reset: raw.on_reset.unwrap_or_default(),
        on_halt: raw.on_halt.unwrap_or_default(),
        ..VmConfig::new(kernel)
    })
}

/// The network cards; `none` stands alone.
fn nets(choices: &[NetChoice]) -> Result<Vec<NetConfig>, Failure> {
    let cards = choices.iter().filter_map(|choice| match choice {
        NetChoice::None => None,
        NetChoice::Card(card) => Some(card.clone()),
    });
    let cards: Vec<NetConfig> = cards.collect();
    if !cards.is_empty() && choices.contains(&NetChoice::None) {
        return Err(Failure::usage("--net none: it goes with no other --net"));
    }
    Ok(cards)
}

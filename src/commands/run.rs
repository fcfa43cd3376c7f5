//! `coracle run`: decide where the guest runs, run it, tell how it ended.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle::config::{
    Accel, CpuModel, NetChoice, NetConfig, RawConfig, SerialConfig, VmConfig, default_cmdline_with,
};
use coracle::emulated_host::{self, EmulatedHostArgs};
use coracle::guest_data::{self, GuestData};
use coracle::host::{self, KvmKind};
use coracle::outcome::{Outcome, OutcomeReport, Seconds};
use coracle::terminal::RawTerminal;
use coracle::{KernelImage, Vm};

use super::{BAD_USAGE, chain, emulated_exit_code, say};
use crate::cli::RunArgs;
use crate::logger;

mod signals;

/// Runs the guest and returns the exit code of its outcome.
pub(crate) fn run(args: &RunArgs) -> u8 {
    logger::start(args.verbose);
    let raw = match settings(args) {
        Ok(raw) => raw,
        Err(failure) => return tell_failure(args.outcome.as_deref(), failure),
    };
    try_run(args, &raw).unwrap_or_else(|failure| tell_failure(raw.outcome.as_deref(), failure))
}

fn tell_failure(outcome: Option<&Path>, failure: Failure) -> u8 {
    say(&failure.reason);
    let report = OutcomeReport::not_run(failure.code, failure.reason, on_emulated_host());
    write_report(outcome, &report, failure.code)
}

/// What the flags say, over what the config file says.
fn settings(args: &RunArgs) -> Result<RawConfig, Failure> {
    let flags = RawConfig {
        schema: None,
        kernel: args.kernel.clone(),
        initrds: (!args.initrds.is_empty()).then(|| args.initrds.clone()),
        append: (!args.append.is_empty()).then(|| args.append.clone()),
        cmdline: args.cmdline.clone(),
        protocol: args.protocol,
        kaslr: args.kaslr.then_some(true),
        modules: args.modules.clone(),
        cpus: args.cpus,
        cpu: args.cpu.clone(),
        cpu_affinity: args.cpu_affinity.clone(),
        memory: args.memory,
        disks: (!args.disks.is_empty()).then(|| args.disks.clone()),
        nets: (!args.nets.is_empty()).then(|| args.nets.clone()),
        rng: args.rng.then_some(true),
        balloon: args.balloon.then_some(true),
        vsock: args.vsock.clone(),
        timeout: args.timeout,
        serial: args.serial.clone(),
        acpi: args.acpi,
        on_reset: args.on_reset,
        on_halt: args.on_halt,
        accel: args.accel,
        outcome: args.outcome.clone(),
    };
    match &args.config {
        None => Ok(flags),
        Some(path) => RawConfig::open(path).map(|file| flags.over(file)).map_err(|error| Failure::of(&error)),
    }
}

/// Why there is no outcome: one line and its exit code.
pub(super) struct Failure {
    code: u8,
    pub(super) reason: String,
}

impl Failure {
    fn usage(reason: impl Into<String>) -> Failure {
        Failure { code: BAD_USAGE, reason: reason.into() }
    }

    fn of(error: &dyn std::error::Error) -> Failure {
        Failure::usage(chain(error))
    }
}

fn try_run(args: &RunArgs, raw: &RawConfig) -> Result<u8, Failure> {
    if !args.command.is_empty() {
        return Err(Failure::usage("a command for the guest after `--` is not possible yet; leave it out"));
    }
    let config = config(raw)?;
    // Whatever is wrong with them is said before anything is started.
    Vm::builder(config.clone()).check_files().map_err(|error| Failure::of(&error))?;
    match place(raw.accel.unwrap_or_default(), &config.kernel)? {
        Place::Here => run_here(raw, &config),
        Place::EmulatedHost { because } => {
            if let Some(because) = because {
                say(&format!("running on an emulated host, slowly: {because}"));
            }
            run_emulated(args, raw, &config)
        }
    }
}

/// The checked configuration, with the defaults of the command for what was not told.
pub(super) fn config(raw: &RawConfig) -> Result<VmConfig, Failure> {
    let words = raw.append.iter().flatten().map(String::as_str);
    let mut defaults = Vec::new();
    let mut initrds = raw.initrds.clone().unwrap_or_default();
    let kernel = match &raw.kernel {
        Some(kernel) => kernel.clone(),
        None => {
            let find = |what| guest_data::find(what).map_err(|error| Failure::of(&error));
            initrds.insert(0, find(GuestData::GuestInitramfs)?);
            defaults.push(if io::stdin().is_terminal() { "quiet coracle.init=shell" } else { "quiet" });
            guest_data::default_kernel(raw.kaslr.unwrap_or_default()).map_err(|error| Failure::of(&error))?
        }
    };
    let cmdline = match &raw.cmdline {
        None => default_cmdline_with(defaults.into_iter().chain(words)),
        Some(line) => std::iter::once(line.as_str()).chain(words).collect::<Vec<_>>().join(" "),
    };
    Ok(VmConfig {
        protocol: raw.protocol.unwrap_or_default(),
        kaslr: raw.kaslr.unwrap_or_default(),
        initrds,
        modules: raw.modules.clone(),
        cmdline,
        vcpus: raw.cpus.unwrap_or_default(),
        cpu: raw.cpu.clone().unwrap_or_default(),
        cpu_affinity: raw.cpu_affinity.clone(),
        memory: raw.memory.unwrap_or_default(),
        serial: raw.serial.clone().unwrap_or(SerialConfig::Stdio),
        disks: raw.disks.clone().unwrap_or_default(),
        nets: nets(raw.nets.as_deref().unwrap_or_default())?,
        rng: raw.rng.unwrap_or_default(),
        balloon: raw.balloon.unwrap_or_default(),
        vsock: raw.vsock.clone(),
        agent: None,
        timeout: raw.timeout,
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

enum Place {
    Here,
    EmulatedHost { because: Option<String> },
}

/// Where the guest runs. An image that is not Linux runs on whatever KVM there is.
fn place(accel: Accel, kernel: &Path) -> Result<Place, Failure> {
    match accel {
        Accel::Kvm => return Ok(Place::Here),
        // This is the command that the emulated host was started for.
        Accel::Emulate if on_emulated_host() => return Ok(Place::Here),
        Accel::Emulate => return Ok(Place::EmulatedHost { because: None }),
        Accel::Auto => {}
    }
    let image = KernelImage::open(kernel).map_err(|error| Failure::of(&error))?;
    if !image.is_linux() && host::check_kvm().is_ok() {
        return Ok(Place::Here);
    }
    let because = match KvmKind::probe() {
        KvmKind::Hardware { .. } => return Ok(Place::Here),
        KvmKind::Software { .. } => {
            "this KVM interprets kernel code and does not run a stock Linux".to_owned()
        }
        KvmKind::Unusable(error) => chain(&error),
    };
    Ok(Place::EmulatedHost { because: Some(because) })
}

fn run_here(raw: &RawConfig, config: &VmConfig) -> Result<u8, Failure> {
    let signals = signals::Blocked::new().map_err(|error| Failure::of(&error))?;
    let interactive = config.serial == SerialConfig::Stdio && io::stdin().is_terminal();
    let builder = Vm::builder(config.clone()).console_escape(interactive);
    let vm = builder.build().map_err(|error| Failure { code: error.exit_code(), reason: chain(&error) })?;
    let raw_mode = if interactive { RawTerminal::enter(io::stdin().as_fd()) } else { Ok(None) };
    let raw_mode = raw_mode.map_err(|error| Failure::of(&error))?;
    if let Some(path) = vm.console_path() {
        say(&format!("the serial console is {}", path.display()));
    }
    let handle = vm.handle();
    handle.resume();
    signals.wait(&handle).map_err(|error| Failure::of(&error))?;
    let outcome = vm.wait();
    drop(raw_mode);
    let code = tell(raw, &outcome);
    // The user has the answer; giving back what the virtual machine held is the kernel's work at exit.
    std::mem::forget(vm);
    Ok(code)
}

/// One line on stderr, and the report where it is wanted.
fn tell(raw: &RawConfig, outcome: &Outcome) -> u8 {
    let place = if on_emulated_host() { ", on an emulated host" } else { "" };
    say(&format!("{} ({}{place})", outcome.reason(), Seconds(outcome.duration)));
    let unseen = raw.serial.as_ref().is_some_and(|serial| *serial != SerialConfig::Stdio);
    outcome.explanation(unseen).iter().for_each(|line| say(line));
    if outcome.disk_errors > 0 {
        say(&format!("{} requests to disks failed on the host", outcome.disk_errors));
    }
    if outcome.console_bytes_dropped > 0 {
        say(&format!("{} bytes of console output were lost", outcome.console_bytes_dropped));
    }
    log::info!("exits: {:?}", outcome.exits);
    let report = OutcomeReport::of(outcome, on_emulated_host());
    write_report(raw.outcome.as_deref(), &report, outcome.exit_code())
}

/// Writes the report and returns `code`, or the code for bad usage when it cannot be written.
fn write_report(path: Option<&Path>, report: &OutcomeReport<'_>, code: u8) -> u8 {
    let Some(path) = path else { return code };
    let json = serde_json::to_string_pretty(report).map_err(io::Error::other);
    match json.and_then(|json| fs::write(path, json + "\n")) {
        Ok(()) => code,
        Err(error) => {
            say(&format!("--outcome {}: it cannot be written: {error}", path.display()));
            if code == 0 { BAD_USAGE } else { code }
        }
    }
}

/// Runs this command again inside an emulated host.
fn run_emulated(args: &RunArgs, raw: &RawConfig, config: &VmConfig) -> Result<u8, Failure> {
    if let Some(NetConfig { end, .. }) = config.nets.first() {
        return Err(Failure::usage(format!(
            "--net {end}: it does not cross from the emulated host to here; `coracle host-emulate` runs a command that \
             makes its network there"
        )));
    }
    if let Some(uds) = config.vsock.as_ref().and_then(|vsock| vsock.uds.as_ref()) {
        let what = format!("--vsock uds={}", uds.display());
        return Err(Failure::usage(format!("{what}: it does not cross from the emulated host to here")));
    }
    let program = std::env::current_exe().map_err(|error| Failure::of(&error))?;
    let mut command = vec![program.into_os_string()];
    command.extend(std::env::args_os().skip(1));
    let mut shares: Vec<PathBuf> = vec![config.kernel.clone()];
    shares.extend(config.initrds.iter().chain(&args.config).cloned());
    shares.extend(config.modules.clone());
    shares.extend(guest_data::find(GuestData::Agent));
    shares.extend(config.disks.iter().map(|disk| disk.path.clone()));
    if let CpuModel::Template(path) = &config.cpu {
        shares.push(path.clone());
    }
    let written = [raw.outcome.clone(), serial_file(config)?];
    for path in written.into_iter().flatten() {
        // The file has to be there to be seen from inside.
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        file.map_err(|error| Failure::usage(format!("{}: it cannot be written: {error}", path.display())))?;
        shares.push(path);
    }
    let exit = emulated_host::run(&EmulatedHostArgs { command, shares, ..EmulatedHostArgs::default() });
    emulated_exit_code(exit).map_err(|(code, reason)| Failure { code, reason })
}

/// The file that the console writes, which has to be seen from inside.
fn serial_file(config: &VmConfig) -> Result<Option<PathBuf>, Failure> {
    let refused =
        |what| Failure::usage(format!("--serial {what}: it does not cross from the emulated host to here"));
    match &config.serial {
        SerialConfig::File(path) => Ok(Some(path.clone())),
        SerialConfig::Stdio | SerialConfig::Null => Ok(None),
        SerialConfig::Pty => Err(refused("pty")),
        SerialConfig::Socket(_) => Err(refused("socket")),
    }
}

/// True inside an emulated host of Coracle's, which sets this variable.
fn on_emulated_host() -> bool {
    std::env::var_os(emulated_host::MARK).is_some()
}

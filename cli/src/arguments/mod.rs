//! The command line as clap sees it: names, types and help, no logic.

mod cargo_runner_args;
mod command_args;
mod device_args;
mod guest_ip;
mod per_fork;
mod snapshot_args;
pub(crate) mod suggest;
mod surroundings;
mod test_args;
pub(crate) mod variable;
mod vm_args;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use coracle::config::{
    ConsoleDevice, CpuModel, DEFAULT_CMDLINE, MemorySize, SerialConfig, VcpuCount, parse_duration,
};
use coracle::error::field::{Field, LEASE_LIMIT};

pub(crate) use cargo_runner_args::CargoRunnerArgs;
pub(crate) use command_args::CommandArgs;
pub(crate) use device_args::DeviceArgs;
pub(crate) use guest_ip::GuestIp;
pub(crate) use per_fork::PerFork;
pub(crate) use snapshot_args::{RestoreArgs, SnapshotCommand, TimeArg};
pub(crate) use surroundings::Surroundings;
pub(crate) use test_args::{Flaky, NoKvm, TapMode, TestArgs};
pub(crate) use vm_args::{SocketArgs, VmArgs};

/// A lightweight virtual machine monitor for Linux KVM.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, max_term_width = 100)]
#[command(after_help = "Exit codes are listed in docs/outcomes.md; `coracle COMMAND --help` has examples.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

// The arguments of a subcommand are made when it is parsed, and those of the others never. Their structs have
// no documentation, which clap would then take for that of the subcommand. They have the examples, which
// would otherwise be copied for all subcommands in each run.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Boot a kernel and attach its console
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Let a machine, or many, go on from a snapshot
    #[command(args_override_self = true)]
    Restore(Box<RestoreArgs>),
    /// Show or check a snapshot
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Boot one guest or many, and judge them by their consoles and by how they end
    #[command(args_override_self = true)]
    Test(Box<TestArgs>),
    /// Run a program that cargo has built, such as its tests, in a guest: set it as `runner` in
    /// .cargo/config.toml
    #[command(name = "cargo-runner", args_override_self = true)]
    CargoRunner(Box<CargoRunnerArgs>),
    /// Check a config file of `coracle run --config`, or print its JSON Schema
    Config(ConfigArgs),
    /// Show the CPU that guests get
    #[command(subcommand)]
    Cpu(CpuCommand),
    /// Report what this host can run, and how to fix what is missing
    #[command(after_help = "Exits with 0 when a Linux guest can run here in some way, else with 115.")]
    Doctor(DoctorArgs),
    /// Run any command on an emulated machine that has KVM and this machine's files
    #[command(name = "host-emulate")]
    HostEmulate(HostEmulateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = run_examples())]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// Device of the console on stdin and stdout: serial (ttyS0), or virtio (hvc0: faster, and knows the
    /// terminal's size) [default: serial; for the default guest at a terminal both, with its shell on hvc0]
    #[arg(long, value_name = "DEVICE")]
    pub console: Option<ConsoleDevice>,
    /// Connection of the serial port: stdio, pty, file=PATH, socket=PATH or null [default: stdio; with
    /// a command null; with --console virtio null, and stdio sends its output to stdout as well]. A file that
    /// reaches 64M is renamed to PATH.1 and a new one is started; file=PATH,limit=SIZE sets another limit,
    /// limit=none none
    #[arg(long, value_name = "TO")]
    pub serial: Option<SerialConfig>,
    /// File for the outcome, as JSON
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
    /// Write a snapshot of the machine to this folder at each SIGUSR1, which a command then does not get; the
    /// machine runs on
    #[arg(long, value_name = "FOLDER")]
    pub snapshot_on_signal: Option<PathBuf>,
    /// Write a snapshot of the machine to this folder when the command, or a process that it has started,
    /// calls `coracle-agent branch-here`, which then returns; a run without such a call fails. Only root's
    /// processes can ask, or with --user those of any user
    #[arg(long, value_name = "FOLDER", requires = "command")]
    pub snapshot_on_ready: Option<PathBuf>,
    #[command(flatten)]
    pub command: CommandArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the JSON Schema of the config file
    Schema {
        /// Print the schema of the file of `coracle test --suite` instead
        #[arg(long)]
        suite: bool,
    },
    /// Print `ok`, or the first error (exit code 125), without running anything
    Check {
        /// The config file: its values are checked and, if it names a kernel, the kernel, initrds, CPU
        /// template, root and modules too; disks, sockets and other files of the host are not opened
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CpuCommand {
    /// Print the CPUID and registers of a guest's CPU as a template for --cpu
    #[command(after_help = include_str!("examples/cpu-dump.txt").trim_end())]
    Dump {
        /// Model to start from: host, baseline or the path of a template
        #[arg(long, value_name = "MODEL", default_value = "host")]
        cpu: CpuModel,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print a single word: hardware, software, denied or none
    #[arg(long)]
    pub kind: bool,
}

#[derive(Debug, Args)]
#[command(after_help = include_str!("examples/host-emulate.txt").trim_end())]
pub(crate) struct HostEmulateArgs {
    /// A path under /tmp, /run or /dev/shm that the command must see; everything else there is private to it
    #[arg(long = "share", value_name = "PATH")]
    pub shares: Vec<PathBuf>,
    /// Make this machine's files read-only; the only value is `/`, which means all of them
    #[arg(long, value_name = "PATH", value_parser = whole_root)]
    pub read_only: Option<PathBuf>,
    /// How long the emulated machine may take to boot [default: 180s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub host_timeout: Option<Duration>,
    /// CPUs of the emulated machine [default: as many as this machine has, at most 4]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpus: Option<VcpuCount>,
    /// RAM of the emulated machine, allocated as it is used [default: a third of this machine's, from
    /// 512M to 3G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<MemorySize>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The flag of a field that an error of the library names; `None` for one that has no flag.
pub(crate) fn flag_of(field: Field) -> Option<String> {
    if field.setting() == LEASE_LIMIT.setting() {
        return Some("--ip dhcp,timeout=TIME".to_owned());
    }
    let cli = whole();
    let flags = cli.find_subcommand("run")?.get_arguments();
    let flag = flags.into_iter().find(|flag| flag.get_id() == field.setting())?;
    let short = flag.get_short().map(|short| format!("-{short}"));
    short.or_else(|| flag.get_long().map(|long| format!("--{long}")))
}

/// Returns the command line with the arguments of every subcommand.
fn whole() -> clap::Command {
    let mut cli = Cli::command();
    cli.build();
    cli
}

/// Accepts only `/`: if just parts of the root were read-only, they would not be a boundary.
fn whole_root(text: &str) -> Result<PathBuf, String> {
    if text == "/" {
        Ok(text.into())
    } else {
        Err("only `/` can be made read-only, as a whole; write --read-only /".into())
    }
}

/// Returns the examples of `run`, after the default kernel command line.
fn run_examples() -> String {
    include_str!("examples/run.txt").trim_end().replace("{cmdline}", DEFAULT_CMDLINE)
}

#[cfg(test)]
mod tests {
    use coracle::error::field;

    use super::*;

    #[test]
    fn subcommands_describe_themselves_as_the_list_of_them_does() {
        let described = |cli: &clap::Command| -> Vec<_> {
            cli.get_subcommands().map(|command| command.get_about().map(ToString::to_string)).collect()
        };
        let (list, whole) = (described(&Cli::command()), described(&whole()));
        assert!(list.iter().all(Option::is_some), "{list:?}");
        // Building adds `help`.
        assert_eq!(list, whole[..list.len()]);
    }

    /// Arguments after the program belong to it, even those that look like our options.
    #[test]
    fn arguments_after_the_program_are_the_program_s() {
        let line = "coracle cargo-runner --cpus 2 --kernel bzImage /bin/x-1 name --nocapture --cpus 7 -q";
        let Command::CargoRunner(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command");
        };
        assert_eq!(args.command, ["/bin/x-1", "name", "--nocapture", "--cpus", "7", "-q"]);
        assert_eq!(args.vm.kernel, Some("bzImage".into()));
        assert_eq!(args.vm.cpus.map(VcpuCount::value), Some(2));
        assert!(Cli::try_parse_from(["coracle", "cargo-runner", "--no-such-option", "/bin/x"]).is_err());
        assert!(Cli::try_parse_from(["coracle", "cargo-runner"]).is_err());
    }

    /// Each takes the name of a setting whose flag is its own.
    #[test]
    fn errors_of_the_library_name_flags() {
        assert_eq!(flag_of(field::KERNEL), None, "an argument without a flag keeps its name");
        for field in field::ALL.iter().filter(|field| **field != field::KERNEL) {
            let flag = flag_of(*field).unwrap_or_default();
            assert!(flag.starts_with('-'), "{field} has no flag: {flag:?}");
        }
        assert_eq!(
            [field::INITRDS, field::DISKS.item(1, "path"), field::VCPUS, field::BOOT_LIMIT].map(flag_of),
            ["-i", "--disk", "--cpus", "--host-timeout"].map(|flag| Some(flag.to_owned()))
        );
    }

    #[test]
    fn commands_of_the_examples_are_well_formed() {
        let workflow = include_str!("../../../examples/boot-test/.github/workflows/boot-test.yml");
        let commands = workflow.lines().filter_map(|line| line.trim().strip_prefix("run: coracle "));
        let parsed: Vec<Cli> = commands
            .map(|words| Cli::try_parse_from(["coracle"].into_iter().chain(words.split(' '))).unwrap())
            .collect();
        assert!(parsed.iter().any(|cli| matches!(&cli.command, Command::Test(test) if test.suite.is_some())));

        let config: toml::Table =
            include_str!("../../../examples/cargo-runner/.cargo/config.toml").parse().unwrap();
        let runner = config["target"]["x86_64-unknown-linux-gnu"]["runner"].clone();
        let mut words: Vec<String> = runner.try_into().unwrap();
        words.extend(["/program".into(), "--exact".into()]);
        let cli = Cli::try_parse_from(&words).unwrap();
        assert!(matches!(cli.command, Command::CargoRunner(args) if args.copies.len() == 1));
    }
}

//! The command line as clap sees it: names, types and help, no logic.

mod cargo_runner_args;
mod command_args;
mod guest_ip;
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
pub(crate) use guest_ip::GuestIp;
pub(crate) use surroundings::Surroundings;
pub(crate) use test_args::{Flaky, NoKvm, TapMode, TestArgs};
pub(crate) use vm_args::VmArgs;

/// A lightweight virtual machine monitor for Linux KVM.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, max_term_width = 100)]
#[command(after_help = "Exit codes are listed in docs/outcomes.md; `coracle COMMAND --help` has examples.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a kernel and attach its console
    #[command(args_override_self = true, after_help = RUN_EXAMPLES.as_str())]
    Run(Box<RunArgs>),
    /// Boot one guest or many, and judge them by their consoles and by how they end
    #[command(args_override_self = true, after_help = TEST_EXAMPLES)]
    Test(Box<TestArgs>),
    /// Run a program that cargo has built, such as its tests, in a guest: set it as `runner` in
    /// .cargo/config.toml
    #[command(
        name = "cargo-runner",
        args_override_self = true,
        after_help = CARGO_RUNNER_EXAMPLES,
        mut_arg("kernel", |kernel| kernel.long("kernel").value_name("FILE"))
    )]
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
    #[command(name = "host-emulate", after_help = HOST_EMULATE_EXAMPLES)]
    HostEmulate(HostEmulateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// Device of the console on stdin and stdout: serial (ttyS0), or virtio (hvc0: faster, and knows the
    /// terminal's size) [default: serial; for the default guest at a terminal both, with its shell on hvc0]
    #[arg(long, value_name = "DEVICE")]
    pub console: Option<ConsoleDevice>,
    /// What to connect the serial port to: stdio, pty, file=PATH, socket=PATH or null [default: stdio; with
    /// --console virtio null, and stdio sends its output to stdout as well]. A file that reaches 64M is
    /// renamed to PATH.1 and a new one is started; file=PATH,limit=SIZE sets another limit, limit=none none
    #[arg(long, value_name = "TO")]
    pub serial: Option<SerialConfig>,
    /// File for the outcome, as JSON
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
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
        /// The config file: its values are checked and, if it names a kernel, everything else that needs no
        /// KVM
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CpuCommand {
    /// Print the CPUID and registers of a guest's CPU as a template for --cpu
    #[command(after_help = CPU_DUMP_EXAMPLES)]
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
    /// RAM of the emulated machine, allocated as it is used [default: a third of this machine's, at most 3G]
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
    let cli = Cli::command();
    let flags = cli.find_subcommand("run")?.get_arguments();
    let flag = flags.into_iter().find(|flag| flag.get_id() == field.setting())?;
    let short = flag.get_short().map(|short| format!("-{short}"));
    short.or_else(|| flag.get_long().map(|long| format!("--{long}")))
}

/// Accepts only `/`: if just parts of the root were read-only, they would not be a boundary.
fn whole_root(text: &str) -> Result<PathBuf, String> {
    if text == "/" {
        Ok(text.into())
    } else {
        Err("only `/` can be made read-only, as a whole; write --read-only /".into())
    }
}

/// The examples, after the default kernel command line.
static RUN_EXAMPLES: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "Default kernel command line (-a appends to it, --cmdline replaces it):\n  {DEFAULT_CMDLINE}\n\n\
         At a terminal, Ctrl-A x ends the guest and Ctrl-A h lists the other keys. SIGTERM, SIGINT and SIGHUP press\n\
         the guest's power button; after 5 s, or with a second signal, the guest is stopped. A command receives them itself.\n\n\
         Examples:\n  \
         coracle run                                       the default guest: a shell, or a report without a terminal\n  \
         coracle run bzImage -i initrd.cpio -a quiet       a kernel and an initramfs of your own\n  \
         coracle run vmlinux --cpus 4 --memory 2G --timeout 20s --outcome out.json\n  \
         coracle run vmlinux --serial file=console.log --accel kvm\n  \
         coracle run --console virtio --serial file=kernel.log\n  \
         coracle run bzImage --disk root.img -a root=/dev/vda\n  \
         coracle run --root rootfs/ -a init=/bin/sh        a directory, a tar or an image as the root file system\n  \
         coracle run --disk path=base.img,cow --disk path=data.img,ro --rng\n  \
         coracle run --net tap=tap0,mac=02:00:00:00:00:01  a network card whose other end is the host's tap0\n  \
         coracle run --net socket=/run/passt.sock          the same without root, through passt\n  \
         coracle run --net socket=/run/passt.sock --ip dhcp -- wget -qO- example.org    its network up for a command\n  \
         coracle run bzImage -i initrd.cpio --vsock uds=/run/v.sock    then: socat - UNIX-CONNECT:/run/v.sock\n  \
         coracle run --config vm.json --memory 1G          the settings of vm.json, with more memory\n  \
         coracle run -- sh -c 'uname -r; exit 7'           a command in the guest, with its streams and its exit code\n  \
         coracle run --root rootfs/ --timeout 9s -- id     the same in your own root file system"
    )
});

const TEST_EXAMPLES: &str = "\
A test passes when every --expect has matched a line of the console (at once), or, without one, when the guest powers
off. Exit codes: 0 passed, 120 failed, 77 skipped, 110 kernel panic, 111 crash, 113 KVM cannot run it, 115 no usable
KVM, 124 out of time (60 s unless --timeout says otherwise), 125 wrong usage. docs/testing.md has suites and all rules.

Examples:
  coracle test bzImage -i initrd.cpio --expect 'login: $' --reject 'BUG:|WARNING:' --timeout 20s --junit out.xml
  coracle test --expect ready -- ./service          a command in the guest, until it has written this
  coracle test --assert-boot 150ms                  the default guest, which has to be at its init by then
  coracle test vmlinux -i kunit.cpio --tap require  results in TAP or KTAP have to come, and to be good
  coracle test --suite boot-tests.toml --jobs 4 --artifacts logs --junit out.xml";

const CARGO_RUNNER_EXAMPLES: &str = "\
The program runs as root in the package's directory, with its shared libraries, cargo's variables, and the files that
--copy names; all are at the same paths as here, and gone with the guest. Its exit code is this command's: 101 when
tests have failed, 100 in place of other codes from 100 on. docs/testing.md has an example.

In .cargo/config.toml:
  [target.x86_64-unknown-linux-gnu]
  runner = [\"coracle\", \"cargo-runner\", \"--cpus\", \"2\", \"--copy\", \"tests/data\"]

Then:
  cargo test mounts -- --nocapture";

const CPU_DUMP_EXAMPLES: &str = "\
The template gives exactly this CPU on every host that can have it, and refuses the others.

Examples:
  coracle cpu dump > cpu.json && coracle run vmlinux --cpu cpu.json
  coracle cpu dump --cpu baseline";

const HOST_EMULATE_EXAMPLES: &str = "\
The command runs as root of the emulated machine, with this machine's files, its own /tmp, /run and /dev/shm,
and its standard streams, arguments, environment, signals and exit code as if it ran here. Locks, sockets, taps,
block devices and inherited file descriptors do not cross. It is not a boundary for hostile guests: what takes the
machine over can change what you can, but for --read-only /.

Examples:
  coracle host-emulate -- ls -l /dev/kvm
  coracle host-emulate --read-only / -- ./untrusted
  coracle host-emulate --share /tmp/images -- coracle run /tmp/images/vmlinux";

#[cfg(test)]
mod tests {
    use coracle::error::field;

    use super::*;

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
        for field in field::ALL {
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

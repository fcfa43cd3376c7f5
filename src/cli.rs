//! The command line as clap sees it: names, types and help, no logic.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use coracle::config::{
    Accel, AcpiMode, CpuAffinity, CpuModel, CpuQuota, DEFAULT_CMDLINE, DiskConfig, HaltPolicy,
    KernelProtocol, MemoryConfig, MemorySize, NetChoice, ResetPolicy, SerialConfig, VcpuCount, VsockConfig,
    parse_duration,
};

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
    /// Check a config file of `coracle run --config`, or print its JSON Schema
    Config(ConfigArgs),
    /// Show the CPU that guests get
    #[command(subcommand)]
    Cpu(CpuCommand),
    /// Say what this host can run, and how to mend what is missing
    #[command(after_help = "Exits with 0 when a Linux guest can run here in some way, else with 115.")]
    Doctor(DoctorArgs),
    /// Run any command on an emulated machine that has KVM and this machine's files
    #[command(name = "host-emulate", after_help = HOST_EMULATE_EXAMPLES)]
    HostEmulate(HostEmulateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Kernel image: ELF vmlinux or bzImage; without it the default guest boots
    pub kernel: Option<PathBuf>,
    /// JSON file with any of these options; flags override it, and its paths are relative to its folder
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Initial RAM file system; several are given to the guest one after the other
    #[arg(short, long = "initrd", value_name = "FILE")]
    pub initrds: Vec<PathBuf>,
    /// Folder of the kernel's modules (lib/modules, or of its release): load those that its devices need
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Words to add to the kernel command line
    #[arg(short, long = "append", value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Kernel command line in place of the default one
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// How the kernel is entered: auto, linux (its 64-bit entry) or pvh [default: auto]
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<KernelProtocol>,
    /// Insist on a kernel that chooses a random address: a bzImage that unpacks itself
    #[arg(long)]
    pub kaslr: bool,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<VcpuCount>,
    /// What the vCPUs can do: host, baseline (x86-64-v2) or the path of a template [default: host]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<CpuModel>,
    /// CPUs of the host for the vCPUs: a list for all, as in 0-3, or VCPU=CPU pairs, as in 0=2,1=3
    #[arg(long, value_name = "CPUS", allow_hyphen_values = true)]
    pub cpu_affinity: Option<CpuAffinity>,
    /// Most CPU time that the vCPUs take together, in percent of one CPU, as in 50% or 200% [default: no limit]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub cpu_quota: Option<CpuQuota>,
    /// Size of RAM, as in 512M or 2G, or size=SIZE,hugepages=2M (or 1G) or size=SIZE,memfd [default: 256M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<MemoryConfig>,
    /// Disk: the path of a raw image or block device, or path=PATH with words behind commas: ro (read only), cow (writes
    /// go to a private overlay) with cow-size=SIZE, engine=sync or io_uring, poll=off or 32us, queues=N, id=TEXT, on-error=report or pause
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskConfig>,
    /// Network card, again for each: tap=NAME, fd=NUMBER (a tap or unix stream socket that is open) or socket=PATH (passt,
    /// gvproxy, QEMU's stream), with mac=ADDRESS and mtu=BYTES behind commas; none for no card
    #[arg(long = "net", value_name = "END")]
    pub nets: Vec<NetChoice>,
    /// Give the guest random numbers of this host's (virtio-rng)
    #[arg(long)]
    pub rng: bool,
    /// Take memory back that the guest does not need (virtio-balloon, free page reporting)
    #[arg(long)]
    pub balloon: bool,
    /// Connect ports of the guest with sockets of the host: uds=PATH, where programs say `CONNECT PORT`, and PATH_PORT
    /// where the guest reaches them; cid=NUMBER is the guest's address (virtio-vsock) [default cid: 3]
    #[arg(long, value_name = "VSOCK")]
    pub vsock: Option<VsockConfig>,
    /// Longest time that the guest may run, as in 20s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,
    /// Longest time that the guest may take to its init
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_negative_numbers = true)]
    pub boot_timeout: Option<Duration>,
    /// Longest time that the guest may have nothing to do: its vCPUs take less than 2 % of a CPU
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_negative_numbers = true)]
    pub idle_timeout: Option<Duration>,
    /// What the serial console is connected to: stdio, pty, file=PATH, socket=PATH or null [default: stdio]
    #[arg(long, value_name = "TO")]
    pub serial: Option<SerialConfig>,
    /// What describes the machine to the guest: ACPI tables (on), or an MP table and the command line (off; needs CONFIG_X86_MPPARSE) [default: on]
    #[arg(long, value_name = "on|off")]
    pub acpi: Option<AcpiMode>,
    /// What to do when the guest resets its machine: end with code 112, or start it anew [default: exit]
    #[arg(long, value_name = "exit|reboot")]
    pub on_reset: Option<ResetPolicy>,
    /// What to do when every vCPU has halted for good: wait, or end with code 116 [default: wait]
    #[arg(long, value_name = "wait|exit")]
    pub on_halt: Option<HaltPolicy>,
    /// Where the guest may run [default: auto]
    #[arg(long, value_parser = accel_values())]
    pub accel: Option<Accel>,
    /// File to write the outcome to, as JSON
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
    /// Say more on stderr; twice for debugging
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// A command for the guest (not possible yet)
    #[arg(last = true, hide = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the JSON Schema of the config file
    Schema,
    /// Say `ok`, or the first thing that is wrong (exit code 125), without running anything
    Check {
        /// The config file; its values are checked, and its kernel and initrds are opened
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
    /// Print one word only: hardware, software, denied or none
    #[arg(long)]
    pub kind: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HostEmulateArgs {
    /// A path under /tmp, /run or /dev/shm that the command must see; the rest of these is private to it
    #[arg(long = "share", value_name = "PATH")]
    pub shares: Vec<PathBuf>,
    /// CPUs of the emulated machine; by default those of this one, at most 4
    #[arg(long, value_name = "N")]
    pub cpus: Option<VcpuCount>,
    /// RAM of the emulated machine, taken as it is used; by default a third of this one's, at most 3G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn accel_values() -> impl TypedValueParser<Value = Accel> {
    let values = [
        PossibleValue::new("auto")
            .help("Hardware KVM; else, for a Linux image, an emulated host, and say so"),
        PossibleValue::new("kvm").help("The KVM of this host, whatever kind it is"),
        PossibleValue::new("emulate").help("An emulated host, also where there is KVM"),
    ];
    PossibleValuesParser::new(values).try_map(|word| word.parse())
}

/// The examples, with the default command line in its own words.
static RUN_EXAMPLES: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "Default kernel command line (-a appends to it, --cmdline replaces it):\n  {DEFAULT_CMDLINE}\n\n\
         At a terminal, Ctrl-A x ends the guest and Ctrl-A h lists the other keys. SIGTERM, SIGINT and SIGHUP press\n\
         the guest's power button; after 5 s, or with a second signal, the guest is stopped.\n\n\
         Examples:\n  \
         coracle run                                       the default guest: a shell, or a report without a terminal\n  \
         coracle run bzImage -i initrd.cpio -a quiet       a kernel and an initramfs of your own\n  \
         coracle run vmlinux --cpus 4 --memory 2G --timeout 20s --outcome out.json\n  \
         coracle run vmlinux --serial file=console.log --accel kvm\n  \
         coracle run bzImage --disk root.img -a root=/dev/vda\n  \
         coracle run --disk path=base.img,cow --disk path=data.img,ro --rng\n  \
         coracle run --net tap=tap0,mac=02:00:00:00:00:01  a network card whose other end is the host's tap0\n  \
         coracle run --net socket=/run/passt.sock          the same without root, through passt\n  \
         coracle run bzImage -i initrd.cpio --vsock uds=/run/v.sock    then: socat - UNIX-CONNECT:/run/v.sock\n  \
         coracle run --config vm.json --memory 1G          what vm.json says, with more memory"
    )
});

const CPU_DUMP_EXAMPLES: &str = "\
The template gives exactly this CPU on every host that can have it, and refuses the others.

Examples:
  coracle cpu dump > cpu.json && coracle run vmlinux --cpu cpu.json
  coracle cpu dump --cpu baseline";

const HOST_EMULATE_EXAMPLES: &str = "\
The command runs as root of the emulated machine, with this machine's files, its own /tmp, /run and /dev/shm,
and its standard streams, arguments, environment, signals and exit code as if it ran here. Locks, sockets, taps,
block devices and inherited file descriptors do not cross.

Examples:
  coracle host-emulate -- ls -l /dev/kvm
  coracle host-emulate --share /tmp/images -- coracle run /tmp/images/vmlinux";

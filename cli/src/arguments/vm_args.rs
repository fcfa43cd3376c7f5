//! The options of every command that makes a machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use coracle::config::{
    Accel, AcpiMode, CpuAffinity, CpuModel, CpuQuota, DiskConfig, HaltPolicy, KernelProtocol, MemoryConfig,
    NetChoice, RawConfig, ResetPolicy, RootConfig, Timeout, VcpuCount, VsockConfig, parse_duration,
};

/// Makes the struct that clap reads, and [`VmArgs::told`]: each flag of a setting has its name in the list of
/// `coracle::config` (`src/config/settings.rs`), and an option for its type there.
macro_rules! flags {
    (
        settings { $($(#[$attribute:meta])* $name:ident: $type:ty,)* }
        others { $($(#[$own_attribute:meta])* $own:ident: $own_type:ty,)* }
    ) => {
        /// The machine, its guest, and where it runs.
        #[derive(Debug, Args)]
        pub(crate) struct VmArgs {
            $($(#[$attribute])* pub $name: $type,)*
            $($(#[$own_attribute])* pub $own: $own_type,)*
        }

        impl VmArgs {
            /// The settings that the flags name.
            pub(crate) fn told(&self) -> RawConfig {
                RawConfig { $($name: self.$name.told(),)* ..RawConfig::default() }
            }
        }
    };
}

flags! {
    settings {
        /// Kernel image: ELF vmlinux or bzImage; without it the default guest boots, or with --root or -a
        /// root= its kernel
        kernel: Option<PathBuf>,
        /// Initial RAM file system; several are given to the guest one after the other
        #[arg(short, long = "initrd", value_name = "FILE")]
        initrds: Vec<PathBuf>,
        /// Root file system: a folder, a tar (plain, gzip, xz, zstd, LZ4), or an image of ext4, EROFS or
        /// squashfs, which all stay as they are; or path=PATH and a comma-separated list of rw (writes go to
        /// the image), cow-size=SIZE, as=initramfs or disk, keep-ids. In the list `,,` is a comma of the
        /// path, here and wherever a list has a path
        #[arg(long, value_name = "ROOT")]
        root: Option<RootConfig>,
        /// Folder of the kernel's modules (lib/modules, or of its release): load those that its devices need
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Words to add to the kernel command line
        #[arg(short, long = "append", value_name = "WORDS", allow_hyphen_values = true)]
        append: Vec<String>,
        /// Kernel command line in place of the default one
        #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
        cmdline: Option<String>,
        /// How the kernel is entered: auto, linux (its 64-bit entry) or pvh [default: auto]
        #[arg(long, value_name = "NAME")]
        protocol: Option<KernelProtocol>,
        /// Insist on a kernel that chooses a random address: a bzImage that unpacks itself
        #[arg(long)]
        kaslr: bool,
        /// Number of vCPUs [default: 1]
        #[arg(long, value_name = "N", allow_hyphen_values = true)]
        cpus: Option<VcpuCount>,
        /// What the vCPUs can do: host, baseline (x86-64-v2) or the path of a template [default: host]
        #[arg(long, value_name = "MODEL")]
        cpu: Option<CpuModel>,
        /// CPUs of the host for the vCPUs: a list for all, as in 0-3, or VCPU=CPU pairs, as in 0=2,1=3
        #[arg(long, value_name = "CPUS", allow_hyphen_values = true)]
        cpu_affinity: Option<CpuAffinity>,
        /// Most CPU time that the vCPUs take together, in percent of one CPU, as in 50% or 200% [default: no
        /// limit]
        #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
        cpu_quota: Option<CpuQuota>,
        /// Size of RAM, as in 512M or 2G, or size=SIZE,hugepages=2M (or 1G) or size=SIZE,memfd [default:
        /// 256M]
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
        memory: Option<MemoryConfig>,
        /// Disk: the path of a raw image or block device, or path=PATH and a comma-separated list of ro (read
        /// only), cow (writes go to a private overlay) with cow-size=SIZE, engine=sync (the default) or
        /// io_uring, poll=off or 32us, queues=N, id=TEXT, on-error=report or pause
        #[arg(long = "disk", value_name = "DISK")]
        disks: Vec<DiskConfig>,
        /// Network card, again for each: tap=NAME, fd=NUMBER (a tap or unix stream socket that is open) or
        /// socket=PATH (passt, gvproxy, QEMU's stream), and a comma-separated list of mac=ADDRESS, mtu=BYTES
        /// and poll=off or 32us; none for no card
        #[arg(long = "net", value_name = "END")]
        nets: Vec<NetChoice>,
        /// Give the guest random numbers of this host's (virtio-rng)
        #[arg(long)]
        rng: bool,
        /// Take memory back that the guest does not need (virtio-balloon, free page reporting)
        #[arg(long)]
        balloon: bool,
        /// Connect ports of the guest with sockets of the host: uds=PATH, where programs say `CONNECT PORT`,
        /// and PATH_PORT where the guest reaches them; cid=NUMBER is the guest's address (virtio-vsock)
        /// [default cid: 3]
        #[arg(long, value_name = "VSOCK")]
        vsock: Option<VsockConfig>,
        /// Longest time that the guest, or a command in it, may run, as in 20s or 5m, or none
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        timeout: Option<Timeout>,
        /// Longest time that the guest may take to its init, or with a command until its agent can run it
        /// [default: no limit; 180s with a command]
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        boot_timeout: Option<Duration>,
        /// Longest time that the guest may have nothing to do: its vCPUs take less than 2 % of a CPU
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        idle_timeout: Option<Duration>,
        /// What describes the machine to the guest: ACPI tables (on), or an MP table and the command line
        /// (off; needs CONFIG_X86_MPPARSE) [default: on]
        #[arg(long, value_name = "on|off")]
        acpi: Option<AcpiMode>,
        /// What to do when the guest resets its machine: end with code 112, or start it anew [default: exit]
        #[arg(long, value_name = "exit|reboot")]
        on_reset: Option<ResetPolicy>,
        /// What to do when every vCPU has halted for good: wait, or end with code 116 [default: wait]
        #[arg(long, value_name = "wait|exit")]
        on_halt: Option<HaltPolicy>,
        /// Where the guest may run [default: auto]
        #[arg(long, value_parser = accel_values())]
        accel: Option<Accel>,
        /// Longest time that an emulated host may take to come up [default: 180s]
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        host_timeout: Option<Duration>,
    }
    others {
        /// JSON file with any of these options; flags override it, and its paths are relative to its folder
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Refuse a --root folder whose files' owners cannot be known, where a caller's own files would
        /// become root's
        #[arg(long, requires = "root")]
        keep_ids: bool,
        /// Say on stderr where the time went, and more; twice what is for debugging, three times everything
        #[arg(short, long, action = clap::ArgAction::Count)]
        verbose: u8,
    }
}

/// What a flag says of its setting: nothing, where it was not given.
trait Told<T> {
    fn told(&self) -> Option<T>;
}

impl<T: Clone> Told<T> for Option<T> {
    fn told(&self) -> Option<T> {
        self.clone()
    }
}

impl<T: Clone> Told<Vec<T>> for Vec<T> {
    fn told(&self) -> Option<Vec<T>> {
        (!self.is_empty()).then(|| self.clone())
    }
}

impl Told<bool> for bool {
    fn told(&self) -> Option<bool> {
        self.then_some(true)
    }
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use coracle::config::RawConfig;

    use crate::arguments::Cli;

    #[test]
    fn every_setting_has_its_flag() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for name in RawConfig::NAMES {
            assert!(run.get_arguments().any(|flag| flag.get_id() == name), "{name} has no flag");
        }
    }
}

//! The options of every subcommand that creates a machine.

use std::path::PathBuf;
use std::time::Duration;

use super::per_fork::PerFork;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use coracle::Fork;
use coracle::config::{
    Accel, AcpiMode, CpuAffinity, CpuModel, CpuQuota, DiskConfig, HaltPolicy, KernelProtocol, MemoryConfig,
    NetChoice, RawConfig, ResetPolicy, RootConfig, RtcMode, Timeout, VcpuCount, VsockConfig, parse_duration,
};

/// Defines the struct that clap fills in, and [`VmArgs::given`]. A setting's flag has the setting's name in
/// the list of `coracle::config` (`src/config/settings.rs`), and an option of the setting's type.
macro_rules! flags {
    (
        settings { $($(#[$attribute:meta])* $name:ident: $type:ty,)* }
        others { $($(#[$own_attribute:meta])* $own:ident: $own_type:ty,)* }
    ) => {
        // The machine, its guest, and the host that it runs on.
        #[derive(Debug, Args)]
        pub(crate) struct VmArgs {
            $($(#[$attribute])* pub $name: $type,)*
            $($(#[$own_attribute])* pub $own: $own_type,)*
        }

        impl VmArgs {
            /// Returns the settings that the flags give.
            pub(crate) fn given(&self) -> RawConfig {
                RawConfig { $($name: self.$name.given(),)* ..RawConfig::default() }
            }
        }
    };
}

flags! {
    settings {
        /// Kernel image: ELF vmlinux or bzImage [default: the default guest; with --root or -a root= only its
        /// kernel]
        kernel: Option<PathBuf>,
        /// Initial RAM file system; can be repeated, and the guest gets them in this order
        #[arg(short, long = "initrd", value_name = "FILE")]
        initrds: Vec<PathBuf>,
        /// Root file system: a directory, a tar (plain, gzip, xz, zstd, LZ4), or an image of ext4, EROFS or
        /// squashfs, which stays unmodified; or path=PATH followed by a comma-separated list of rw (writes go
        /// to the ext4 image), cow-size=SIZE, as=initramfs or as=disk, keep-ids, and id=ID. Here and in every
        /// list with a path, `,,` stands for a comma in the path
        #[arg(long, value_name = "ROOT")]
        root: Option<RootConfig>,
        /// Directory of the kernel's modules (lib/modules, or its subdirectory for the release), to load
        /// those that the devices need
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Parameters to append to the kernel command line
        #[arg(short, long = "append", value_name = "WORDS", allow_hyphen_values = true)]
        append: Vec<String>,
        /// Kernel command line that replaces the default one
        #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
        cmdline: Option<String>,
        /// How to enter the kernel: auto, linux (the 64-bit entry point) or pvh [default: auto]
        #[arg(long, value_name = "NAME")]
        protocol: Option<KernelProtocol>,
        /// Require a kernel that randomizes its address (KASLR): a bzImage that decompresses itself
        #[arg(long)]
        kaslr: bool,
        /// Number of vCPUs, 1 to 64 [default: 1]
        #[arg(long, value_name = "N", allow_hyphen_values = true)]
        cpus: Option<VcpuCount>,
        /// CPU model of the vCPUs: host, baseline (x86-64-v2) or the path of a template [default: host]
        #[arg(long, value_name = "MODEL")]
        cpu: Option<CpuModel>,
        /// CPUs of the host for the vCPUs: a list for all vCPUs, as in 0-3, or VCPU=CPU pairs, as in 0=2,1=3
        #[arg(long, value_name = "CPUS", allow_hyphen_values = true)]
        cpu_affinity: Option<CpuAffinity>,
        /// CPU time that all vCPUs together may use, in percent of one CPU, as in 50% or 200%, from 1% to
        /// 6400% [default: no limit]
        #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
        cpu_quota: Option<CpuQuota>,
        /// Size of RAM, as in 512M or 2G, or size=SIZE,hugepages=2M (or 1G) or size=SIZE,memfd [default:
        /// 256M; with cargo-runner 512M, or more for a large program]
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
        memory: Option<MemoryConfig>,
        /// Disk: the path of a raw image or block device, or path=PATH followed by a comma-separated list of
        /// ro (read-only), cow (writes go to a private overlay) with cow-size=SIZE, engine=sync (the default)
        /// or io_uring, poll=off or a time such as 32us, queues=N, id=ID (its name in snapshots, and its
        /// serial number), serial=TEXT, and on-error=report or pause; can be repeated
        #[arg(long = "disk", value_name = "DISK")]
        disks: Vec<DiskConfig>,
        /// Network card: tap=NAME, fd=NUMBER (an open tap or Unix stream socket) or socket=PATH (passt,
        /// gvproxy, QEMU's stream), followed by a comma-separated list of mac=ADDRESS, mtu=BYTES,
        /// poll=off or a time such as 32us, and id=ID; none for no card; can be repeated
        #[arg(long = "net", value_name = "END")]
        nets: Vec<NetChoice>,
        /// Give the guest an entropy device, which supplies the host's random numbers (virtio-rng)
        #[arg(long)]
        rng: bool,
        /// Let the guest give memory back to the host (virtio-balloon, free page reporting)
        #[arg(long)]
        balloon: bool,
        /// Connect ports of the guest to Unix sockets of the host (virtio-vsock): with uds=PATH, programs
        /// connect to PATH and write `CONNECT PORT`, and the guest's connections to a port go to PATH_PORT;
        /// cid=NUMBER sets the guest's address [default cid: 3], and id=ID the device's name in snapshots
        #[arg(long, value_name = "VSOCK")]
        vsock: Option<VsockConfig>,
        /// How long the guest, or a command in it, may run, as in 20s or 5m; or none [default: none; with
        /// test 60s; with cargo-runner 20m for a test program]
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        timeout: Option<Timeout>,
        /// How long the guest may take to reach its init, or with a command, until its agent is ready
        /// [default: no limit; 180s with a command]
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        boot_timeout: Option<Duration>,
        /// How long the guest may be idle: all vCPUs together use less than 2 % of one CPU [default: no
        /// limit]
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        idle_timeout: Option<Duration>,
        /// How to describe the machine to the guest: by ACPI tables (on), or by an MP table and the command
        /// line (off; needs CONFIG_X86_MPPARSE) [default: on]
        #[arg(long, value_name = "on|off")]
        acpi: Option<AcpiMode>,
        /// Whether to announce the CMOS clock, Linux's /dev/rtc0, to the guest; auto does it only if KVM
        /// gives the guest no clock of its own (kvm-clock) [default: auto]
        #[arg(long, value_name = "auto|on|off")]
        rtc: Option<RtcMode>,
        /// Action when the guest resets its machine: exit, with code 112, or reboot [default: exit]
        #[arg(long, value_name = "exit|reboot")]
        on_reset: Option<ResetPolicy>,
        /// Action when every vCPU has halted for good: wait, or exit, with code 116 [default: wait;
        /// with test exit]
        #[arg(long, value_name = "wait|exit")]
        on_halt: Option<HaltPolicy>,
        /// Host for the guest [default: auto]
        #[arg(long, value_parser = accel_values())]
        accel: Option<Accel>,
        /// How long an emulated host may take to boot [default: 180s]
        #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
        host_timeout: Option<Duration>,
    }
    others {
        /// JSON file with any of these options; flags override it, and paths in it are relative to its
        /// directory
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Refuse a --root directory whose file owners cannot be determined, in which the caller's own files
        /// would become root's
        #[arg(long, requires = "root")]
        keep_ids: bool,
        /// Report on stderr how the time was spent, and more; -vv adds debug messages, -vvv traces
        #[arg(short, long, action = clap::ArgAction::Count)]
        verbose: u8,
    }
}

// The socket of a restored machine's vsock device.
#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// Other socket for the vsock device, as with `coracle run --vsock`
    #[arg(long, value_name = "UDS")]
    vsock: Option<PerFork<VsockConfig>>,
}

impl SocketArgs {
    pub(crate) const OPTION: &str = "--vsock";
    pub(crate) const KIND: &str = "vsock";

    /// Returns the connection for the fork with this index, if one was given.
    pub(crate) fn of(&self, index: Option<usize>) -> Option<VsockConfig> {
        self.vsock.as_ref().map(|vsock| vsock.of(index))
    }

    /// Returns the text of a socket that all forks would share.
    pub(crate) fn shared(&self) -> Option<&str> {
        let vsock = self.vsock.as_ref()?;
        (vsock.of(Some(0)).uds.is_some() && !vsock.differs()).then(|| vsock.text())
    }

    /// Connects the device of the fork with this index.
    pub(crate) fn connect(&self, fork: Fork, index: Option<usize>) -> Fork {
        match self.of(index) {
            Some(vsock) => fork.vsock(vsock),
            None => fork,
        }
    }
}

/// The setting that a flag gives; `None` if the flag was not given.
trait Given<T> {
    fn given(&self) -> Option<T>;
}

impl<T: Clone> Given<T> for Option<T> {
    fn given(&self) -> Option<T> {
        self.clone()
    }
}

impl<T: Clone> Given<Vec<T>> for Vec<T> {
    fn given(&self) -> Option<Vec<T>> {
        (!self.is_empty()).then(|| self.clone())
    }
}

impl Given<bool> for bool {
    fn given(&self) -> Option<bool> {
        self.then_some(true)
    }
}

pub(super) fn accel_values() -> impl TypedValueParser<Value = Accel> {
    let values = [
        PossibleValue::new("auto")
            .help("Hardware KVM; without it, an emulated host for Linux images, with a message"),
        PossibleValue::new("kvm").help("The KVM of this host, whatever kind it is"),
        PossibleValue::new("emulate").help("An emulated host, even if there is KVM"),
    ];
    PossibleValuesParser::new(values).try_map(|word| word.parse())
}

#[cfg(test)]
mod tests {
    use coracle::config::RawConfig;

    use crate::arguments::whole;

    #[test]
    fn every_setting_has_its_flag() {
        let cli = whole();
        let run = cli.find_subcommand("run").unwrap();
        for name in RawConfig::NAMES {
            assert!(run.get_arguments().any(|flag| flag.get_id() == name), "{name} has no flag");
        }
    }
}

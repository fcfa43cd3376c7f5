//! The one list of settings. An entry is `name: TYPE, WHAT IT MEANS, EXAMPLES`, and, where the library has
//! the setting too, `=> FIELD: TYPE` with the default after `=` where the type's own is another. From this
//! list come [`RawConfig`] (what was told), [`VmConfig`] (what is to be built), the way from the one to the
//! other, and the properties of the schema. What a value looks like is said by its type, in its
//! [`Setting`](super::setting::Setting). The command checks its flags against this list.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::setting::{Setting, each_path, property, read};
use super::{
    Accel, AcpiMode, AgentConfig, ConsoleDevice, CpuAffinity, CpuModel, CpuQuota, DEFAULT_CMDLINE,
    DiskConfig, HaltPolicy, KernelProtocol, MemoryConfig, NetChoice, NetConfig, ResetPolicy, RootConfig,
    SerialConfig, Timeout, VcpuCount, VsockConfig,
};

macro_rules! settings {
    (
        [$($name:ident: $type:ty, $about:literal, [$($example:expr),+]
            $(=> $field:ident: $field_type:ty $(= $default:expr)?)?;)*]
        library [$($own:ident: $own_type:ty, $own_about:literal $(= $own_default:expr)?;)*]
    ) => {
        /// What a run was told, by flags and by a config file: the same fields, the same types, all
        /// optional. `None` is not told.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RawConfig {
            /// Names the schema for editors; without effect.
            #[serde(rename = "$schema")]
            pub schema: Option<String>,
            $(
                #[doc = $about]
                #[serde(deserialize_with = "read")]
                pub $name: Option<$type>,
            )*
        }

        impl RawConfig {
            /// The name of every setting, as it is in a config file.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// These settings, and those of `below` where these say nothing. A list takes the place of the
            /// other list.
            #[must_use]
            pub fn over(self, below: RawConfig) -> RawConfig {
                RawConfig {
                    schema: self.schema.or(below.schema),
                    $($name: self.$name.or(below.$name),)*
                }
            }

            /// Calls `change` with every path.
            pub(super) fn each_path(&mut self, change: &mut dyn FnMut(&mut PathBuf)) {
                $(each_path(&mut self.$name, change);)*
            }

            /// Sets what was told and has a field of its own in `config`. The kernel command line, the
            /// cards and what only the command follows are left to the caller.
            pub fn set_in(&self, config: &mut VmConfig) {
                $($(
                    if let Some(value) = &self.$name {
                        config.$field = value.clone().into();
                    }
                )?)*
            }

            /// The schema's properties, in the order of this list.
            pub(super) fn properties() -> Vec<(&'static str, Value)> {
                let schema = property(
                    String::form(),
                    "Where this schema is, for editors; without effect",
                    vec![json!("vm.schema.json")],
                );
                vec![
                    ("$schema", schema),
                    $((
                        stringify!($name),
                        property(<$type as Setting>::form(), $about, vec![$(json!($example)),+]),
                    ),)*
                ]
            }
        }

        /// A virtual machine to be built.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct VmConfig {
            $($(
                #[doc = $about]
                pub $field: $field_type,
            )?)*
            $(
                #[doc = $own_about]
                pub $own: $own_type,
            )*
        }

        impl Default for VmConfig {
            /// The default guest, one vCPU, 256 MiB, the default command line, no console, no time limit.
            fn default() -> VmConfig {
                VmConfig {
                    $($($field: default!($field_type $(, $default)?),)?)*
                    $($own: default!($own_type $(, $own_default)?),)*
                }
            }
        }
    };
}

macro_rules! default {
    ($type:ty) => {
        <$type>::default()
    };
    ($type:ty, $default:expr) => {
        $default
    };
}

settings! {[
    kernel: PathBuf,
        "Kernel image (ELF or bzImage). Without it the default guest's kernel boots and, without a root, its \
         initramfs, before `initrds`",
        ["vmlinux"] => kernel: Option<PathBuf>;
    initrds: Vec<PathBuf>,
        "Initial RAM file systems, which the guest sees as one: a file in a later one takes the place \
         of one of the same name",
        [["initrd.cpio"]] => initrds: Vec<PathBuf>;
    root: RootConfig,
        "Root file system, in place of initrds: the path of a directory, a tar or an image, or path=PATH and a \
         comma-separated list of rw, cow, cow-size=SIZE, as=initramfs, as=disk, keep-ids; `,,` is a comma in the path",
        ["rootfs", json!({ "path": "root.img", "rw": true })] => root: Option<RootConfig>;
    append: Vec<String>, "Words to add to the kernel command line", [["quiet"]];
    cmdline: String, "Kernel command line in place of the default one", ["console=ttyS0"];
    protocol: KernelProtocol, "How the kernel is entered", ["auto", "linux", "pvh"] => protocol: KernelProtocol;
    kaslr: bool,
        "Whether the kernel must be a bzImage, which unpacks itself, to a random address",
        [true] => kaslr: bool;
    modules: PathBuf,
        "Directory with the kernel's modules, for devices that need one: that of its release, one that holds it, \
         or the root of a system",
        ["lib/modules/6.1.0"] => modules: Option<PathBuf>;
    cpus: VcpuCount, "Number of vCPUs", [1, VcpuCount::MOST] => vcpus: VcpuCount;
    cpu: CpuModel,
        "What the vCPUs can do: host, baseline, or the path of a template",
        ["baseline"] => cpu: CpuModel;
    cpu_affinity: CpuAffinity,
        "CPUs of the host for the vCPUs; without it they run where the scheduler likes",
        ["0-1"] => cpu_affinity: Option<CpuAffinity>;
    cpu_quota: CpuQuota,
        "Most CPU time that the vCPUs take together, in percent of one CPU; without it, as much as they can",
        ["50%", 200] => cpu_quota: Option<CpuQuota>;
    memory: MemoryConfig,
        "Size of RAM, from 2M to 1T, and what backs it; a number is MiB",
        ["512M", 512] => memory: MemoryConfig;
    disks: Vec<DiskConfig>,
        "Disks, in the order in which the guest finds them: the path of a raw image or block device, or \
         path=PATH and a comma-separated list of ro, cow, cow-size=SIZE, engine=sync, engine=io_uring, poll=off, poll=TIME, \
         queues=N, id=TEXT, on-error=report, on-error=pause; `,,` is a comma in the path",
        [["path=data.img,ro"], json!([{ "path": "data.img", "readonly": true }])] => disks: Vec<DiskConfig>;
    nets: Vec<NetChoice>,
        "Network cards, in the order in which the guest finds them: tap=NAME, fd=NUMBER or socket=PATH, and a \
         comma-separated list of mac=ADDRESS, mtu=BYTES, poll=off and poll=TIME; or none; `,,` is a comma in the path",
        [["tap=tap0,mac=02:00:00:00:00:01"], json!([{ "tap": "tap0", "mtu": 9000 }])];
    rng: bool, "Whether the guest has an entropy device", [true] => rng: bool;
    balloon: bool,
        "Whether the guest gives memory that it does not need back to the host",
        [true] => balloon: bool;
    vsock: VsockConfig,
        "Socket device: uds=PATH for the host's socket and cid=NUMBER for the guest's address",
        ["uds=v.sock,cid=3", json!({ "uds": "v.sock", "cid": 3 })] => vsock: Option<VsockConfig>;
    timeout: Timeout,
        "Longest time that the guest, or a command in it, may run, from its first instruction on, or none; a number is \
         seconds",
        ["20s", 1.5, "none"] => timeout: Option<Duration>;
    boot_timeout: Duration,
        "Longest time that the guest may take from its first instruction to its init; a number is seconds",
        ["5s", 1.5] => boot_timeout: Option<Duration>;
    idle_timeout: Duration,
        "Longest time that the guest may have nothing to do: its vCPUs together take less than 2 % of one CPU; a \
         number is seconds",
        ["10m", 1.5] => idle_timeout: Option<Duration>;
    console: ConsoleDevice,
        "Which device the console on standard input and output is",
        ["serial", "virtio"] => console: ConsoleDevice;
    serial: SerialConfig,
        "What the serial port COM1 is connected to: stdio, pty, file=PATH, socket=PATH or null",
        ["pty", json!({ "file": "console.log", "limit": "1M" })] => serial: SerialConfig = SerialConfig::Null;
    acpi: AcpiMode, "Whether ACPI tables describe the machine", ["on", "off"] => acpi: AcpiMode;
    on_reset: ResetPolicy, "What a reset by the guest does", ["exit", "reboot"] => on_reset: ResetPolicy;
    on_halt: HaltPolicy, "What a halt of all vCPUs for good does", ["wait", "exit"] => on_halt: HaltPolicy;
    host_timeout: Duration,
        "Longest time that an emulated host may take to come up; a number is seconds",
        ["180s", 1.5];
    accel: Accel, "Where the guest may run", ["auto", "kvm", "emulate"];
    outcome: PathBuf, "File to write the outcome to, as JSON", ["outcome.json"];
]
library [
    cmdline: String, "The whole kernel command line" = DEFAULT_CMDLINE.to_owned();
    nets: Vec<NetConfig>, "The network cards, in the order in which the guest finds them";
    agent: Option<AgentConfig>, "The agent by which commands are run in the guest";
]}

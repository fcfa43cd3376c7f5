//! The list of settings. An entry is `name: TYPE, DESCRIPTION, EXAMPLES` and, if the library has the setting
//! too, `=> FIELD: TYPE`, with the default after `=` if it differs from that of the type, and `, builder
//! METHOD` if [`VmBuilder`](crate::VmBuilder) has a method that only sets the field. This list generates
//! [`RawConfig`] (the given settings), [`VmConfig`] (the machine to build), the conversion from one to the
//! other, and the properties of the schema. The form of a value is defined by its type's
//! [`Setting`](super::setting::Setting). The command checks its flags against this list.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::setting::{Setting, each_path, property, read};
use super::{
    Accel, AcpiMode, AgentConfig, ConsoleDevice, CpuAffinity, CpuModel, CpuQuota, DEFAULT_CMDLINE,
    DiskConfig, HaltPolicy, KernelProtocol, MemoryConfig, NetChoice, NetConfig, ResetPolicy, RootConfig,
    RtcMode, SerialConfig, Timeout, VcpuCount, VsockConfig,
};

macro_rules! settings {
    (
        $d:tt
        [$($name:ident: $type:ty, $about:literal, [$($example:expr),+]
            $(=> $field:ident: $field_type:ty $(= $default:expr)? $(, builder $method:ident)?)?;)*]
        library [$($own:ident: $own_type:ty, $own_about:literal $(= $own_default:expr)?;)*]
    ) => {
        /// The settings that flags and a config file have given: the same fields and types, all of them
        /// optional. `None` means not given.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RawConfig {
            /// Names the schema for editors, and has no effect.
            #[serde(rename = "$schema")]
            pub schema: Option<String>,
            $(
                #[doc = $about]
                #[serde(deserialize_with = "read")]
                pub $name: Option<$type>,
            )*
        }

        impl RawConfig {
            /// The name of every setting, as in a config file.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Merges these settings over those of `below`. A list replaces the other list.
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

            /// Copies the given settings that have a field in `config`. The caller handles the kernel command
            /// line, the network cards, and settings that only the command has.
            pub fn set_in(&self, config: &mut VmConfig) {
                $($(
                    if let Some(value) = &self.$name {
                        config.$field = value.clone().into();
                    }
                )?)*
            }

            /// Returns the schema's properties, in the order of this list.
            pub(super) fn properties() -> Vec<(&'static str, Value)> {
                let schema = property(
                    String::form(),
                    "The location of this schema, for editors; it has no effect",
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

        /// Calls `$then!` with `METHOD: TYPE, DESCRIPTION;` for each setting that has a `builder METHOD`. The
        /// builder is in a room above this one.
        macro_rules! builder_methods {
            ($d then:ident) => {
                $d then! { $($($($method: $type, $about;)?)?)* }
            };
        }
        pub(crate) use builder_methods;

        /// The configuration of a virtual machine.
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
            /// The default guest with one vCPU, 256 MiB, the default command line, no console and no time
            /// limit.
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

settings! { $ [
    kernel: PathBuf,
        "Kernel image (ELF or bzImage). Without it the default guest's kernel boots and, without a root, its \
         initramfs, before `initrds`",
        ["vmlinux"] => kernel: Option<PathBuf>;
    initrds: Vec<PathBuf>,
        "Initial RAM file systems, which the guest unpacks in order: a file in a later one replaces a \
         file of the same name",
        [["initrd.cpio"]] => initrds: Vec<PathBuf>;
    root: RootConfig,
        "Root file system, in place of initrds: the path of a directory, a tar or an image, or path=PATH and a \
         comma-separated list of rw, cow, cow-size=SIZE, as=initramfs, as=disk, keep-ids, id=ID; `,,` stands for a \
         comma in the path",
        ["rootfs", json!({ "path": "root.img", "rw": true })] => root: Option<RootConfig>;
    append: Vec<String>, "Parameters to append to the kernel command line", [["quiet"]];
    cmdline: String, "Kernel command line that replaces the default one", ["console=ttyS0"];
    protocol: KernelProtocol, "How the kernel is entered", ["auto", "linux", "pvh"] => protocol: KernelProtocol;
    kaslr: bool,
        "Whether the kernel must be a bzImage, which decompresses itself to a random address (KASLR)",
        [true] => kaslr: bool;
    modules: PathBuf,
        "Directory with the kernel's modules, for devices that need one: that of its release, one that holds it, \
         or the root of a system",
        ["lib/modules/6.1.0"] => modules: Option<PathBuf>;
    cpus: VcpuCount, "Number of vCPUs", [1, VcpuCount::MAX] => vcpus: VcpuCount;
    cpu: CpuModel,
        "CPU model of the vCPUs: host, baseline, or the path of a template",
        ["baseline"] => cpu: CpuModel;
    cpu_affinity: CpuAffinity,
        "CPUs of the host for the vCPUs; by default they run on any CPU",
        ["0-1"] => cpu_affinity: Option<CpuAffinity>;
    cpu_quota: CpuQuota,
        "CPU time that all vCPUs together may use, in percent of one CPU; by default without a limit",
        ["50%", 200] => cpu_quota: Option<CpuQuota>;
    memory: MemoryConfig,
        "Size of RAM, from 2M to 1T, and what backs it; a number is in MiB",
        ["512M", 512] => memory: MemoryConfig;
    disks: Vec<DiskConfig>,
        "Disks, in the order of their names in the guest: the path of a raw image or block device, or \
         path=PATH and a comma-separated list of ro, cow, cow-size=SIZE, engine=sync, engine=io_uring, poll=off, \
         poll=TIME, \
         queues=N, id=ID, serial=TEXT, on-error=report, on-error=pause; `,,` stands for a comma in the path",
        [["path=data.img,ro"], json!([{ "path": "data.img", "readonly": true }])] => disks: Vec<DiskConfig>;
    nets: Vec<NetChoice>,
        "Network cards, in the order of their names in the guest: tap=NAME, fd=NUMBER or socket=PATH, and a \
         comma-separated list of mac=ADDRESS, mtu=BYTES, poll=off, poll=TIME and id=ID; or none; `,,` stands for a \
         comma in the path",
        [["tap=tap0,mac=02:00:00:00:00:01"], json!([{ "tap": "tap0", "mtu": 9000 }])];
    rng: bool, "Whether the guest has an entropy device", [true] => rng: bool, builder rng;
    balloon: bool,
        "Whether the guest can give unused memory back to the host (virtio balloon)",
        [true] => balloon: bool, builder balloon;
    vsock: VsockConfig,
        "Vsock device: uds=PATH for the host's Unix socket, cid=NUMBER for the guest's address, and id=ID",
        ["uds=v.sock,cid=3", json!({ "uds": "v.sock", "cid": 3 })] => vsock: Option<VsockConfig>, builder vsock;
    timeout: Timeout,
        "How long the guest, or a command in it, may run, from its first instruction, or none; a number is in \
         seconds",
        ["20s", 1.5, "none"] => timeout: Option<Duration>;
    boot_timeout: Duration,
        "How long the guest may take from its first instruction to its init; a number is in seconds",
        ["5s", 1.5] => boot_timeout: Option<Duration>;
    idle_timeout: Duration,
        "How long the guest may be idle: all vCPUs together use less than 2 % of one CPU; a number is in \
         seconds",
        ["10m", 1.5] => idle_timeout: Option<Duration>;
    console: ConsoleDevice,
        "Device of the console on standard input and output",
        ["serial", "virtio"] => console: ConsoleDevice;
    serial: SerialConfig,
        "What to connect the serial port COM1 to: stdio, pty, file=PATH, socket=PATH or null",
        ["pty", json!({ "file": "console.log", "limit": "1M" })] => serial: SerialConfig = SerialConfig::Null;
    acpi: AcpiMode, "Whether ACPI tables describe the machine", ["on", "off"] => acpi: AcpiMode;
    rtc: RtcMode,
        "Whether the CMOS clock is announced to the guest (auto: only if KVM gives it no clock of its own)",
        ["auto", "on", "off"] => rtc: RtcMode, builder rtc;
    on_reset: ResetPolicy,
        "What to do when the guest resets its machine",
        ["exit", "reboot"] => on_reset: ResetPolicy, builder on_reset;
    on_halt: HaltPolicy,
        "What to do when every vCPU has halted for good",
        ["wait", "exit"] => on_halt: HaltPolicy, builder on_halt;
    host_timeout: Duration,
        "How long an emulated host may take to boot; a number is in seconds",
        ["180s", 1.5];
    accel: Accel, "Where to run the guest", ["auto", "kvm", "emulate"];
    outcome: PathBuf, "File for the outcome, as JSON", ["outcome.json"];
]
library [
    cmdline: String, "The whole kernel command line" = DEFAULT_CMDLINE.to_owned();
    nets: Vec<NetConfig>, "The network cards, in the order of their names in the guest";
    agent: Option<AgentConfig>, "The agent that runs commands in the guest";
]}

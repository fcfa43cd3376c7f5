//! The settings of one run as the user gave them, by flags and by a config file: the same fields, the same types,
//! all optional. The command merges both and makes a `VmConfig`. Defaults and files are no matter of this module.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{
    Accel, AcpiMode, ConsoleDevice, CpuAffinity, CpuModel, CpuQuota, DiskConfig, HaltPolicy, KernelProtocol,
    MemoryConfig, NetChoice, NetConfig, NetEnd, ResetPolicy, RootConfig, SerialConfig, SerialFile, Timeout,
    VcpuCount, VsockConfig, written,
};

/// What a run was told; `None` is not told. A new setting is one line here, one in [`RawConfig::over`], one in the
/// schema, and, for a path, one in [`RawConfig::relative_to`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Names the schema for editors; without effect.
    #[serde(rename = "$schema")]
    pub schema: Option<String>,
    /// The kernel image; none boots the default guest.
    pub kernel: Option<PathBuf>,
    /// Initial RAM file systems, which the guest sees as one.
    pub initrds: Option<Vec<PathBuf>>,
    /// The root file system.
    pub root: Option<RootConfig>,
    /// Words to add to the kernel command line.
    pub append: Option<Vec<String>>,
    /// The kernel command line in place of the default one.
    pub cmdline: Option<String>,
    /// How the kernel is entered.
    pub protocol: Option<KernelProtocol>,
    /// Whether a bzImage unpacks itself, to a random address.
    pub kaslr: Option<bool>,
    /// The folder with the kernel's modules.
    pub modules: Option<PathBuf>,
    /// How many vCPUs.
    pub cpus: Option<VcpuCount>,
    /// What the vCPUs can do.
    pub cpu: Option<CpuModel>,
    /// CPUs of the host for the vCPUs.
    pub cpu_affinity: Option<CpuAffinity>,
    /// How much of the host's CPUs the vCPUs may take.
    pub cpu_quota: Option<CpuQuota>,
    /// How much RAM, and what backs it.
    pub memory: Option<MemoryConfig>,
    /// The disks.
    pub disks: Option<Vec<DiskConfig>>,
    /// The network cards.
    pub nets: Option<Vec<NetChoice>>,
    /// Whether the guest has an entropy device.
    pub rng: Option<bool>,
    /// Whether the guest gives memory that it does not need back to the host.
    pub balloon: Option<bool>,
    /// The socket device.
    pub vsock: Option<VsockConfig>,
    /// The longest that the guest may run.
    pub timeout: Option<Timeout>,
    /// The longest that the guest may take to its init.
    #[serde(deserialize_with = "written::duration")]
    pub boot_timeout: Option<Duration>,
    /// The longest that the guest may have nothing to do.
    #[serde(deserialize_with = "written::duration")]
    pub idle_timeout: Option<Duration>,
    /// Which device the console is.
    pub console: Option<ConsoleDevice>,
    /// What the serial console is connected to.
    pub serial: Option<SerialConfig>,
    /// What describes the machine to the guest.
    pub acpi: Option<AcpiMode>,
    /// What a reset by the guest does.
    pub on_reset: Option<ResetPolicy>,
    /// What a halt of all vCPUs for good does.
    pub on_halt: Option<HaltPolicy>,
    /// The longest that an emulated host may take to come up.
    #[serde(deserialize_with = "written::duration")]
    pub host_timeout: Option<Duration>,
    /// Where the guest may run.
    pub accel: Option<Accel>,
    /// The file for the outcome, as JSON.
    pub outcome: Option<PathBuf>,
}

impl RawConfig {
    /// These settings, and those of `below` where these say nothing. A list takes the place of the other list.
    #[must_use]
    pub fn over(self, below: RawConfig) -> RawConfig {
        RawConfig {
            schema: self.schema.or(below.schema),
            kernel: self.kernel.or(below.kernel),
            initrds: self.initrds.or(below.initrds),
            root: self.root.or(below.root),
            append: self.append.or(below.append),
            cmdline: self.cmdline.or(below.cmdline),
            protocol: self.protocol.or(below.protocol),
            kaslr: self.kaslr.or(below.kaslr),
            modules: self.modules.or(below.modules),
            cpus: self.cpus.or(below.cpus),
            cpu: self.cpu.or(below.cpu),
            cpu_affinity: self.cpu_affinity.or(below.cpu_affinity),
            cpu_quota: self.cpu_quota.or(below.cpu_quota),
            memory: self.memory.or(below.memory),
            disks: self.disks.or(below.disks),
            nets: self.nets.or(below.nets),
            rng: self.rng.or(below.rng),
            balloon: self.balloon.or(below.balloon),
            vsock: self.vsock.or(below.vsock),
            timeout: self.timeout.or(below.timeout),
            boot_timeout: self.boot_timeout.or(below.boot_timeout),
            idle_timeout: self.idle_timeout.or(below.idle_timeout),
            console: self.console.or(below.console),
            serial: self.serial.or(below.serial),
            acpi: self.acpi.or(below.acpi),
            on_reset: self.on_reset.or(below.on_reset),
            on_halt: self.on_halt.or(below.on_halt),
            host_timeout: self.host_timeout.or(below.host_timeout),
            accel: self.accel.or(below.accel),
            outcome: self.outcome.or(below.outcome),
        }
    }

    /// The same with every relative path taken from `folder`.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> RawConfig {
        let from_folder = |path: &mut PathBuf| *path = folder.join(&path);
        self.kernel.iter_mut().for_each(from_folder);
        self.initrds.iter_mut().flatten().for_each(from_folder);
        self.root.iter_mut().for_each(|root| from_folder(&mut root.path));
        self.modules.iter_mut().for_each(from_folder);
        self.vsock.iter_mut().filter_map(|vsock| vsock.uds.as_mut()).for_each(from_folder);
        self.outcome.iter_mut().for_each(from_folder);
        self.disks.iter_mut().flatten().for_each(|disk| from_folder(&mut disk.path));
        for net in self.nets.iter_mut().flatten() {
            if let NetChoice::Card(NetConfig { end: NetEnd::Socket(path), .. }) = net {
                from_folder(path);
            }
        }
        if let Some(CpuModel::Template(path)) = &mut self.cpu {
            from_folder(path);
        }
        if let Some(SerialConfig::File(SerialFile { path, .. }) | SerialConfig::Socket(path)) =
            &mut self.serial
        {
            from_folder(path);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn settings_above_win_field_by_field_and_lists_as_a_whole() {
        let flags = raw(r#"{"cpus": 2, "append": ["a"]}"#);
        let file = raw(r#"{"cpus": 4, "memory": "1G", "append": ["b", "c"], "initrds": ["i"]}"#);
        let expected = raw(r#"{"cpus": 2, "memory": "1G", "append": ["a"], "initrds": ["i"]}"#);
        assert_eq!(flags.over(file), expected);
    }

    #[test]
    fn null_is_not_told() {
        assert_eq!(raw(r#"{"kernel": null, "cpus": null, "timeout": null}"#), RawConfig::default());
    }

    #[test]
    fn absolute_paths_and_other_words_stay() {
        let json = r#"{"kernel": "/boot/vmlinux", "serial": "null", "append": ["root=vda"], "cmdline": "x"}"#;
        assert_eq!(raw(json).relative_to(Path::new("/vm")), raw(json));
    }

    #[test]
    fn folder_of_a_bare_file_name_changes_nothing() {
        let relative = raw(r#"{"kernel": "vmlinux"}"#);
        assert_eq!(relative.clone().relative_to(Path::new("")), relative);
    }
}

//! The builder's shorthands for common settings; [`VmBuilder::configure`] reaches all the others.

use std::path::PathBuf;
use std::time::Duration;

use coracle_arch::field::{CPU_QUOTA, Field, MEMORY, VCPUS};

use super::VmBuilder;
use crate::config::{
    AgentConfig, AgentPlace, ConfigError, CpuQuota, DiskConfig, MemorySize, NetConfig, RootConfig, RootKind,
    VcpuCount, VmConfig,
};

impl VmBuilder {
    /// Sets the kernel image. Without it, the machine uses the default guest's kernel, and loads the default
    /// guest's initramfs before every [`initrd`](VmBuilder::initrd) unless there is a root.
    pub fn kernel(self, path: impl Into<PathBuf>) -> VmBuilder {
        let path = path.into();
        self.configure(|config| config.kernel = Some(path))
    }

    /// Adds an initial RAM file system. A file in it replaces a file of the same name in those before it; the
    /// default guest's initramfs, where it applies, comes first.
    pub fn initrd(self, path: impl Into<PathBuf>) -> VmBuilder {
        let path = path.into();
        self.configure(|config| config.initrds.push(path))
    }

    /// Sets the root file system, in place of an initrd. Unless [`VmBuilder::agent`] configures otherwise,
    /// its own init does not run: the guest waits for commands ([`Vm::exec`](super::Vm::exec)).
    pub fn root(self, root: RootConfig) -> VmBuilder {
        self.configure(|config| {
            config.root = Some(root);
            config.agent.get_or_insert_with(|| AgentConfig::new(AgentPlace::FirstProcess));
        })
    }

    /// Uses a directory as the root file system; the directory is not modified.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::{Grace, Vm};
    ///
    /// let vm = Vm::builder().root_dir("rootfs").start()?;         // or `root_tar`, `root_image`
    /// let release = vm.exec(["cat", "/etc/os-release"]).output()?;
    /// print!("{}", String::from_utf8_lossy(&release.stdout));
    /// vm.stop(Grace::default());
    /// # Ok(())
    /// # }
    /// ```
    pub fn root_dir(self, path: impl Into<PathBuf>) -> VmBuilder {
        self.root(RootConfig { kind: Some(RootKind::Directory), ..RootConfig::new(path) })
    }

    /// Uses a tar archive, compressed or not, as the root file system.
    pub fn root_tar(self, path: impl Into<PathBuf>) -> VmBuilder {
        self.root(RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) })
    }

    /// Uses an ext4, EROFS or squashfs image as the root file system; the image is not modified.
    pub fn root_image(self, path: impl Into<PathBuf>) -> VmBuilder {
        self.root(RootConfig { kind: Some(RootKind::Image), ..RootConfig::new(path) })
    }

    /// Appends parameters to the kernel command line.
    pub fn append(self, words: &str) -> VmBuilder {
        self.configure(|config| {
            if !config.cmdline.is_empty() && !words.is_empty() {
                config.cmdline.push(' ');
            }
            config.cmdline.push_str(words);
        })
    }

    /// Replaces the whole kernel command line.
    pub fn cmdline(self, line: &str) -> VmBuilder {
        self.configure(|config| line.clone_into(&mut config.cmdline))
    }

    /// Sets the number of vCPUs. An invalid number is reported by [`VmBuilder::build`].
    pub fn cpus(self, count: u8) -> VmBuilder {
        self.checked(VCPUS, VcpuCount::new(count), |config, count| config.vcpus = count)
    }

    /// Sets the amount of RAM, in MiB. An invalid size is reported by [`VmBuilder::build`].
    pub fn memory_mib(self, mib: u64) -> VmBuilder {
        self.checked(MEMORY, MemorySize::from_mib(mib), |config, size| config.memory = size.into())
    }

    /// Adds a disk.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::config::DiskAccess;
    /// use coracle::{AgentConfig, Disk, Vm};
    ///
    /// let data = Disk { access: DiskAccess::Overlay { max_bytes: None }, ..Disk::new("data.img") };
    /// let more: Disk = "path=more.img,ro".parse()?;                // as with `--disk`
    /// let vm = Vm::builder().agent(AgentConfig::default()).disk(data).disk(more).start()?;
    /// vm.exec(["mount", "/dev/vda", "/mnt"]).status()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn disk(self, disk: DiskConfig) -> VmBuilder {
        self.configure(|config| config.disks.push(disk))
    }

    /// Adds a network card.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::Vm;
    /// use coracle::agent::NetworkSettings;
    ///
    /// // A program such as passt listens on the socket; `tap=NAME` uses a tap of the host.
    /// let card = "socket=/run/user/1000/passt.socket".parse()?;
    /// let vm = Vm::builder().root_dir("rootfs").net(card).start()?;
    /// let network = vm.network_up(NetworkSettings::default())?;    // by DHCP
    /// println!("{} on {:?}", network.address, network.interface);
    /// # Ok(())
    /// # }
    /// ```
    pub fn net(self, net: NetConfig) -> VmBuilder {
        self.configure(|config| config.nets.push(net))
    }

    /// Adds the agent that runs commands in the guest.
    pub fn agent(self, agent: AgentConfig) -> VmBuilder {
        self.configure(|config| config.agent = Some(agent))
    }

    /// Limits how long the guest may run.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use coracle::Vm;
    /// use coracle::outcome::Ending;
    ///
    /// let outcome = Vm::builder()
    ///     .root_dir("rootfs")
    ///     .cpus(2)
    ///     .memory_mib(512)
    ///     .cpu_quota_percent(150)                          // of one CPU of the host
    ///     .boot_timeout(Duration::from_secs(30))
    ///     .timeout(Duration::from_secs(600))
    ///     .run()?;
    /// if let Ending::TimedOut { kind, limit } = outcome.ending {
    ///     println!("{kind:?} was over after {limit:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.timeout = Some(limit))
    }

    /// Limits how long the guest may take to reach its init.
    pub fn boot_timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.boot_timeout = Some(limit))
    }

    /// Limits how long the guest may be idle.
    pub fn idle_timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.idle_timeout = Some(limit))
    }

    /// Limits the CPU time of all vCPUs together, in percent of one CPU of the host. An invalid share is
    /// reported by [`VmBuilder::build`].
    pub fn cpu_quota_percent(self, percent: u32) -> VmBuilder {
        self.checked(CPU_QUOTA, CpuQuota::from_percent(percent), |config, quota| {
            config.cpu_quota = Some(quota);
        })
    }

    /// Changes any part of the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut VmConfig)) -> VmBuilder {
        change(&mut self.config);
        self
    }

    /// Applies a value that may be invalid. The first invalid value is kept for `build` to report.
    fn checked<T>(
        mut self,
        field: Field,
        value: Result<T, ConfigError>,
        set: impl FnOnce(&mut VmConfig, T),
    ) -> VmBuilder {
        match value {
            Ok(value) => set(&mut self.config, value),
            Err(error) => drop(self.invalid.get_or_insert((field, error))),
        }
        self
    }
}

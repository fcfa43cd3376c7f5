//! The builder's words for what a program sets most; [`VmBuilder::configure`] reaches everything else.

use std::path::PathBuf;
use std::time::Duration;

use super::VmBuilder;
use crate::config::{
    AgentConfig, AgentPlace, ConfigError, CpuQuota, DiskConfig, HaltPolicy, MemorySize, NetConfig,
    ResetPolicy, RootConfig, RootKind, VcpuCount, VmConfig, VsockConfig,
};

impl VmBuilder {
    /// The kernel image. Without one it is the default guest's, and its initramfs comes before every
    /// [`initrd`](VmBuilder::initrd) unless there is a root.
    pub fn kernel(self, path: impl Into<PathBuf>) -> VmBuilder {
        let path = path.into();
        self.configure(|config| config.kernel = Some(path))
    }

    /// One more initial RAM file system, after the default guest's where the kernel is that guest's: a file
    /// in it takes the place of one of the same name in those before.
    pub fn initrd(self, path: impl Into<PathBuf>) -> VmBuilder {
        let path = path.into();
        self.configure(|config| config.initrds.push(path))
    }

    /// The root file system, in place of an initrd. Unless [`VmBuilder::agent`] says otherwise, no init of
    /// its own runs: the guest waits for commands ([`Vm::exec`](super::Vm::exec)).
    pub fn root(self, root: RootConfig) -> VmBuilder {
        self.configure(|config| {
            config.root = Some(root);
            config.agent.get_or_insert_with(|| AgentConfig::new(AgentPlace::FirstProcess));
        })
    }

    /// A folder as the root file system; it stays as it is.
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

    /// A tar, packed or not, as the root file system.
    pub fn root_tar(self, path: impl Into<PathBuf>) -> VmBuilder {
        self.root(RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) })
    }

    /// An image of ext4, EROFS or squashfs as the root file system; it stays as it is.
    pub fn root_image(self, path: impl Into<PathBuf>) -> VmBuilder {
        self.root(RootConfig { kind: Some(RootKind::Image), ..RootConfig::new(path) })
    }

    /// Words behind the kernel command line.
    pub fn append(self, words: &str) -> VmBuilder {
        self.configure(|config| {
            if !config.cmdline.is_empty() && !words.is_empty() {
                config.cmdline.push(' ');
            }
            config.cmdline.push_str(words);
        })
    }

    /// The whole kernel command line.
    pub fn cmdline(self, line: &str) -> VmBuilder {
        self.configure(|config| line.clone_into(&mut config.cmdline))
    }

    /// How many vCPUs. A number that is not possible is an error of [`VmBuilder::build`].
    pub fn cpus(self, count: u8) -> VmBuilder {
        self.checked(VcpuCount::new(count), |config, count| config.vcpus = count)
    }

    /// How much RAM, in MiB. A size that is not possible is an error of [`VmBuilder::build`].
    pub fn memory_mib(self, mib: u64) -> VmBuilder {
        self.checked(MemorySize::from_mib(mib), |config, size| config.memory = size.into())
    }

    /// One more disk.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::config::{AgentConfig, DiskAccess, DiskConfig};
    /// use coracle::{Disk, Vm};
    ///
    /// let data = Disk { access: DiskAccess::Overlay { most: None }, ..DiskConfig::new("data.img") };
    /// let more: Disk = "path=more.img,ro".parse()?;                // as with `--disk`
    /// let vm = Vm::builder().agent(AgentConfig::default()).disk(data).disk(more).start()?;
    /// vm.exec(["mount", "/dev/vda", "/mnt"]).status()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn disk(self, disk: DiskConfig) -> VmBuilder {
        self.configure(|config| config.disks.push(disk))
    }

    /// One more network card.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::Vm;
    /// use coracle::agent::NetworkSettings;
    ///
    /// // A program such as passt listens there; `tap=NAME` takes a tap of the host.
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

    /// Whether the guest has an entropy device.
    pub fn rng(self, yes: bool) -> VmBuilder {
        self.configure(|config| config.rng = yes)
    }

    /// Whether the guest gives memory that it does not need back to the host.
    pub fn balloon(self, yes: bool) -> VmBuilder {
        self.configure(|config| config.balloon = yes)
    }

    /// The socket device.
    pub fn vsock(self, vsock: VsockConfig) -> VmBuilder {
        self.configure(|config| config.vsock = Some(vsock))
    }

    /// The agent by which commands are run in the guest.
    pub fn agent(self, agent: AgentConfig) -> VmBuilder {
        self.configure(|config| config.agent = Some(agent))
    }

    /// The longest that the guest may run.
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
    /// if let Ending::TimedOut { of, limit } = outcome.ending {
    ///     println!("{of:?} was over after {limit:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.timeout = Some(limit))
    }

    /// The longest that the guest may take to its init.
    pub fn boot_timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.boot_timeout = Some(limit))
    }

    /// The longest that the guest may have nothing to do.
    pub fn idle_timeout(self, limit: Duration) -> VmBuilder {
        self.configure(|config| config.idle_timeout = Some(limit))
    }

    /// How much of the host's CPUs the vCPUs may take together, in percent of one CPU. A share that is not
    /// possible is an error of [`VmBuilder::build`].
    pub fn cpu_quota_percent(self, percent: u32) -> VmBuilder {
        self.checked(CpuQuota::from_percent(percent), |config, quota| config.cpu_quota = Some(quota))
    }

    /// What follows when the guest resets its machine.
    pub fn on_reset(self, policy: ResetPolicy) -> VmBuilder {
        self.configure(|config| config.on_reset = policy)
    }

    /// What follows when the guest halts for good.
    pub fn on_halt(self, policy: HaltPolicy) -> VmBuilder {
        self.configure(|config| config.on_halt = policy)
    }

    /// Changes anything of the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut VmConfig)) -> VmBuilder {
        change(&mut self.config);
        self
    }

    /// Sets a value that can be wrong; the first that is wrong is what `build` says.
    fn checked<T>(mut self, value: Result<T, ConfigError>, set: impl FnOnce(&mut VmConfig, T)) -> VmBuilder {
        match value {
            Ok(value) => set(&mut self.config, value),
            Err(error) => drop(self.invalid.get_or_insert(error)),
        }
        self
    }
}

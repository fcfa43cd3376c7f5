//! Where a guest runs: on the KVM of this host, or on an emulated one, where this command runs again.

use std::path::{Path, PathBuf};
use std::{fs, iter};

use coracle::KernelImage;
use coracle::config::{Accel, CpuModel, NetConfig, SerialConfig, VmConfig};
use coracle::emulated_host::{self, EmulatedHostArgs};
use coracle::guest_data::{self, GuestData};
use coracle::host::{self, KvmKind};

use super::settings::Failure;
use super::{chain, emulated_exit_code};

/// Where guests run.
pub(super) enum Place {
    /// On the KVM of this host.
    Here,
    /// On an emulated host, and why if nobody asked for it.
    EmulatedHost { because: Option<String> },
}

/// Where the guest of a kernel runs. An image that is not Linux runs on whatever KVM there is.
///
/// # Errors
/// The kernel cannot be read.
pub(super) fn place(accel: Accel, kernel: Option<&Path>) -> Result<Place, Failure> {
    match accel {
        Accel::Kvm => return Ok(Place::Here),
        // This is the command that the emulated host was started for.
        Accel::Emulate if on_emulated_host() => return Ok(Place::Here),
        Accel::Emulate => return Ok(Place::EmulatedHost { because: None }),
        Accel::Auto => {}
    }
    let image = kernel.map(KernelImage::open).transpose().map_err(|error| Failure::of(&error))?;
    if image.is_some_and(|image| !image.is_linux()) && host::check_kvm().is_ok() {
        return Ok(Place::Here);
    }
    let because = match KvmKind::probe() {
        KvmKind::Hardware { .. } => return Ok(Place::Here),
        KvmKind::Software { .. } => {
            "this KVM interprets kernel code and does not run a stock Linux".to_owned()
        }
        KvmKind::Unusable(error) => chain(&error),
    };
    Ok(Place::EmulatedHost { because: Some(because) })
}

/// What this command needs on an emulated host.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    /// Files that it reads, and folders that it reads or writes.
    pub(super) shares: Vec<PathBuf>,
    /// Files that it writes, made when they are not there.
    pub(super) written: Vec<PathBuf>,
}

impl Crossing {
    /// Adds all that the machine of `config` uses.
    ///
    /// # Errors
    /// It uses something that does not cross.
    pub(super) fn add(&mut self, config: &VmConfig) -> Result<(), Failure> {
        if let Some(NetConfig { end, .. }) = config.nets.first() {
            return Err(Failure::usage(format!(
                "--net {end}: it does not cross from the emulated host to here; `coracle host-emulate` runs a command \
                 that makes its network there"
            )));
        }
        if let Some(uds) = config.vsock.as_ref().and_then(|vsock| vsock.uds.as_ref()) {
            let what = format!("--vsock uds={}", uds.display());
            return Err(Failure::usage(format!("{what}: it does not cross from the emulated host to here")));
        }
        self.shares.extend(config.kernel.iter().chain(&config.initrds).chain(&config.modules).cloned());
        self.shares.extend(guest_data::find(GuestData::Agent));
        self.shares.extend(config.disks.iter().map(|disk| disk.path.clone()));
        if let CpuModel::Template(path) = &config.cpu {
            self.shares.push(path.clone());
        }
        self.written.extend(serial_file(config)?);
        Ok(())
    }

    /// Runs this command again on an emulated host, and returns its exit code.
    ///
    /// # Errors
    /// There is none, or a file cannot cross.
    pub(super) fn run(self) -> Result<u8, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::of(&error))?;
        let command = iter::once(program.into_os_string()).chain(std::env::args_os().skip(1)).collect();
        let Crossing { mut shares, written } = self;
        for path in written {
            // The file has to be there to be seen from inside.
            let file = fs::OpenOptions::new().append(true).create(true).open(&path);
            file.map_err(|error| {
                Failure::usage(format!("{}: it cannot be written: {error}", path.display()))
            })?;
            shares.push(path);
        }
        let exit = emulated_host::run(&EmulatedHostArgs { command, shares, ..EmulatedHostArgs::default() });
        emulated_exit_code(exit).map_err(|(code, reason)| Failure { code, reason })
    }
}

/// The file that the console writes, which has to be seen from inside.
fn serial_file(config: &VmConfig) -> Result<Option<PathBuf>, Failure> {
    let refused =
        |what| Failure::usage(format!("--serial {what}: it does not cross from the emulated host to here"));
    match &config.serial {
        SerialConfig::File(path) => Ok(Some(path.clone())),
        SerialConfig::Stdio | SerialConfig::Null => Ok(None),
        SerialConfig::Pty => Err(refused("pty")),
        SerialConfig::Socket(_) => Err(refused("socket")),
    }
}

/// True inside an emulated host of Coracle's, which sets this variable.
pub(super) fn on_emulated_host() -> bool {
    std::env::var_os(emulated_host::MARK).is_some()
}

//! The needs of a command on an emulated host, on which it runs again. The subcommands that run guests call
//! this. Errors about a file are reported here, with the option that names it, before that host is started.

use std::fmt::Display;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io, iter};

use coracle::VmBuilder;
use coracle::command::emulated_host::{self, EmulatedExit, EmulatedHostArgs};
use coracle::command::signal_name;
use coracle::config::{
    CpuModel, DiskAccess, DiskConfig, MemorySize, NetConfig, RootAccess, SerialConfig, VmConfig, VsockConfig,
};
use coracle::exit_code;
use coracle::host::EmulatedHostError;
use coracle_arch::regular_file;
use coracle_image::guest_data::IS_AGENT_BUNDLED;
use coracle_image::guest_data::{self, GuestData};

use serde_json::{Map, Value};

use super::place::on_emulated_host_because;
use super::run::watch::Watch;
use super::settings::Failure;
use super::{chain, emulated_exit_code, say};

/// The needs of this command on an emulated host.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    read: Vec<NamedFile>,
    written: Vec<NamedFile>,
    /// The files and directories, among the others, that the command changes.
    changed: Vec<PathBuf>,
    /// Why the guest runs on an emulated host, if the user did not ask for it.
    because: Option<String>,
    /// The memory of the largest guest.
    largest: Option<MemorySize>,
    cpus: Option<u32>,
    boot_limit: Option<Duration>,
    time_limit: Option<Duration>,
    /// The outcome file. If output was lost on its way to this side, only this side knows, and amends the
    /// file.
    outcome: Option<PathBuf>,
    runs_command: bool,
}

impl Crossing {
    /// Starts without any needs. `because` is the reason for the emulated host, if the user did not ask for
    /// it.
    pub(super) fn because(because: Option<String>) -> Crossing {
        Crossing { because, ..Crossing::default() }
    }

    /// Adds everything that the machine of `builder` uses. The number of CPUs is set before.
    ///
    /// # Errors
    /// The machine uses something that is not available, or not available on an emulated host.
    pub(super) fn add(&mut self, builder: &VmBuilder) -> Result<(), Failure> {
        let config = builder.config();
        refuse_ends(&config.nets, config.vsock.as_ref(), &config.serial)?;
        self.check_cpus(config)?;
        self.largest = self.largest.max(Some(config.memory.size()));
        builder.check_devices().map_err(|error| Failure::of(&error))?;
        self.add_read("the kernel ", &config.kernel);
        let found = builder.found_files().map_err(|error| Failure::of(&error))?;
        self.add_read("a file that belongs to the kernel, ", found);
        self.add_read("-i ", &config.initrds);
        self.add_read("--modules ", &config.modules);
        if !IS_AGENT_BUNDLED {
            self.add_read("the module loader ", guest_data::find(GuestData::Agent).ok());
        }
        self.add_read("--root ", config.root.iter().map(|root| &root.path));
        self.add_disks(&config.disks);
        let root = config.root.iter().filter(|root| root.access == RootAccess::Image);
        self.add_changed(root.map(|root| &root.path));
        if let CpuModel::Template(path) = &config.cpu {
            self.add_read("--cpu ", [path]);
        }
        if let SerialConfig::File(file) = &config.serial {
            self.add_written("--serial file=", [&file.path]);
        }
        Ok(())
    }

    /// Adds the disks of a machine that goes on from a snapshot, and the file of its console, as far as they
    /// cross.
    ///
    /// # Errors
    /// A device has an end on this host that a guest on another host cannot have.
    pub(super) fn add_ends(
        &mut self,
        disks: &[DiskConfig],
        (nets, vsock): (&[NetConfig], Option<&VsockConfig>),
        serial: Option<&SerialConfig>,
    ) -> Result<(), Failure> {
        refuse_ends(nets, vsock, serial.unwrap_or(&SerialConfig::Null))?;
        self.add_disks(disks);
        if let Some(SerialConfig::File(file)) = serial {
            self.add_written("--serial file=", [&file.path]);
        }
        Ok(())
    }

    fn add_disks(&mut self, disks: &[DiskConfig]) {
        self.add_read("--disk ", disks.iter().map(|disk| &disk.path));
        let written = disks.iter().filter(|disk| disk.access == DiskAccess::ReadWrite);
        self.add_changed(written.map(|disk| &disk.path));
    }

    /// Sets the memory of the guest, or of all guests together.
    pub(super) fn memory(&mut self, size: MemorySize) {
        self.largest = self.largest.max(Some(size));
    }

    /// Adds files that the command reads, and directories that it reads or writes. Messages put `option`
    /// before the path.
    pub(super) fn add_read<P: AsRef<Path>>(
        &mut self,
        option: &'static str,
        paths: impl IntoIterator<Item = P>,
    ) {
        self.read.extend(paths.into_iter().map(|path| NamedFile { option, path: path.as_ref().to_owned() }));
    }

    /// Adds files that the command writes; missing ones are created.
    pub(super) fn add_written<P: AsRef<Path>>(
        &mut self,
        option: &'static str,
        paths: impl IntoIterator<Item = P>,
    ) {
        let files = paths.into_iter().map(|path| NamedFile { option, path: path.as_ref().to_owned() });
        self.written.extend(files);
    }

    /// Allows the command to change existing files and directories, which would otherwise be read-only.
    pub(super) fn add_changed<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        self.changed.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
    }

    /// Adds a snapshot that the command writes: its folder gets its name when it is complete, so the folder
    /// around it changes.
    pub(super) fn add_snapshot(&mut self, option: &'static str, folder: Option<&Path>) {
        if let Some(folder) = folder {
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            self.add_read(option, [parent]);
            self.add_changed([parent]);
        }
    }

    /// Sets the number of CPUs of the emulated host; by default it has as many as this host, up to a limit.
    pub(super) fn cpus(&mut self, count: u32) {
        self.cpus = Some(count);
    }

    /// Limits how long the emulated host may take to boot; `None` for the default.
    pub(super) fn boot_limit(&mut self, limit: Option<Duration>) {
        self.boot_limit = limit;
    }

    /// Sets the time after which this command ends by itself; `None` if it does not.
    pub(super) fn time_limit(&mut self, limit: Option<Duration>) {
        self.time_limit = limit;
    }

    /// Declares that this command's output is that of a command in the guest, which has an outcome file of
    /// its own. Losing a part of it is then an error.
    pub(super) fn for_command(&mut self, outcome: Option<&Path>) {
        self.runs_command = true;
        self.outcome = outcome.map(Path::to_owned);
    }

    /// Runs this command again on an emulated host and returns its exit code. `watch` ends as soon as that
    /// host handles signals itself.
    ///
    /// # Errors
    /// No emulated host can be started, or it cannot use a file.
    pub(super) fn run(self, watch: Option<Watch>) -> Result<u8, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::of(&error))?;
        let command = iter::once(program.into_os_string()).chain(std::env::args_os().skip(1)).collect();
        for file in &self.written {
            if fs::metadata(&file.path).is_ok_and(|found| found.file_type().is_fifo()) {
                return Err(
                    file.refused("an emulated host cannot reach this host's FIFOs; name a regular file")
                );
            }
            // Create the file now, so that the emulated host can see it.
            let mut options = fs::OpenOptions::new();
            options.append(true).create(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            let made = options.open(&file.path);
            made.map_err(|error| file.refused(format!("it cannot be written: {error}")))?;
        }
        // Nothing that is wrong on this side is left to report: say where the guest runs.
        if let Some(because) = &self.because {
            say(&on_emulated_host_because(because));
        }
        let files = || self.read.iter().chain(&self.written);
        let mut shares: Vec<PathBuf> = files().map(|file| file.path.clone()).collect();
        shares.sort();
        shares.dedup();
        drop(watch);
        let written = self.written.iter().map(|file| &file.path);
        let exit = emulated_host::run(&EmulatedHostArgs {
            command,
            shares,
            writable: Some(written.chain(&self.changed).cloned().collect()),
            cpus: self.cpus,
            boot_limit: self.boot_limit,
            time_limit: self.time_limit,
            ends_unread: !self.runs_command,
            ..EmulatedHostArgs::default()
        });
        if let Err(EmulatedHostError::Share { path, problem }) = &exit
            && let Some(file) = files().find(|file| file.path == *path)
        {
            return Err(file.refused(problem));
        }
        self.ended(exit)
    }

    /// Returns the exit code of this command on the emulated host.
    ///
    /// # Errors
    /// That host failed, or the command was killed there and has reported nothing.
    fn ended(&self, exit: Result<EmulatedExit, EmulatedHostError>) -> Result<u8, Failure> {
        let exit = match exit {
            Err(EmulatedHostError::OutputLost { exit: EmulatedExit::Killed(signal), .. })
            | Ok(EmulatedExit::Killed(signal)) => return Err(self.killed(signal)),
            Err(error @ EmulatedHostError::OutputLost { .. }) if self.runs_command => {
                return Ok(self.output_lost(&error));
            }
            Err(EmulatedHostError::OutputLost { stream, source, exit }) => {
                say(&format!("warning: console output cannot be written to {stream}: {source}"));
                Ok(exit)
            }
            exit => exit,
        };
        emulated_exit_code(exit).map_err(|(code, reason)| Failure { code, reason })
    }

    /// Checks that the emulated host has the CPUs that vCPUs are to run on.
    fn check_cpus(&self, config: &VmConfig) -> Result<(), Failure> {
        let Some(affinity) = &config.cpu_affinity else { return Ok(()) };
        let count = self.cpus.unwrap_or_else(emulated_host::default_cpus);
        match affinity.cpus().into_iter().find(|cpu| u32::from(*cpu) >= count) {
            None => Ok(()),
            Some(cpu) => Err(Failure::usage(format!(
                "--cpu-affinity {affinity}: the emulated host has no CPU {cpu}: it has {count}, counted from 0"
            ))),
        }
    }

    /// Creates the failure for a command that a signal killed on the emulated host, and that therefore has
    /// reported nothing.
    fn killed(&self, signal: i32) -> Failure {
        let mut reason = format!("the emulated host's coracle was killed by signal {}", signal_name(signal));
        if let Some(size) = self.largest.filter(|_| signal == libc::SIGKILL) {
            let memory = emulated_host::default_memory_mib();
            reason += &format!(
                ": its memory of {memory}M may be too small for --memory {size}; give the guest less, or run \
                 `coracle host-emulate --memory SIZE -- coracle ...`"
            );
        }
        Failure { code: exit_code::HOST_FAILED, reason }
    }

    /// Reports that a part of a command's output was lost. The outcome file, if there is one, has already
    /// been written on the emulated host.
    fn output_lost(&self, error: &EmulatedHostError) -> u8 {
        let (code, reason) = (error.exit_code(), chain(error));
        say(&reason);
        if let Some(path) = &self.outcome
            && let Err(error) = amend(path, code, &reason)
        {
            say(&format!("--outcome {}: it cannot be written: {error}", path.display()));
        }
        code
    }
}

/// Amends the outcome file of a run whose output was lost after the file was written.
fn amend(path: &Path, code: u8, reason: &str) -> io::Result<()> {
    let text = regular_file::read(path, MAX_OUTCOME_LEN)?;
    let mut report: Map<String, Value> = serde_json::from_slice(&text)?;
    let ending = if report.get("ending").is_some_and(|ending| ending == "not-run") {
        "not-run"
    } else {
        "host-failed"
    };
    report.insert("ending".into(), ending.into());
    report.insert("code".into(), code.into());
    report.insert("reason".into(), reason.into());
    fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
}

/// The largest outcome file. An outcome takes some KiB: hints, the console's last lines and the registers of
/// each vCPU.
const MAX_OUTCOME_LEN: u64 = 16 << 20;

/// A file that the emulated host has to see, with the option that names it.
#[derive(Debug)]
struct NamedFile {
    option: &'static str,
    path: PathBuf,
}

impl NamedFile {
    fn refused(&self, why: impl Display) -> Failure {
        Failure::usage(format!("{}{}: {why}", self.option, self.path.display()))
    }
}

/// Refuses connections to this host that a guest on another host cannot have.
fn refuse_ends(
    nets: &[NetConfig],
    vsock: Option<&VsockConfig>,
    serial: &SerialConfig,
) -> Result<(), Failure> {
    const WHY: &str = "an emulated host cannot reach this host's taps, sockets and terminals";
    if let Some(NetConfig { end, .. }) = nets.first() {
        return Err(Failure::usage(format!(
            "--net {end}: {WHY}; `coracle host-emulate` can run a command that sets up its network there"
        )));
    }
    if let Some(vsock) = vsock.filter(|vsock| vsock.uds.is_some()) {
        return Err(Failure::usage(format!("--vsock {vsock}: {WHY}")));
    }
    match serial {
        serial @ (SerialConfig::Pty | SerialConfig::Socket(_)) => {
            Err(Failure::usage(format!("--serial {serial}: {WHY}")))
        }
        SerialConfig::File(_) | SerialConfig::Stdio | SerialConfig::Null => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coracle_that_was_killed_is_a_failure_of_the_host_with_its_likely_cause() {
        let mut crossing =
            Crossing { largest: Some(MemorySize::from_mib(256 << 10).unwrap()), ..Crossing::default() };
        let Failure { code, reason } = crossing.ended(Ok(EmulatedExit::Killed(libc::SIGKILL))).unwrap_err();
        assert_eq!(code, 117);
        assert!(
            reason
                .starts_with("the emulated host's coracle was killed by signal 9 (SIGKILL): its memory of ")
        );
        assert!(
            reason.contains("may be too small for --memory 256G; give the guest less, or run `"),
            "{reason}"
        );
        // The loss of output does not hide it, whether the output is a command's or a console's.
        for runs_command in [false, true] {
            crossing.runs_command = runs_command;
            let exit = EmulatedExit::Killed(libc::SIGSEGV);
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            let lost = Err(EmulatedHostError::OutputLost { stream: "stdout", source, exit });
            let Failure { code, reason } = crossing.ended(lost).unwrap_err();
            assert_eq!(
                (code, reason.as_str()),
                (117, "the emulated host's coracle was killed by signal 11 (SIGSEGV)")
            );
        }
        assert_eq!(crossing.ended(Ok(EmulatedExit::Signal(libc::SIGTERM))), Ok(143));
    }
}

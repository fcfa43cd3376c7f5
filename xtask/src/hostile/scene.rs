//! The place of the attacks: the program, and a directory that each attack finds empty.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use coracle_payload::Payload;

/// The program under attack, and the directory of the attack's files, which is removed on drop.
pub(super) struct Scene {
    coracle: PathBuf,
    directory: PathBuf,
}

impl Scene {
    /// Creates the directory.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub(super) fn new(coracle: &Path) -> Result<Self> {
        let coracle = std::path::absolute(coracle).context("cannot make the program's path absolute")?;
        let directory = std::env::temp_dir().join(format!("coracle-hostile-{}", std::process::id()));
        let scene = Self { coracle, directory };
        scene.empty()?;
        Ok(scene)
    }

    /// Removes what the previous attack has left.
    ///
    /// # Errors
    /// The directory cannot be created again.
    pub(super) fn empty(&self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.directory);
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))
    }

    /// Returns whether machines can be created at all.
    pub(super) fn has_kvm(&self) -> bool {
        OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
    }

    /// Returns the program with its first argument.
    pub(super) fn coracle(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.coracle);
        command.arg(subcommand).env("TMPDIR", &self.directory).current_dir(&self.directory);
        command
    }

    /// Returns `coracle SUBCOMMAND` for a payload, with [`RAM`](super::watch::RAM) and the KVM of this host.
    ///
    /// # Errors
    /// There is no such payload, or its file cannot be written.
    pub(super) fn machine(&self, subcommand: &str, payload: &str) -> Result<Command> {
        let mut command = self.coracle(subcommand);
        command.args(["--accel", "kvm", "--memory", super::watch::RAM_OPTION]);
        command.arg(self.payload(payload)?);
        Ok(command)
    }

    /// Writes a payload to a file.
    ///
    /// # Errors
    /// There is no such payload, or its file cannot be written.
    pub(super) fn payload(&self, name: &str) -> Result<PathBuf> {
        let payload = Payload::named(name).with_context(|| format!("there is no payload {name}"))?;
        self.file(&format!("{name}.elf"), &payload.elf())
    }

    /// Creates a file with this content.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Creates a sparse file of this size.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn sparse_file(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(bytes).with_context(|| format!("cannot lengthen {}", path.display()))?;
        Ok(path)
    }

    /// Creates a FIFO that nobody writes to.
    ///
    /// # Errors
    /// The FIFO cannot be created.
    pub(super) fn fifo(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        crate::process::run(Command::new("mkfifo").arg(&path))?;
        Ok(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

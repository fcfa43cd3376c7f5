//! Copies directories into a guest and out of it, entry by entry, by the agent's usual calls.
//!
//! Entries from a guest are hostile. They are bounded, and go into a new directory in which everything is
//! newly made. No existing file is opened, followed or replaced, whatever the guest lists, and however often.

use std::fs::{self, DirBuilder, File, FileType, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_agent::protocol::agent::{DirEntry, FileKind};

use super::client::AgentClient;
use super::error::{CopyWay, FileError};
use super::paths::make;
use super::patience::Patience;

/// The counts of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories, the first one included.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Entries that were left out: devices, pipes, sockets, and, for copies out of a guest, links that lead
    /// out of the directory.
    pub left_out: u64,
}

/// The limits of a copy out of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files, directories, links, and entries that are left out.
    pub entries: u64,
}

impl Default for CopyLimits {
    /// 1 GiB, and 100,000 entries.
    fn default() -> CopyLimits {
        CopyLimits { bytes: 1 << 30, entries: 100_000 }
    }
}

/// Needs an agent of the protocol's version 2.
impl AgentClient {
    /// Copies a directory of this host into the guest. Existing directories stay, and files are replaced.
    /// Permissions are copied, and owners and times are not. Links are copied as links.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::agent::CopyLimits;
    ///
    /// let agent = vm.agent()?;
    /// agent.copy_in("project", "/work")?;
    /// vm.exec(["make", "-C", "/work"]).status()?;
    /// agent.copy_out("/work/out", "out", CopyLimits::default())?;      // `out` must not be there
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The directory cannot be read, the guest refuses, or the agent or the machine has ended. Everything
    /// copied by then stays.
    pub fn copy_in(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Copied, FileError> {
        Copy::new(self).into_guest(from.as_ref(), to.as_ref())
    }

    /// Copies a directory of the guest to `to` on this host, which must not exist. Permissions are copied
    /// without setuid, setgid and sticky. Owners and times are not. A link is copied if its own text leads to
    /// a path in the directory.
    ///
    /// # Errors
    /// The guest refuses, there is more than `limits` allow, `to` cannot be written, or the agent or the
    /// machine has ended. Everything copied by then stays.
    pub fn copy_out(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        limits: CopyLimits,
    ) -> Result<Copied, FileError> {
        Copy::new(self).out_of_guest(from.as_ref(), to.as_ref(), limits)
    }
}

/// The calls for tasks. They run on a thread of the runtime for blocking work, because the host's files may
/// block. Dropping a future ends the copy after the piece in flight. They need the feature `tokio`.
#[cfg(feature = "tokio")]
impl AgentClient {
    /// Copies a directory of this host into the guest. This is the asynchronous form of
    /// [`AgentClient::copy_in`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::copy_in`].
    pub async fn copy_in_async(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<Copied, FileError> {
        let (from, to) = (from.as_ref().to_owned(), to.as_ref().to_owned());
        let copy = Copy::new(self);
        let _stopper = Stopper(copy.stop.clone());
        crate::thread::on_a_thread(move || copy.into_guest(&from, &to)).await
    }

    /// Copies a directory of the guest to `to` on this host, which must not exist. This is the asynchronous
    /// form of [`AgentClient::copy_out`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::copy_out`].
    pub async fn copy_out_async(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        limits: CopyLimits,
    ) -> Result<Copied, FileError> {
        let (from, to) = (from.as_ref().to_owned(), to.as_ref().to_owned());
        let copy = Copy::new(self);
        let _stopper = Stopper(copy.stop.clone());
        crate::thread::on_a_thread(move || copy.out_of_guest(&from, &to, limits)).await
    }
}

/// Ends a copy whose future is dropped.
#[cfg(feature = "tokio")]
struct Stopper(Arc<AtomicBool>);

#[cfg(feature = "tokio")]
impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A copy in flight.
struct Copy {
    agent: AgentClient,
    copied: Copied,
    /// The patience of the whole copy. Each of its calls has its own as well.
    patience: Patience,
    /// Whether nobody wants the copy any more.
    stop: Arc<AtomicBool>,
}

impl Copy {
    fn new(agent: &AgentClient) -> Copy {
        let patience = Patience::new(agent.link().limits);
        Copy { agent: agent.clone(), copied: Copied::default(), patience, stop: Arc::default() }
    }

    /// Makes one call of the agent, while there is patience for the copy. An agent that delays each of a
    /// hundred thousand calls would otherwise keep it forever.
    fn ask<T>(&mut self, call: impl FnOnce(&AgentClient) -> Result<T, FileError>) -> Result<T, FileError> {
        let Copied { files, directories, links, bytes, left_out } = self.copied;
        let entries = [files, directories, links, left_out].into_iter().fold(0, u64::saturating_add);
        let moved = bytes.saturating_add(entries.saturating_mul(ENTRY_BYTES));
        self.patience.note_progress(usize::try_from(moved).unwrap_or(usize::MAX));
        self.patience.wait()?;
        let answer = call(&self.agent);
        self.patience.pause();
        answer
    }

    fn into_guest(mut self, from: &Path, to: &Path) -> Result<Copied, FileError> {
        let mut left = vec![(from.to_owned(), to.to_owned())];
        while let Some((from, to)) = left.pop() {
            let copied = self.directory_into_guest(&from, &to, &mut left);
            copied.map_err(|error| error.of_copy(CopyWay::In, &from, &to))?;
        }
        Ok(self.copied)
    }

    fn directory_into_guest(
        &mut self,
        from: &Path,
        to: &Path,
        left: &mut Vec<(PathBuf, PathBuf)>,
    ) -> Result<(), FileError> {
        let local = |error| FileError::local(from, error);
        let mode = fs::metadata(from).map_err(local)?.mode();
        self.ask(|agent| agent.change(make(to, mode & PERMISSIONS, true)))?;
        self.copied.directories += 1;
        for entry in fs::read_dir(from).map_err(local)? {
            let entry = entry.map_err(local)?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(|error| FileError::local(&path, error))?;
            if kind.is_dir() {
                left.push((path, to));
                continue;
            }
            let copied = self.entry_into_guest(kind, &path, &to);
            copied.map_err(|error| error.of_copy(CopyWay::In, &path, &to))?;
        }
        Ok(())
    }

    fn entry_into_guest(&mut self, kind: FileType, from: &Path, to: &Path) -> Result<(), FileError> {
        if kind.is_file() {
            return self.file_into_guest(from, to);
        }
        if !kind.is_symlink() {
            self.copied.left_out += 1;
            return Ok(());
        }
        let target = fs::read_link(from).map_err(|error| FileError::local(from, error))?;
        self.ask(|agent| agent.symlink(target, to))?;
        self.copied.links += 1;
        Ok(())
    }

    fn file_into_guest(&mut self, from: &Path, to: &Path) -> Result<(), FileError> {
        let local = |error| FileError::local(from, error);
        // It may have become another kind of file since it was listed.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(from).map_err(local)?;
        let found = file.metadata().map_err(local)?;
        if !found.is_file() {
            self.copied.left_out += 1;
            return Ok(());
        }
        let mut counted = self.counted(file);
        self.ask(|agent| agent.write_file_from(to, Some(found.mode() & PERMISSIONS), &mut counted))?;
        self.copied.bytes += counted.count;
        self.copied.files += 1;
        Ok(())
    }

    fn out_of_guest(mut self, from: &Path, to: &Path, limits: CopyLimits) -> Result<Copied, FileError> {
        make_new(to, DIRECTORY).map_err(|error| error.of_copy(CopyWay::Out, from, to))?;
        self.copied.directories += 1;
        // The guest's path, this host's, and the depth.
        let mut left = vec![(from.to_owned(), to.to_owned(), 0_usize)];
        let mut entries = 0_u64;
        while let Some((from, to, depth)) = left.pop() {
            let of_copy = |error: FileError| error.of_copy(CopyWay::Out, &from, &to);
            for entry in self.ask(|agent| agent.list_dir(&from)).map_err(of_copy)? {
                entries += 1;
                if entries > limits.entries {
                    return Err(of_copy(FileError::TooMany { path: from.clone(), limit: limits.entries }));
                }
                // The name is that of one entry, which the session has checked.
                let (path, to) = (from.join(&entry.name), to.join(&entry.name));
                let copied = self.entry_out_of_guest(&entry, (&path, &to, depth), limits);
                copied.map_err(|error| error.of_copy(CopyWay::Out, &path, &to))?;
                if entry.kind == FileKind::Folder {
                    left.push((path, to, depth + 1));
                }
            }
        }
        Ok(self.copied)
    }

    fn entry_out_of_guest(
        &mut self,
        entry: &DirEntry,
        (from, to, depth): (&Path, &Path, usize),
        limits: CopyLimits,
    ) -> Result<(), FileError> {
        match entry.kind {
            FileKind::Folder => {
                make_new(to, entry.mode & PLAIN | DIRECTORY)?;
                self.copied.directories += 1;
            }
            FileKind::File => self.file_out_of_guest(from, to, entry, limits)?,
            FileKind::Link => self.link_out_of_guest(from, to, depth)?,
            _ => self.copied.left_out += 1,
        }
        Ok(())
    }

    fn file_out_of_guest(
        &mut self,
        from: &Path,
        to: &Path,
        entry: &DirEntry,
        limits: CopyLimits,
    ) -> Result<(), FileError> {
        // A link of that name is not followed: the file must be new (`open(2)`, O_EXCL).
        let file = OpenOptions::new().write(true).create_new(true).mode(entry.mode & PLAIN).open(to);
        let mut counted = self.counted(file.map_err(|error| FileError::local(to, error))?);
        let limit = limits.bytes.saturating_sub(self.copied.bytes);
        let read = self.ask(|agent| agent.read_file_to(from, limit, &mut counted));
        read.map_err(|error| match error {
            FileError::TooLarge { path, .. } => FileError::TooLarge { path, limit: limits.bytes },
            other => other,
        })?;
        self.copied.bytes += counted.count;
        self.copied.files += 1;
        Ok(())
    }

    fn link_out_of_guest(&mut self, from: &Path, to: &Path, depth: usize) -> Result<(), FileError> {
        let target = self.ask(|agent| agent.read_link(from))?;
        if !stays_within(&target, depth) {
            self.copied.left_out += 1;
            return Ok(());
        }
        symlink(target, to).map_err(|error| FileError::local(to, error))?;
        self.copied.links += 1;
        Ok(())
    }

    fn counted(&self, inner: File) -> Counted {
        Counted { inner, count: 0, stop: self.stop.clone() }
    }
}

/// Returns whether a link in a directory `depth` levels below the first one leads to a path inside the first
/// one, wherever other such links lead. It may go up first, by real directories, and then only down.
fn stays_within(target: &Path, depth: usize) -> bool {
    let up = target.components().take_while(|part| *part == Component::ParentDir).count();
    let mut rest = target.components().skip(up);
    target.components().next().is_some() && up <= depth && rest.all(|part| !is_outward(part))
}

fn is_outward(part: Component<'_>) -> bool {
    !matches!(part, Component::Normal(_) | Component::CurDir)
}

fn make_new(path: &Path, mode: u32) -> Result<(), FileError> {
    DirBuilder::new().mode(mode).create(path).map_err(|error| FileError::local(path, error))
}

/// A file of this host that stops when nobody wants the copy.
struct Counted {
    inner: File,
    count: u64,
    stop: Arc<AtomicBool>,
}

impl Counted {
    fn counts(&mut self, step: impl FnOnce(&mut File) -> io::Result<usize>) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody wants the copy any more"));
        }
        let count = step(&mut self.inner)?;
        self.count += u64::try_from(count).unwrap_or_default();
        Ok(count)
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.counts(|file| file.read(buffer))
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.counts(|file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An entry counts as this many bytes when the time limit is computed.
const ENTRY_BYTES: u64 = 4 << 10;
const PERMISSIONS: u32 = 0o7777;
/// The permission bits without setuid, setgid and sticky.
const PLAIN: u32 = 0o777;
/// The permission bits that this host's user needs to write into a directory.
const DIRECTORY: u32 = 0o700;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_may_go_up_to_the_first_directory_and_then_down_only() {
        for (target, depth) in [("a", 0), ("./a/b", 0), ("..", 1), ("../../a", 2), (".", 0)] {
            assert!(stays_within(Path::new(target), depth), "{target} at {depth}");
        }
        let outward =
            [("", 0), ("/etc", 5), ("..", 0), ("../..", 1), ("a/..", 3), ("../a/../..", 3), ("./..", 1)];
        for (target, depth) in outward {
            assert!(!stays_within(Path::new(target), depth), "{target} at {depth}");
        }
    }
}

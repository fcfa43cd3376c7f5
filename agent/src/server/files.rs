//! Files for the host: written, read and listed. The loop waits for disks and nothing else, because only
//! regular files are read.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_agent::protocol::agent::{
    AgentMessage, AgentSession, DirEntry, Failure, FileInfo, FileKind, PutRequest, Step, Stream,
};

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Put {
    channel: u32,
    file: File,
    /// The path that it is renamed to, unless it is written there directly.
    place: Option<PathBuf>,
    temporary: PathBuf,
    mode: u32,
}

impl Put {
    /// Opens a new file beside the one that it is to replace, so that readers find either the old file or the
    /// whole new one. A path that is not a regular file is written to directly.
    pub(super) fn start(channel: u32, request: &PutRequest) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(Step::Open, &request.path, &error);
        let path = Path::new("/").join(&request.path);
        // Writing goes to the file at the end of a link, not to the link.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let found = fs::metadata(&path).ok();
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        if found.as_ref().is_some_and(|found| !found.is_file()) {
            let file = options.open(&path).map_err(failed)?;
            return Ok(Self { channel, file, place: None, temporary: path, mode: 0 });
        }
        let old_mode = found.as_ref().map(|found| found.mode() & PERMISSIONS);
        let mode = request.mode.or(old_mode).unwrap_or(DEFAULT_MODE) & PERMISSIONS;
        let temporary = beside(&path, channel);
        // The rest of an agent that was killed.
        let _ = fs::remove_file(&temporary);
        let made = options.create_new(true).mode(0o600).open(&temporary).map_err(failed);
        let file = match made {
            Ok(file) => file,
            // A file of /proc or /sys, where none can be made.
            Err(failure) if found.is_none() => return Err(failure),
            Err(failure) => {
                let file = OpenOptions::new().write(true).truncate(true).open(&path);
                let file = file.map_err(|_| failure)?;
                return Ok(Self { channel, file, place: None, temporary: path, mode });
            }
        };
        if let Some(found) = found {
            // Only root can give a file away. If the agent is not root, the file belongs to the agent's user.
            let _ = std::os::unix::fs::fchown(&file, Some(found.uid()), Some(found.gid()));
        }
        Ok(Self { channel, file, place: Some(path), temporary, mode })
    }

    /// Writes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8], session: &mut AgentSession) -> Result<(), Failure> {
        let written = self.file.write_all(bytes);
        session.taken(self.channel, bytes.len());
        written.map_err(|error| self.failure(Step::Write, &error))
    }

    /// Renames the whole file to its path.
    pub(super) fn finish(self, session: &mut AgentSession) -> Result<(), Failure> {
        if let Some(place) = &self.place {
            let permissions = fs::Permissions::from_mode(self.mode);
            let placed =
                self.file.set_permissions(permissions).and_then(|()| fs::rename(&self.temporary, place));
            placed.map_err(|error| self.failure(Step::Rename, &error))?;
        }
        session.answer(self.channel, &AgentMessage::Done);
        Ok(())
    }

    /// Removes a file that was not finished.
    pub(super) fn abandon(&self) {
        if self.place.is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }

    fn failure(&self, step: Step, error: &io::Error) -> Failure {
        self.abandon();
        Failure::new(step, self.place.as_ref().unwrap_or(&self.temporary), error)
    }
}

/// A file or directory that is being read.
#[derive(Debug)]
pub(super) struct Get {
    channel: u32,
    path: PathBuf,
    source: Source,
    /// Bytes that were read and not sent yet.
    waiting: Vec<u8>,
}

#[derive(Debug)]
enum Source {
    File(File),
    Folder(ReadDir),
    Ended,
}

impl Get {
    /// Opens a file, and reports its properties.
    pub(super) fn start_file(
        channel: u32,
        path: PathBuf,
        session: &mut AgentSession,
    ) -> Result<Self, Failure> {
        let failed = |error: &io::Error| Failure::new(Step::Open, &path, error);
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(Path::new("/").join(&path)).map_err(|error| failed(&error))?;
        let found = file.metadata().map_err(|error| failed(&error))?;
        let refused = match FileKind::from_mode(found.mode()) {
            FileKind::File => None,
            FileKind::Folder => Some(libc::EISDIR),
            _ => Some(libc::EINVAL),
        };
        if let Some(errno) = refused {
            return Err(failed(&io::Error::from_raw_os_error(errno)));
        }
        let info = FileInfo { mode: found.mode() & PERMISSIONS, size: found.len() };
        session.answer(channel, &AgentMessage::File(info));
        Ok(Self { channel, path, source: Source::File(file), waiting: Vec::new() })
    }

    /// Reports the properties of a path.
    pub(super) fn start_stat(channel: u32, path: PathBuf, follow: bool) -> Result<Self, Failure> {
        let place = Path::new("/").join(&path);
        let found = if follow { fs::metadata(place) } else { fs::symlink_metadata(place) };
        let found = found.map_err(|error| Failure::new(Step::Open, &path, &error))?;
        Ok(Self { channel, path, source: Source::Ended, waiting: entry("-".into(), &found).to_frame() })
    }

    /// Reports the target of a link.
    pub(super) fn start_link(channel: u32, path: PathBuf) -> Result<Self, Failure> {
        let target = fs::read_link(Path::new("/").join(&path));
        let target = target.map_err(|error| Failure::new(Step::Open, &path, &error))?;
        Ok(Self { channel, path, source: Source::Ended, waiting: target.into_os_string().into_vec() })
    }

    /// Opens a directory.
    pub(super) fn start_folder(channel: u32, path: PathBuf) -> Result<Self, Failure> {
        let folder = fs::read_dir(Path::new("/").join(&path));
        let folder = folder.map_err(|error| Failure::new(Step::Open, &path, &error))?;
        Ok(Self { channel, path, source: Source::Folder(folder), waiting: Vec::new() })
    }

    /// Returns whether a step would send something.
    pub(super) fn can_go_on(&self, session: &AgentSession) -> bool {
        session.credit(self.channel, Stream::Stdout) > 0
    }

    /// Sends the next piece or the end. Returns true once the end was sent.
    pub(super) fn step(&mut self, session: &mut AgentSession, buffer: &mut [u8]) -> Result<bool, Failure> {
        let room = session.credit(self.channel, Stream::Stdout).min(buffer.len());
        if let Source::File(file) = &mut self.source {
            let read = file.read(buffer.get_mut(..room).unwrap_or_default());
            let count = read.map_err(|error| Failure::new(Step::Read, &self.path, &error))?;
            session.send(self.channel, Stream::Stdout, buffer.get(..count).unwrap_or_default());
            if count == 0 && room > 0 {
                self.source = Source::Ended;
            }
        } else {
            self.read_entries(room)?;
            let count = self.waiting.len().min(room);
            session.send(self.channel, Stream::Stdout, self.waiting.get(..count).unwrap_or_default());
            self.waiting.drain(..count);
        }
        let is_done = matches!(self.source, Source::Ended) && self.waiting.is_empty();
        if is_done {
            session.end(self.channel, Stream::Stdout);
            session.answer(self.channel, &AgentMessage::Done);
        }
        Ok(is_done)
    }

    fn read_entries(&mut self, wanted: usize) -> Result<(), Failure> {
        while let Source::Folder(folder) = &mut self.source
            && self.waiting.len() < wanted
        {
            match folder.next() {
                None => self.source = Source::Ended,
                Some(Ok(entry)) => {
                    if let Some(entry) = described(&entry) {
                        self.waiting.extend(entry.to_frame());
                    }
                }
                Some(Err(error)) => return Err(Failure::new(Step::Read, &self.path, &error)),
            }
        }
        Ok(())
    }
}

/// Describes an entry; `None` for one that has gone meanwhile.
fn described(entry: &fs::DirEntry) -> Option<DirEntry> {
    Some(self::entry(entry.file_name(), &entry.metadata().ok()?))
}

fn entry(name: OsString, found: &fs::Metadata) -> DirEntry {
    DirEntry {
        name,
        kind: FileKind::from_mode(found.mode()),
        mode: found.mode() & PERMISSIONS,
        uid: found.uid(),
        gid: found.gid(),
        size: found.len(),
        modified: found.mtime(),
    }
}

/// Returns a name in the same directory, since a file cannot be renamed into another file system.
fn beside(path: &Path, channel: u32) -> PathBuf {
    let mut name = OsString::from(format!(".coracle-{}-{channel}-", std::process::id()));
    let own = path.file_name().unwrap_or_default();
    // A name may have 255 bytes.
    name.push(String::from_utf8_lossy(own.as_encoded_bytes()).chars().take(32).collect::<String>());
    path.with_file_name(name)
}

pub(super) const PERMISSIONS: u32 = 0o7777;
const DEFAULT_MODE: u32 = 0o644;

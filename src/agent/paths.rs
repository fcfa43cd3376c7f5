//! Properties of paths in a guest, and changes of them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use coracle_agent::protocol::agent::{
    DirEntry, EntryReader, FileKind, PathRequest, Request, SessionError, Stream,
};

use super::channel::{Channel, Locked};
use super::client::AgentClient;
use super::error::{AgentError, FileError};
use super::files::check;
use super::patience::Patience;
#[cfg(feature = "tokio")]
use super::tasks::answer;

/// The properties of a path in the guest (`inode(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// The kind of the file.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The size in bytes.
    pub size: u64,
    /// The time at which its content was last changed, in seconds since 1970.
    pub modified: i64,
}

/// Needs an agent of the protocol's version 2.
impl AgentClient {
    /// Returns the properties of a path. A symbolic link at its end is followed.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short(stat(path.as_ref(), true))?)
    }

    /// Returns the properties of a path. A symbolic link at its end is not followed.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub fn stat_link(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short(stat(path.as_ref(), false))?)
    }

    /// Returns the target of a symbolic link, as it is written there.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`], or the path is not a link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        self.short(Request::ReadLink(path.as_ref().to_owned())).map(path_of)
    }

    /// Makes a directory with the permissions 0755. Its parent must exist.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`], or the path exists already.
    pub fn mkdir(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(make(path.as_ref(), MODE, false))
    }

    /// Makes a directory and missing parents. An existing directory stays as it is.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub fn mkdir_all(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(make(path.as_ref(), MODE, true))
    }

    /// Removes a file, a symbolic link, or an empty directory.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(remove(path.as_ref(), false))
    }

    /// Removes a file, a symbolic link, or a directory with everything in it. Links in it are not followed.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`]. Part of it may be removed then.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(remove(path.as_ref(), true))
    }

    /// Renames a file or a directory within one file system; a file at `to` is replaced (`rename(2)`).
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(rename(from.as_ref(), to.as_ref()))
    }

    /// Makes a symbolic link at `path` to `target`, which need not exist.
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(link(target.as_ref(), path.as_ref()))
    }

    pub(super) fn change(&self, request: PathRequest) -> Result<(), FileError> {
        self.short(Request::Path(request)).map(drop)
    }

    /// Returns the short answer to a request.
    fn short(&self, request: Request) -> Result<Vec<u8>, FileError> {
        let channel = Channel::open(self.link(), request)?;
        let (mut locked, mut patience) = (channel.lock(), channel.patience());
        let mut bytes = Vec::new();
        while !collect(&mut locked, &mut patience, &mut bytes)? {
            locked = locked.wait_answer(&mut patience)?;
        }
        Ok(bytes)
    }
}

/// The calls for tasks. They need the feature `tokio`, and a runtime with its timer.
#[cfg(feature = "tokio")]
impl AgentClient {
    /// Returns the properties of a path. This is the asynchronous form of [`AgentClient::stat`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat`].
    pub async fn stat_async(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short_async(stat(path.as_ref(), true)).await?)
    }

    /// Returns the properties of a path. This is the asynchronous form of [`AgentClient::stat_link`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::stat_link`].
    pub async fn stat_link_async(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short_async(stat(path.as_ref(), false)).await?)
    }

    /// Returns the target of a symbolic link, as it is written there. This is the asynchronous form of
    /// [`AgentClient::read_link`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::read_link`].
    pub async fn read_link_async(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        self.short_async(Request::ReadLink(path.as_ref().to_owned())).await.map(path_of)
    }

    /// Makes a directory with the permissions 0755. This is the asynchronous form of [`AgentClient::mkdir`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::mkdir`].
    pub async fn mkdir_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(make(path.as_ref(), MODE, false)).await
    }

    /// Makes a directory and missing parents. This is the asynchronous form of [`AgentClient::mkdir_all`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::mkdir_all`].
    pub async fn mkdir_all_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(make(path.as_ref(), MODE, true)).await
    }

    /// Removes a file, a symbolic link, or an empty directory. This is the asynchronous form of
    /// [`AgentClient::remove`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::remove`].
    pub async fn remove_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(remove(path.as_ref(), false)).await
    }

    /// Removes a file, a symbolic link, or a directory with everything in it. This is the asynchronous form
    /// of [`AgentClient::remove_all`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::remove_all`].
    pub async fn remove_all_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(remove(path.as_ref(), true)).await
    }

    /// Renames a file or a directory within one file system; a file at `to` is replaced (`rename(2)`). This
    /// is the asynchronous form of [`AgentClient::rename`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::rename`].
    pub async fn rename_async(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(rename(from.as_ref(), to.as_ref())).await
    }

    /// Makes a symbolic link at `path` to `target`, which need not exist. This is the asynchronous form of
    /// [`AgentClient::symlink`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::symlink`].
    pub async fn symlink_async(
        &self,
        target: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), FileError> {
        self.change_async(link(target.as_ref(), path.as_ref())).await
    }

    async fn change_async(&self, request: PathRequest) -> Result<(), FileError> {
        self.short_async(Request::Path(request)).await.map(drop)
    }

    async fn short_async(&self, request: Request) -> Result<Vec<u8>, FileError> {
        let channel = self.open_async(request).await?;
        let mut bytes = Vec::new();
        answer(&channel, |locked, patience| {
            collect(locked, patience, &mut bytes).map(|is_done| is_done.then_some(()))
        })
        .await?;
        Ok(bytes)
    }
}

/// Collects what has arrived. Returns whether that was everything.
fn collect(locked: &mut Locked<'_>, patience: &mut Patience, bytes: &mut Vec<u8>) -> Result<bool, FileError> {
    locked.take_all(Stream::Stdout, bytes);
    patience.note_progress(bytes.len());
    if bytes.len() > MAX_SHORT {
        return Err(AgentError::from(SessionError::TooLong { limit: MAX_SHORT }).into());
    }
    let seen = locked.seen();
    Ok(check(seen)? && seen.is_at_end(Stream::Stdout))
}

/// Parses the entries of a list.
pub(super) fn entries_of(bytes: &[u8]) -> Result<Vec<DirEntry>, FileError> {
    let entries = EntryReader::default().push(bytes);
    entries.map_err(|error| AgentError::from(SessionError::from(error)).into())
}

fn stat_of(bytes: &[u8]) -> Result<FileStat, FileError> {
    let entries = entries_of(bytes)?;
    let [DirEntry { kind, mode, uid, gid, size, modified, .. }] = entries.as_slice() else {
        return Err(AgentError::from(SessionError::NoEntry).into());
    };
    let (kind, mode, uid, gid, size, modified) = (*kind, *mode, *uid, *gid, *size, *modified);
    Ok(FileStat { kind, mode, uid, gid, size, modified })
}

pub(super) fn make(path: &Path, mode: u32, parents: bool) -> PathRequest {
    PathRequest::MakeDirectory { path: path.to_owned(), mode, parents }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn stat(path: &Path, follow: bool) -> Request {
    Request::Stat { path: path.to_owned(), follow }
}

fn remove(path: &Path, all: bool) -> PathRequest {
    PathRequest::Remove { path: path.to_owned(), all }
}

fn link(target: &Path, path: &Path) -> PathRequest {
    PathRequest::Link { target: target.to_owned(), path: path.to_owned() }
}

fn rename(from: &Path, to: &Path) -> PathRequest {
    PathRequest::Rename { from: from.to_owned(), to: to.to_owned() }
}

/// The permissions of a new directory.
const MODE: u32 = 0o755;
/// The largest short answer in bytes: the longest path of Linux, and the head of an entry.
const MAX_SHORT: usize = 8 << 10;

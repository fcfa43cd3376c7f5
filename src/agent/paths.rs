//! What paths of a guest are, and changes of it.

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

/// What a path of the guest is (`inode(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// When its content was last changed: seconds since 1970.
    pub modified: i64,
}

/// Needs an agent of the protocol's version 2.
impl AgentClient {
    /// What a path is. A symbolic link at its end is followed.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short(stat(path.as_ref(), true))?)
    }

    /// What a path is. A symbolic link at its end is not followed.
    ///
    /// # Errors
    /// As [`AgentClient::stat`].
    pub fn stat_link(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short(stat(path.as_ref(), false))?)
    }

    /// Where a symbolic link leads, as it says itself.
    ///
    /// # Errors
    /// As [`AgentClient::stat`], also where it is not one.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        self.short(Request::ReadLink(path.as_ref().to_owned())).map(path_of)
    }

    /// Makes a directory, with the permissions 0755. The one that it is in has to be there.
    ///
    /// # Errors
    /// As [`AgentClient::stat`], also where something has that path already.
    pub fn mkdir(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(make(path.as_ref(), MODE, false))
    }

    /// Makes a directory and those above it. One that is there already stays as it is.
    ///
    /// # Errors
    /// As [`AgentClient::stat`].
    pub fn mkdir_all(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(make(path.as_ref(), MODE, true))
    }

    /// Removes a file, a symbolic link, or a directory that is empty.
    ///
    /// # Errors
    /// As [`AgentClient::stat`].
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(remove(path.as_ref(), false))
    }

    /// Removes a file, a symbolic link, or a directory with all that is in it. Links in it are not followed.
    ///
    /// # Errors
    /// As [`AgentClient::stat`]; some of it may be gone then.
    pub fn remove_all(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(remove(path.as_ref(), true))
    }

    /// Renames a file or a directory within one file system; a file at `to` is replaced (`rename(2)`).
    ///
    /// # Errors
    /// As [`AgentClient::stat`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(rename(from.as_ref(), to.as_ref()))
    }

    /// Makes a symbolic link at `path` that leads to `target`, which need not be there.
    ///
    /// # Errors
    /// As [`AgentClient::stat`].
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change(link(target.as_ref(), path.as_ref()))
    }

    pub(super) fn change(&self, request: PathRequest) -> Result<(), FileError> {
        self.short(Request::Path(request)).map(drop)
    }

    /// The answer of a few bytes to a request.
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

/// The same for tasks. Needs the feature `tokio`, and a runtime with its timer.
#[cfg(feature = "tokio")]
impl AgentClient {
    /// As [`AgentClient::stat`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn stat_async(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short_async(stat(path.as_ref(), true)).await?)
    }

    /// As [`AgentClient::stat_link`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn stat_link_async(&self, path: impl AsRef<Path>) -> Result<FileStat, FileError> {
        stat_of(&self.short_async(stat(path.as_ref(), false)).await?)
    }

    /// As [`AgentClient::read_link`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn read_link_async(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        self.short_async(Request::ReadLink(path.as_ref().to_owned())).await.map(path_of)
    }

    /// As [`AgentClient::mkdir`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn mkdir_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(make(path.as_ref(), MODE, false)).await
    }

    /// As [`AgentClient::mkdir_all`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn mkdir_all_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(make(path.as_ref(), MODE, true)).await
    }

    /// As [`AgentClient::remove`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn remove_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(remove(path.as_ref(), false)).await
    }

    /// As [`AgentClient::remove_all`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn remove_all_async(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(remove(path.as_ref(), true)).await
    }

    /// As [`AgentClient::rename`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn rename_async(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), FileError> {
        self.change_async(rename(from.as_ref(), to.as_ref())).await
    }

    /// As [`AgentClient::symlink`], for a task.
    ///
    /// # Errors
    /// As there.
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

/// Takes what has come: whether that was all.
fn collect(locked: &mut Locked<'_>, patience: &mut Patience, bytes: &mut Vec<u8>) -> Result<bool, FileError> {
    locked.take_all(Stream::Stdout, bytes);
    patience.has_moved(bytes.len());
    if bytes.len() > MAX_SHORT {
        return Err(AgentError::from(SessionError::TooLong { limit: MAX_SHORT }).into());
    }
    let seen = locked.seen();
    Ok(check(seen)? && seen.is_at_end(Stream::Stdout))
}

/// The entries of a list.
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

/// What a new directory has.
const MODE: u32 = 0o755;
/// The longest path of Linux, and the head of an entry.
const MAX_SHORT: usize = 8 << 10;

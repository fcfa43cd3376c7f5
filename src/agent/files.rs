//! Files of a guest.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use coracle_agent::protocol::agent::{DirEntry, FileInfo, INITIAL_WINDOW, PutRequest, Request, Stream};

use super::channel::{Answer, Channel, ChannelState};
use super::client::AgentClient;
use super::error::FileError;
use super::paths::entries_of;

impl AgentClient {
    /// Reads a file of at most [`AgentClient::FILE_LIMIT`] bytes. Larger ones are read by
    /// [`read_file_to`](AgentClient::read_file_to) or as a [stream](AgentClient::open_file).
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// vm.write_file("/tmp/input", "some bytes")?;
    /// vm.exec(["gzip", "/tmp/input"]).status()?;
    /// let packed = vm.read_file("/tmp/input.gz")?;
    /// for entry in vm.list_dir("/tmp")? {
    ///     println!("{:?} {} bytes", entry.name, entry.size);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The guest refuses, the file is larger, or the agent or the machine has ended.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.read_file_limited(path, Self::FILE_LIMIT)
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// The errors of [`AgentClient::read_file`].
    pub fn read_file_limited(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        self.read_file_to(path, u64::try_from(limit).unwrap_or(u64::MAX), &mut content)?;
        Ok(content)
    }

    /// Reads a file of at most `limit` bytes into `writer`, which never gets more. Returns the file's
    /// properties, as the guest reports them. A slow writer slows the guest's reading.
    ///
    /// # Errors
    /// The guest refuses, the file is larger, the writer fails, or the agent or the machine has ended.
    pub fn read_file_to(
        &self,
        path: impl AsRef<Path>,
        limit: u64,
        writer: &mut impl Write,
    ) -> Result<FileInfo, FileError> {
        let path = path.as_ref();
        let local = |source| FileError::local(path, source);
        let take = |piece: &[u8]| writer.write_all(piece).map_err(local);
        let info = self.receive(Request::Get(path.to_owned()), path, limit, take)?;
        writer.flush().map_err(local)?;
        // The session accepts no end of a file that has not begun.
        Ok(info.unwrap_or(FileInfo { mode: 0, size: 0 }))
    }

    /// Writes a file with its former permissions, or 0644. Readers see either the old file or the whole new
    /// one. Its directory must exist.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.write_file_from(path, None, &mut Cursor::new(content.as_ref()))
    }

    /// Writes a file of any size from `reader`, with these permissions if any are given.
    ///
    /// # Errors
    /// The guest refuses, the reader fails (and the file is unchanged), or the agent or the machine has
    /// ended.
    pub fn write_file_from(
        &self,
        path: impl AsRef<Path>,
        mode: Option<u32>,
        reader: &mut impl Read,
    ) -> Result<(), FileError> {
        let path = path.as_ref();
        let request = PutRequest { path: path.to_owned(), mode };
        let channel = Channel::open(self.link(), Request::Put(request))?;
        let (mut buffer, mut patience) = (vec![0; PIECE], channel.patience());
        let mut total = 0_usize;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(FileError::local(path, source)),
            };
            let mut piece = buffer.get(..count).unwrap_or_default();
            let mut locked = channel.lock();
            while !piece.is_empty() {
                let sent = locked.send(piece);
                piece = piece.get(sent..).unwrap_or_default();
                total = total.saturating_add(sent);
                patience.note_progress(acknowledged(total));
                check(locked.seen())?;
                if sent == 0 {
                    locked = locked.wait_answer(&mut patience)?;
                }
            }
        }
        let mut locked = channel.lock();
        locked.end_input();
        patience.note_progress(total);
        while !check(locked.seen())? {
            locked = locked.wait_answer(&mut patience)?;
        }
        Ok(())
    }

    /// Returns the entries of a directory, without `.` and `..`, in no order, up to
    /// [`AgentClient::FILE_LIMIT`] bytes of them. Links are not followed.
    ///
    /// # Errors
    /// The guest refuses, the list is longer, or the agent or the machine has ended.
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.list_dir_limited(path, Self::FILE_LIMIT)
    }

    /// Returns the entries of a directory, up to `limit` bytes: each entry has 37 and its name. They take up
    /// to four times as much memory.
    ///
    /// # Errors
    /// The errors of [`AgentClient::list_dir`].
    pub fn list_dir_limited(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<DirEntry>, FileError> {
        let path = path.as_ref();
        let (mut bytes, limit) = (Vec::new(), u64::try_from(limit).unwrap_or(u64::MAX));
        self.receive(Request::List(path.to_owned()), path, limit, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        entries_of(&bytes)
    }

    /// The largest file in bytes that [`AgentClient::read_file`] reads.
    pub const FILE_LIMIT: usize = 16 << 20;

    /// Passes on the bytes that come, piece by piece and without a lock: at most `limit` bytes.
    fn receive(
        &self,
        request: Request,
        path: &Path,
        limit: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<Option<FileInfo>, FileError> {
        let channel = Channel::open(self.link(), request)?;
        let (mut buffer, mut patience, mut total) = (vec![0; PIECE], channel.patience(), 0_usize);
        loop {
            let mut locked = channel.lock();
            let count = loop {
                let count = locked.take(Stream::Stdout, &mut buffer);
                if count > 0 {
                    break count;
                }
                let seen = locked.seen();
                if check(seen)? && seen.is_at_end(Stream::Stdout) {
                    return Ok(seen.file);
                }
                locked = locked.wait_answer(&mut patience)?;
            };
            drop(locked);
            total = total.saturating_add(count);
            patience.note_progress(total);
            if u64::try_from(total).unwrap_or(u64::MAX) > limit {
                return Err(FileError::TooLarge { path: path.to_owned(), limit });
            }
            take(buffer.get(..count).unwrap_or_default())?;
        }
    }
}

/// Returns how many of the bytes that were sent the agent has certainly taken. It has granted a window for
/// those after them.
pub(super) fn acknowledged(sent: usize) -> usize {
    sent.saturating_sub(INITIAL_WINDOW as usize)
}

/// Returns whether the agent has reported that it is done.
pub(super) fn check(seen: &ChannelState) -> Result<bool, FileError> {
    match (&seen.answer, seen.lost()) {
        (Some(Answer::Failed(failure)), _) => Err(FileError::of(failure.clone())),
        (Some(_), _) => Ok(true),
        (None, Some(error)) => Err(error.clone().into()),
        (None, None) => Ok(false),
    }
}

/// The bytes in a frame of the protocol.
pub(super) const PIECE: usize = 64 << 10;

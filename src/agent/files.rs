//! Files of a guest.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use coracle_agent::guest_protocol::{
    DirEntry, EntryReader, FileInfo, PutRequest, Request, SessionError, Stream,
};

use super::channel::{Answer, Channel, ChannelState};
use super::client::AgentClient;
use super::error::{AgentError, FileError};

impl AgentClient {
    /// Reads a file of at most [`AgentClient::FILE_LIMIT`] bytes.
    ///
    /// # Errors
    /// The guest refuses, the file is larger, or the agent or the machine has ended.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.read_file_limited(path, Self::FILE_LIMIT)
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`AgentClient::read_file`].
    pub fn read_file_limited(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>, FileError> {
        let path = path.as_ref();
        let mut content = Vec::new();
        let (_, is_whole) = self.get(path, |piece| {
            content.extend_from_slice(piece);
            Ok(content.len() <= limit)
        })?;
        if is_whole { Ok(content) } else { Err(FileError::TooLarge { path: path.to_owned(), limit }) }
    }

    /// Reads a file of any size into `writer`; returns what it is. A writer that is slow slows the guest's reading.
    ///
    /// # Errors
    /// The guest refuses, the writer fails, or the agent or the machine has ended.
    pub fn read_file_to(
        &self,
        path: impl AsRef<Path>,
        writer: &mut impl Write,
    ) -> Result<FileInfo, FileError> {
        let path = path.as_ref();
        let local = |source| FileError::Local { path: path.to_owned(), source };
        let (info, _) = self.get(path, |piece| writer.write_all(piece).map(|()| true).map_err(local))?;
        writer.flush().map_err(local)?;
        Ok(info)
    }

    /// Writes a file: at once for those who read it, with the permissions that it had, or 0644. Its folder must be there.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), FileError> {
        self.write_file_from(path, None, &mut Cursor::new(content.as_ref()))
    }

    /// Writes a file of any size from `reader`, with these permissions if any are given.
    ///
    /// # Errors
    /// The guest refuses, the reader fails (and the file is as it was), or the agent or the machine has ended.
    pub fn write_file_from(
        &self,
        path: impl AsRef<Path>,
        mode: Option<u32>,
        reader: &mut impl Read,
    ) -> Result<(), FileError> {
        let path = path.as_ref();
        let request = PutRequest { path: path.to_owned(), mode };
        let channel = Channel::open(self.link(), Request::Put(request))?;
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(FileError::Local { path: path.to_owned(), source }),
            };
            let mut piece = buffer.get(..count).unwrap_or_default();
            let mut locked = channel.lock();
            while !piece.is_empty() {
                let sent = locked.send(piece);
                piece = piece.get(sent..).unwrap_or_default();
                check(locked.seen())?;
                if sent == 0 {
                    locked = locked.wait_answer()?;
                }
            }
        }
        let mut locked = channel.lock();
        locked.end_input();
        while !check(locked.seen())? {
            locked = locked.wait_answer()?;
        }
        Ok(())
    }

    /// The entries of a folder, without `.` and `..`, in no order. Links are not followed.
    ///
    /// # Errors
    /// The guest refuses, the list is longer than 16 MiB, or the agent or the machine has ended.
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        let path = path.as_ref();
        let (mut entries, mut reader, mut bytes) = (Vec::new(), EntryReader::default(), 0_usize);
        let is_whole = self.receive(Request::List(path.to_owned()), |piece| {
            let read = reader.push(piece).map_err(|error| AgentError::from(SessionError::from(error)))?;
            entries.extend(read);
            bytes = bytes.saturating_add(piece.len());
            Ok(bytes <= Self::FILE_LIMIT)
        })?;
        match is_whole {
            (_, true) => Ok(entries),
            (_, false) => Err(FileError::TooLarge { path: path.to_owned(), limit: Self::FILE_LIMIT }),
        }
    }

    /// What [`AgentClient::read_file`] reads at most.
    pub const FILE_LIMIT: usize = 16 << 20;

    fn get(
        &self,
        path: &Path,
        take: impl FnMut(&[u8]) -> Result<bool, FileError>,
    ) -> Result<(FileInfo, bool), FileError> {
        let (info, is_whole) = self.receive(Request::Get(PathBuf::from(path)), take)?;
        // The session lets no file end that has not begun.
        Ok((info.unwrap_or(FileInfo { mode: 0, size: 0 }), is_whole))
    }

    /// Hands over what comes, piece by piece and without a lock, until `take` wants no more: whether that was all.
    fn receive(
        &self,
        request: Request,
        mut take: impl FnMut(&[u8]) -> Result<bool, FileError>,
    ) -> Result<(Option<FileInfo>, bool), FileError> {
        let channel = Channel::open(self.link(), request)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let mut locked = channel.lock();
            let count = loop {
                let count = locked.take(Stream::Stdout, &mut buffer);
                if count > 0 {
                    break count;
                }
                let seen = locked.seen();
                if check(seen)? && seen.is_at_end(Stream::Stdout) {
                    return Ok((seen.file, true));
                }
                locked = locked.wait_answer()?;
            };
            let info = locked.seen().file;
            drop(locked);
            if !take(buffer.get(..count).unwrap_or_default())? {
                return Ok((info, false));
            }
        }
    }
}

/// Whether the agent has said that it is done.
pub(super) fn check(seen: &ChannelState) -> Result<bool, FileError> {
    match (&seen.answer, seen.lost()) {
        (Some(Answer::Failed(failure)), _) => Err(FileError::of(failure.clone())),
        (Some(_), _) => Ok(true),
        (None, Some(error)) => Err(error.clone().into()),
        (None, None) => Ok(false),
    }
}

/// A frame of the protocol.
const PIECE: usize = 64 << 10;

//! Files of a guest that a task copies from and to its own streams.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::pin::Pin;
use std::task::ready;

use coracle_agent::protocol::agent::{DirEntry, FileInfo, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::AgentClient;
use super::error::FileError;
use super::file_streams::into_file;
use super::files::PIECE;
use super::paths::entries_of;

/// Needs the feature `tokio`, and a runtime with its timer.
impl AgentClient {
    /// Reads a file of at most `limit` bytes. This is the asynchronous form of
    /// [`AgentClient::read_file_limited`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::read_file_limited`].
    pub async fn read_file_limited_async(
        &self,
        path: impl AsRef<Path>,
        limit: usize,
    ) -> Result<Vec<u8>, FileError> {
        let path = path.as_ref();
        self.read_async(Request::Get(path.to_owned()), path, limit).await
    }

    /// Reads a file of at most `limit` bytes into `writer`, which never gets more. This is the asynchronous
    /// form of [`AgentClient::read_file_to`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::read_file_to`].
    pub async fn read_file_to_async(
        &self,
        path: impl AsRef<Path>,
        limit: u64,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<FileInfo, FileError> {
        let path = path.as_ref();
        let local = |source| FileError::local(path, source);
        let reader = self.open_file_async(path).await?;
        let info = reader.info();
        let (mut reader, mut buffer, mut total) = (reader.into_async(), vec![0; PIECE], 0_u64);
        loop {
            let piece = next(&mut reader, &mut buffer).await.map_err(into_file)?;
            if piece.is_empty() {
                break;
            }
            total = total.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if total > limit {
                return Err(FileError::TooLarge { path: path.to_owned(), limit });
            }
            write_all(writer, piece).await.map_err(local)?;
        }
        poll_fn(|task| Pin::new(&mut *writer).poll_flush(task)).await.map_err(local)?;
        Ok(info)
    }

    /// Writes a file of any size from `reader`, with these permissions if any are given. This is the
    /// asynchronous form of [`AgentClient::write_file_from`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::write_file_from`].
    pub async fn write_file_from_async(
        &self,
        path: impl AsRef<Path>,
        mode: Option<u32>,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), FileError> {
        let path = path.as_ref();
        let mut writer = self.create_file_async(path, mode).await?.into_async();
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = next(reader, &mut buffer).await.map_err(|source| FileError::local(path, source))?;
            if piece.is_empty() {
                break;
            }
            write_all(&mut writer, piece).await.map_err(into_file)?;
        }
        poll_fn(|task| Pin::new(&mut writer).poll_shutdown(task)).await.map_err(into_file)
    }

    /// Returns the entries of a directory, without `.` and `..`, in no order, up to
    /// [`AgentClient::FILE_LIMIT`] bytes of them. This is the asynchronous form of
    /// [`AgentClient::list_dir`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::list_dir`].
    pub async fn list_dir_async(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>, FileError> {
        self.list_dir_limited_async(path, Self::FILE_LIMIT).await
    }

    /// Returns the entries of a directory, up to `limit` bytes: each entry has 37 and its name. This is the
    /// asynchronous form of [`AgentClient::list_dir_limited`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::list_dir_limited`].
    pub async fn list_dir_limited_async(
        &self,
        path: impl AsRef<Path>,
        limit: usize,
    ) -> Result<Vec<DirEntry>, FileError> {
        let path = path.as_ref();
        entries_of(&self.read_async(Request::List(path.to_owned()), path, limit).await?)
    }
}

/// Returns the next bytes; none at the end.
async fn next<'b>(reader: &mut (impl AsyncRead + Unpin), buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let count = poll_fn(|task| {
        loop {
            let mut space = ReadBuf::new(buffer);
            match ready!(Pin::new(&mut *reader).poll_read(task, &mut space)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read.map(|()| space.filled().len()).into(),
            }
        }
    });
    let count = count.await?;
    Ok(buffer.get(..count).unwrap_or_default())
}

async fn write_all(writer: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match poll_fn(|task| Pin::new(&mut *writer).poll_write(task, bytes)).await {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

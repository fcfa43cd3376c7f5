//! Files of a guest as streams, of any size and with back-pressure: neither end buffers more than a window.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use coracle_agent::protocol::agent::{FileInfo, PutRequest, Request, Stream};

use super::channel::{Channel, Locked};
use super::client::AgentClient;
use super::error::{AgentError, FileError};
use super::files::{acknowledged, check};
use super::patience::Patience;
use super::waits::{Waits, block_on};

/// A file of the guest that is read from its start to its end ([`AgentClient::open_file`]).
///
/// The agent may send more bytes than [`FileReader::info`] reports, without end. A caller that keeps them
/// must count them, for example by [`Read::take`].
pub struct FileReader {
    end: FileEnd,
    info: FileInfo,
}

/// A new file of the guest ([`AgentClient::create_file`]). [`FileWriter::finish`] renames it to its path. If
/// it is dropped before that, nothing changes.
pub struct FileWriter {
    end: FileEnd,
    has_ended: bool,
}

/// The common part of both: a channel, and the patience with its agent.
struct FileEnd {
    channel: Arc<Channel>,
    patience: Patience,
    moved: usize,
}

impl AgentClient {
    /// Opens a regular file for reading.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io::Read;
    ///
    /// let log = vm.agent()?.open_file("/var/log/messages")?;
    /// let mut text = String::new();
    /// log.take(1 << 20).read_to_string(&mut text)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<FileReader, FileError> {
        let channel = Channel::open(self.link(), Request::Get(path.as_ref().to_owned()))?;
        let (mut locked, mut patience) = (channel.lock(), channel.patience());
        let info = loop {
            if let Some(info) = opened(&mut locked)? {
                break info;
            }
            locked = locked.wait_answer(&mut patience)?;
        };
        drop(locked);
        Ok(FileReader { end: FileEnd::new(channel, patience), info })
    }

    /// Opens a new file for writing. When it is finished, it replaces an existing file. It gets the
    /// permissions `mode`, or else those of the existing file, or 0644. An error of the guest is returned by
    /// the first write, or by [`FileWriter::finish`].
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut disk = vm.agent()?.create_file("/srv/disk.img", Some(0o600))?;
    /// std::io::copy(&mut std::fs::File::open("disk.img")?, &mut disk)?;
    /// disk.finish()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The agent or the machine has ended.
    pub fn create_file(&self, path: impl AsRef<Path>, mode: Option<u32>) -> Result<FileWriter, FileError> {
        let request = PutRequest { path: path.as_ref().to_owned(), mode };
        Ok(FileWriter::new(Channel::open(self.link(), Request::Put(request))?))
    }
}

/// Returns the file's properties, once its agent has opened it.
pub(super) fn opened(locked: &mut Locked<'_>) -> Result<Option<FileInfo>, FileError> {
    let seen = locked.seen();
    check(seen).map(|_| seen.file)
}

impl FileEnd {
    fn new(channel: Channel, mut patience: Patience) -> FileEnd {
        patience.pause();
        FileEnd { channel: Arc::new(channel), patience, moved: 0 }
    }

    /// Counts bytes that have gone through this end. `acknowledged` returns how many of all of them the agent
    /// has certainly handled.
    fn note_progress(&mut self, count: usize, acknowledged: impl Fn(usize) -> usize) {
        self.moved = self.moved.saturating_add(count);
        self.patience.note_progress(acknowledged(self.moved));
    }
}

impl FileReader {
    #[cfg(feature = "tokio")]
    pub(super) fn new(channel: Channel, info: FileInfo) -> FileReader {
        let patience = channel.patience();
        FileReader { end: FileEnd::new(channel, patience), info }
    }

    /// Returns the file's properties, as the guest reports them.
    pub fn info(&self) -> FileInfo {
        self.info
    }

    /// Takes available bytes. Returns `None` if there are none yet, and 0 at the end.
    pub(super) fn read_now(
        &mut self,
        locked: &mut Locked<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let count = locked.take(Stream::Stdout, buffer);
        self.end.note_progress(count, |moved| moved);
        if count > 0 || buffer.is_empty() {
            return Ok(Some(count));
        }
        let seen = locked.seen();
        let is_done = check(seen).map_err(of_file)?;
        Ok((is_done && seen.is_at_end(Stream::Stdout)).then_some(0))
    }
}

impl FileWriter {
    pub(super) fn new(channel: Channel) -> FileWriter {
        let patience = channel.patience();
        FileWriter { end: FileEnd::new(channel, patience), has_ended: false }
    }

    /// Renames the whole file to its path.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended. As far as can be known, nothing has changed
    /// then.
    pub fn finish(mut self) -> Result<(), FileError> {
        block_on(&mut self, FileWriter::end_now).map_err(into_file)
    }

    /// Sends as much as there is space for. Returns `None` if that is nothing.
    pub(super) fn write_now(&mut self, locked: &mut Locked<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.has_ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        check(locked.seen()).map_err(of_file)?;
        let sent = locked.send(bytes);
        self.end.note_progress(sent, acknowledged);
        Ok((sent > 0 || bytes.is_empty()).then_some(sent))
    }

    /// Ends the file. Returns whether it has been renamed to its path.
    pub(super) fn end_now(&mut self, locked: &mut Locked<'_>) -> io::Result<Option<()>> {
        self.has_ended = true;
        locked.end_input();
        self.end.note_progress(0, |moved| moved);
        check(locked.seen()).map_err(of_file).map(|is_done| is_done.then_some(()))
    }
}

/// Implements the waits of an end of the file.
macro_rules! waits {
    ($stream:ty) => {
        impl Waits for $stream {
            fn channel(&self) -> &Arc<Channel> {
                &self.end.channel
            }

            fn wait_until(&mut self) -> io::Result<Option<Instant>> {
                self.end.patience.wait().map(Some).map_err(|error| of_file(error.into()))
            }

            fn end_wait(&mut self) {
                self.end.patience.pause();
            }
        }
    };
}

waits!(FileReader);
waits!(FileWriter);

impl Read for FileReader {
    /// Waits until there are bytes, or the end. An error contains the [`FileError`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self, |reader, locked| reader.read_now(locked, buffer))
    }
}

impl Write for FileWriter {
    /// Waits until the guest takes more. An error contains the [`FileError`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self, |writer, locked| writer.write_now(locked, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn of_file(error: FileError) -> io::Error {
    let kind = match &error {
        FileError::Guest { source, .. } => source.kind(),
        FileError::Agent(AgentError::NoAnswer { .. }) => ErrorKind::TimedOut,
        FileError::Agent(_) => ErrorKind::ConnectionAborted,
        FileError::TooLarge { .. }
        | FileError::TooMany { .. }
        | FileError::Local { .. }
        | FileError::Copy { .. } => ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

pub(super) fn into_file(error: io::Error) -> FileError {
    // The steps above only return these.
    error.downcast().unwrap_or(FileError::Agent(AgentError::Lost))
}

//! Files of a guest as streams, of any size and with back-pressure: neither end holds more than a window.

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
/// The agent may give more bytes than [`FileReader::info`] says, without end: whoever keeps them counts them, for
/// example by [`Read::take`].
pub struct FileReader {
    end: FileEnd,
    info: FileInfo,
}

/// A new file of the guest ([`AgentClient::create_file`]). It comes to its place with [`FileWriter::finish`]; one that
/// is dropped before leaves everything as it was.
pub struct FileWriter {
    end: FileEnd,
    has_ended: bool,
}

/// What both are: a channel, and the patience with its agent.
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

    /// Opens a file for writing: a new one, which takes the place of what is there when it is finished, with these
    /// permissions, or else those that are there, or 0644. What the guest refuses is an error of the first write, or of
    /// [`FileWriter::finish`].
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

/// What the file is, once its agent has opened it.
pub(super) fn opened(locked: &mut Locked<'_>) -> Result<Option<FileInfo>, FileError> {
    let seen = locked.seen();
    check(seen).map(|_| seen.file)
}

impl FileEnd {
    fn new(channel: Channel, mut patience: Patience) -> FileEnd {
        patience.pause();
        FileEnd { channel: Arc::new(channel), patience, moved: 0 }
    }

    /// So many bytes more have gone through this end: the agent has got as far as `acknowledged` says of all of them.
    fn has_moved(&mut self, count: usize, acknowledged: impl Fn(usize) -> usize) {
        self.moved = self.moved.saturating_add(count);
        self.patience.has_moved(acknowledged(self.moved));
    }
}

impl FileReader {
    #[cfg(feature = "tokio")]
    pub(super) fn new(channel: Channel, info: FileInfo) -> FileReader {
        let patience = channel.patience();
        FileReader { end: FileEnd::new(channel, patience), info }
    }

    /// What the guest says that the file is.
    pub fn info(&self) -> FileInfo {
        self.info
    }

    /// Takes what is there; none when there is nothing yet, and 0 at the end.
    pub(super) fn read_now(
        &mut self,
        locked: &mut Locked<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let count = locked.take(Stream::Stdout, buffer);
        self.end.has_moved(count, |moved| moved);
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

    /// Puts the file into its place, whole.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended: everything is as it was, as far as that can be known.
    pub fn finish(mut self) -> Result<(), FileError> {
        block_on(&mut self, FileWriter::end_now).map_err(into_file)
    }

    /// Sends what there is room for; none when that is nothing.
    pub(super) fn write_now(&mut self, locked: &mut Locked<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.has_ended {
            return Err(ErrorKind::BrokenPipe.into());
        }
        check(locked.seen()).map_err(of_file)?;
        let sent = locked.send(bytes);
        self.end.has_moved(sent, acknowledged);
        Ok((sent > 0 || bytes.is_empty()).then_some(sent))
    }

    /// Ends the file, and sees whether it is in its place.
    pub(super) fn end_now(&mut self, locked: &mut Locked<'_>) -> io::Result<Option<()>> {
        self.has_ended = true;
        locked.end_input();
        self.end.has_moved(0, |moved| moved);
        check(locked.seen()).map_err(of_file).map(|is_done| is_done.then_some(()))
    }
}

/// Waits as the end of the file does.
macro_rules! waits {
    ($stream:ty) => {
        impl Waits for $stream {
            fn channel(&self) -> &Arc<Channel> {
                &self.end.channel
            }

            fn wait_until(&mut self) -> io::Result<Option<Instant>> {
                self.end.patience.wait().map(Some).map_err(|error| of_file(error.into()))
            }

            fn has_waited(&mut self) {
                self.end.patience.pause();
            }
        }
    };
}

waits!(FileReader);
waits!(FileWriter);

impl Read for FileReader {
    /// Waits until there is something, or the end. An error holds the [`FileError`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self, |reader, locked| reader.read_now(locked, buffer))
    }
}

impl Write for FileWriter {
    /// Waits until the guest takes more. An error holds the [`FileError`].
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
    // What the steps above give is always one of these.
    error.downcast().unwrap_or(FileError::Agent(AgentError::Lost))
}

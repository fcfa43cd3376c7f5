//! Moves console bytes to and from a file descriptor of the caller, without ever blocking on it.
//!
//! The I/O thread owns a [`CharSink`] for output and a [`CharSource`] for input. The caller's descriptor
//! stays as it is: its `O_NONBLOCK` flag belongs to every process that shares the open file (often a shell),
//! so pipes and terminals are opened a second time instead. Threads that write must block SIGPIPE. No signal
//! handler is installed here.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The destination of console output: a terminal, pipe, socket, file or device.
#[derive(Debug)]
pub struct CharSink {
    end: CharEnd,
}

impl CharSink {
    /// Prepares `fd` for output. The descriptor is duplicated or reopened; the caller may close its own.
    ///
    /// # Errors
    /// The descriptor is not open for writing, is a directory, or cannot be duplicated.
    pub fn new(fd: BorrowedFd<'_>) -> Result<Self, CharError> {
        Ok(Self { end: CharEnd::open(fd, Direction::Write)? })
    }

    /// Writes as much of `bytes` as is possible at once. A regular file takes all of it, and may block for
    /// its disk.
    pub fn write(&self, bytes: &[u8]) -> Written {
        if bytes.is_empty() {
            return Written::Wrote(0);
        }
        match self.end.transfer(|end| end.write_once(bytes)) {
            // A write of 0 bytes counts as a broken file: trying again would spin.
            Ok(0) => Written::Closed { errno: libc::EIO },
            Ok(count) => Written::Wrote(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Written::WouldBlock,
            Err(error) => Written::Closed { errno: errno_of(&error) },
        }
    }

    /// Returns the descriptor to poll for writability after [`Written::WouldBlock`]. `None` for a file or
    /// device that cannot be polled and never blocks.
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.end.poll_fd()
    }
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// This many bytes were written, at least one.
    Wrote(usize),
    /// Nothing was written: the reader is too slow.
    WouldBlock,
    /// Nothing was written, and probably never will be: the reader has gone (`EPIPE`, `EIO`) or the file
    /// cannot grow (`ENOSPC`, `EFBIG`).
    Closed {
        /// The error number of the host.
        errno: i32,
    },
}

/// The source of console input: a terminal, pipe, socket, file or device.
#[derive(Debug)]
pub struct CharSource {
    end: CharEnd,
}

impl CharSource {
    /// Prepares `fd` for input. The descriptor is duplicated or reopened; the caller may close its own.
    ///
    /// # Errors
    /// The descriptor is not open for reading, is a directory, or cannot be duplicated.
    pub fn new(fd: BorrowedFd<'_>) -> Result<Self, CharError> {
        Ok(Self { end: CharEnd::open(fd, Direction::Read)? })
    }

    /// Reads the available input, at most `buffer.len()` bytes.
    pub fn read(&self, buffer: &mut [u8]) -> ReadOutcome {
        if buffer.is_empty() {
            return ReadOutcome::Read(0);
        }
        match self.end.transfer(|end| end.read_once(buffer)) {
            Ok(0) => ReadOutcome::EndOfInput,
            Ok(count) => ReadOutcome::Read(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => ReadOutcome::WouldBlock,
            Err(error) => ReadOutcome::Closed { errno: errno_of(&error) },
        }
    }

    /// Returns the descriptor to poll for input. `None` for a file or device that cannot be polled: it always
    /// has input, up to its end.
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.end.poll_fd()
    }
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// This many bytes are in the buffer.
    Read(usize),
    /// There is no input now.
    WouldBlock,
    /// There is no input now or later: the file has ended, or nobody holds the other end. On a terminal in
    /// line mode the user typed the end-of-file character.
    EndOfInput,
    /// The input is broken, for example because a terminal hung up (`EIO`).
    Closed {
        /// The error number of the host.
        errno: i32,
    },
}

/// The reason why a descriptor cannot serve as a console.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CharError {
    /// The descriptor is not open in the needed direction.
    #[error(
        "file descriptor {fd} is not open for {need}; open it for {need}, or use another one for the console"
    )]
    WrongAccess {
        /// The caller's descriptor.
        fd: i32,
        /// `reading` or `writing`.
        need: &'static str,
    },
    /// The descriptor is a directory.
    #[error("file descriptor {fd} is a directory; a console needs a terminal, pipe, socket or file")]
    Directory {
        /// The caller's descriptor.
        fd: i32,
    },
    /// The host refused to inspect or to duplicate the descriptor.
    #[error("file descriptor {fd} cannot be used for the console; check that it is open: {source}")]
    Inaccessible {
        /// The caller's descriptor.
        fd: i32,
        /// The error that the host returned.
        r#source: io::Error,
    },
}

/// The direction in which bytes go through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Bytes are read from it.
    Read,
    /// Bytes are written to it.
    Write,
}

/// Opens a pipe or terminal a second time as non-blocking. `None` for another kind of file, and for one that
/// may not be opened again.
pub fn own_description(fd: BorrowedFd<'_>, direction: Direction) -> Option<File> {
    let file = File::from(fd.try_clone_to_owned().ok()?);
    let metadata = file.metadata().ok()?;
    let is_terminal = file.is_terminal() && metadata.rdev() != PTY_MULTIPLEXER;
    if metadata.file_type().is_fifo() || is_terminal { reopen(&file, direction) } else { None }
}

/// The way to keep a transfer from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// An open file description of this module's own, with `O_NONBLOCK`.
    OwnDescription,
    /// A socket, which has a flag for each call.
    Socket,
    /// A regular file, or a device like /dev/null, which does not block.
    AlwaysReady,
    /// A shared description that may block: poll first, then move few bytes.
    AskFirst,
}

/// An open end, and its way to avoid blocking.
#[derive(Debug)]
struct CharEnd {
    file: File,
    way: Way,
}

impl CharEnd {
    fn open(fd: BorrowedFd<'_>, direction: Direction) -> Result<Self, CharError> {
        let number = fd.as_raw_fd();
        let inaccessible = |source| CharError::Inaccessible { fd: number, source };
        if !allows(fd, direction).map_err(inaccessible)? {
            let need = if direction == Direction::Read { "reading" } else { "writing" };
            return Err(CharError::WrongAccess { fd: number, need });
        }
        let file = File::from(fd.try_clone_to_owned().map_err(inaccessible)?);
        let metadata = file.metadata().map_err(inaccessible)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(CharError::Directory { fd: number });
        }
        if kind.is_socket() {
            return Ok(Self { file, way: Way::Socket });
        }
        let is_terminal = file.is_terminal() && metadata.rdev() != PTY_MULTIPLEXER;
        if kind.is_fifo() || is_terminal {
            // Refused for a terminal of another user, or without /proc.
            if let Some(own) = reopen(&file, direction) {
                return Ok(Self { file: own, way: Way::OwnDescription });
            }
            return Ok(Self { file, way: Way::AskFirst });
        }
        let way = if is_pollable(&file).map_err(inaccessible)? { Way::AskFirst } else { Way::AlwaysReady };
        Ok(Self { file, way })
    }

    /// Repeats `step` while signals interrupt it.
    fn transfer(&self, mut step: impl FnMut(&Self) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match step(self) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_once(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.way {
            Way::OwnDescription | Way::AlwaysReady => (&self.file).write(bytes),
            Way::Socket => send(&self.file, bytes),
            Way::AskFirst => {
                let (some, _) = bytes.split_at(bytes.len().min(CAREFUL_WRITE));
                wait_for(&self.file, libc::POLLOUT)?;
                (&self.file).write(some)
            }
        }
    }

    fn read_once(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.way {
            Way::OwnDescription | Way::AlwaysReady => (&self.file).read(buffer),
            Way::Socket => receive(&self.file, buffer),
            Way::AskFirst => {
                wait_for(&self.file, libc::POLLIN)?;
                (&self.file).read(buffer)
            }
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.way != Way::AlwaysReady).then(|| self.file.as_fd())
    }
}

/// Returns whether the access mode of `fd` allows `direction`.
fn allows(fd: BorrowedFd<'_>, direction: Direction) -> io::Result<bool> {
    // SAFETY: F_GETFL takes no argument and only reads the flags of a descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::O_PATH != 0 {
        return Ok(false);
    }
    Ok(match flags & libc::O_ACCMODE {
        libc::O_RDWR => true,
        libc::O_RDONLY => direction == Direction::Read,
        libc::O_WRONLY => direction == Direction::Write,
        _ => false,
    })
}

/// Opens the file behind `file` again, without blocking and without becoming its controlling process.
fn reopen(file: &File, direction: Direction) -> Option<File> {
    let mut options = OpenOptions::new();
    match direction {
        Direction::Read => options.read(true),
        Direction::Write => options.write(true),
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let own = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let (old, new) = (file.metadata().ok()?, own.metadata().ok()?);
    ((old.dev(), old.ino()) == (new.dev(), new.ino())).then_some(own)
}

/// Returns whether epoll accepts `file`. It refuses those that are always ready.
fn is_pollable(file: &File) -> io::Result<bool> {
    let epoll = Epoll::new()?;
    let fd = file.as_raw_fd();
    match epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fails with `WouldBlock` unless `file` is ready for `events`, or broken, which the transfer then reports.
fn wait_for(file: &File, events: libc::c_short) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
    // SAFETY: one live pollfd is passed with a count of one; a timeout of zero returns at once.
    match unsafe { libc::poll(&mut entry, 1, 0) } {
        0 => Err(ErrorKind::WouldBlock.into()),
        count if count > 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of a live slice, which the call only reads.
    let sent = unsafe { libc::send(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn receive(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: pointer and length are those of a live, exclusively borrowed slice.
    let received = unsafe { libc::recv(file.as_raw_fd(), pointer, buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Returns the host's error number. Every error here comes from a system call, and has one.
fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// /dev/ptmx and its like (Linux `devices.txt`: major 5, minor 2). Opening one again would make a new
/// terminal instead of reaching the same one.
const PTY_MULTIPLEXER: u64 = libc::makedev(5, 2);
/// The largest write after polling. A pipe that polls writable takes at least `PIPE_BUF` (4,096) bytes, and a
/// terminal fewer. 512 bytes fit both in practice, and a larger write could block until the reader reads.
const CAREFUL_WRITE: usize = 512;

#[cfg(test)]
mod tests;

//! Moves bytes from one file descriptor to another inside a poll loop, with back-pressure.
//!
//! Both ends of the emulated host run these: the agent between a command's pipes or pseudo-terminal and the
//! virtio-serial ports, the outer side between those ports and the caller's stdin, stdout and stderr. A
//! [`Pump`] never waits: its owner polls the entries that it returns, and hands the results back. It reads
//! only when its buffer is empty, so that a slow reader stops the writer at the other end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes that a pump holds at most: the capacity of a pipe, so that one read empties it.
const BUFFER: usize = 64 << 10;

/// The largest write to a descriptor that may block. A pipe that polls as writable takes this much
/// (`PIPE_BUF`) without blocking.
pub const BLOCKING_CHUNK: usize = libc::PIPE_BUF;

/// The largest write to a non-blocking descriptor.
pub const NON_BLOCKING_CHUNK: usize = BUFFER;

/// The treatment of bytes that can no longer be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The pump stops reading and closes the source, so that its writer learns of it.
    Stop,
    /// The pump goes on reading and counting, and drops the bytes.
    Discard,
}

/// A direction of a stream.
///
/// ```text
/// open --end of source--> draining --buffer empty--> finished
///   \--sink closed--> discarding --end of source--> finished   (Undelivered::Discard)
///    \--sink closed--> finished                                (Undelivered::Stop)
/// ```
#[derive(Debug)]
pub struct Pump {
    source: Option<File>,
    sink: Option<File>,
    chunk: usize,
    undelivered: Undelivered,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    taken: u64,
    total: Option<u64>,
    delivered: u64,
    failure: Option<i32>,
}

impl Pump {
    /// Makes a pump from `source` to `sink` that writes at most `chunk` bytes at a time.
    pub fn new(source: OwnedFd, sink: OwnedFd, chunk: usize, undelivered: Undelivered) -> Self {
        Self {
            source: Some(File::from(source)),
            sink: Some(File::from(sink)),
            chunk,
            undelivered,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            taken: 0,
            total: None,
            delivered: 0,
            failure: None,
        }
    }

    /// Returns the number of bytes read from the source so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns the number of bytes written to the sink so far.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Returns the error number of the write that failed, if the sink takes nothing more for another reason
    /// than that its reader has gone.
    pub fn failure(&self) -> Option<i32> {
        self.failure
    }

    /// Returns whether the sink takes nothing more: its reader has gone, or a write has failed.
    pub fn sink_closed(&self) -> bool {
        self.sink.is_none()
    }

    /// Returns whether everything of the source has been read.
    pub fn source_ended(&self) -> bool {
        self.source.is_none()
    }

    /// Returns whether the pump has nothing left to do.
    pub fn finished(&self) -> bool {
        self.source.is_none() && (self.start == self.end || self.sink.is_none())
    }

    /// Sets the length of the source in bytes, counted from the start. The source ends there, and not before.
    pub fn end_source_at(&mut self, bytes: u64) {
        self.total = Some(bytes);
        self.close_source_at_total();
        self.release_finished_sink();
    }

    /// Ends the source after the bytes that it holds now. For a pipe whose writer stays open.
    pub fn end_source_at_pending(&mut self) {
        let Some(source) = &self.source else { return };
        self.end_source_at(self.taken.saturating_add(pending_bytes(source)));
    }

    /// Closes the sink. Bytes that are buffered or still to come count as undelivered.
    pub fn close_sink(&mut self) {
        self.sink = None;
        self.start = self.end;
        if self.undelivered == Undelivered::Stop {
            self.source = None;
        }
    }

    /// Returns the entries to poll: the source's and the sink's. An entry that is not wanted has descriptor
    /// -1. An idle sink is watched for errors, so that a closed reader is noticed before the next byte.
    pub fn poll_entries(&self) -> [libc::pollfd; 2] {
        let room = self.start == self.end;
        let source = self.source.as_ref().filter(|_| room).map_or(-1, AsRawFd::as_raw_fd);
        let sink = self.sink.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let events = if room { 0 } else { libc::POLLOUT };
        [poll_entry(source, libc::POLLIN), poll_entry(sink, events)]
    }

    /// Handles the result of polling [`Pump::poll_entries`], which must be this pump's latest.
    pub fn handle(&mut self, answers: [libc::pollfd; 2]) {
        let [source, sink] = answers;
        if source.revents != 0 {
            self.fill();
        }
        if sink.revents & libc::POLLOUT != 0 {
            self.drain();
        } else if sink.revents != 0 {
            self.close_sink();
        }
        self.release_finished_sink();
    }

    fn fill(&mut self) {
        let Some(source) = &mut self.source else { return };
        let wanted = self.total.map_or(u64::MAX, |total| total.saturating_sub(self.taken));
        let wanted = usize::try_from(wanted).unwrap_or(BUFFER).min(BUFFER);
        let Some(space) = self.buffer.get_mut(..wanted) else { return };
        match source.read(space) {
            Ok(count) if count > 0 => {
                self.taken = self.taken.saturating_add(count as u64);
                self.start = 0;
                self.end = if self.sink.is_some() { count } else { 0 };
                self.close_source_at_total();
            }
            Err(error) if is_temporary(&error) => {}
            // Zero is the end. A pseudo-terminal without users, or a lost terminal, reports it as EIO.
            Ok(_) | Err(_) => self.source = None,
        }
    }

    fn drain(&mut self) {
        let end = self.end.min(self.start.saturating_add(self.chunk));
        let (Some(sink), Some(waiting)) = (&mut self.sink, self.buffer.get(self.start..end)) else { return };
        match sink.write(waiting) {
            Ok(count) => {
                self.delivered = self.delivered.saturating_add(count as u64);
                self.start = self.start.saturating_add(count).min(self.end);
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => {
                self.failure = error.raw_os_error().filter(|errno| *errno != libc::EPIPE);
                self.close_sink();
            }
        }
    }

    fn close_source_at_total(&mut self) {
        if self.total.is_some_and(|total| self.taken >= total) {
            self.source = None;
        }
    }

    /// Closes the sink, so that its reader learns of the end.
    fn release_finished_sink(&mut self) {
        if self.finished() {
            self.sink = None;
        }
    }
}

/// Makes a poll entry for `events` on a descriptor; -1 for none.
pub fn poll_entry(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Waits until one of the entries is ready or `timeout_ms` milliseconds have passed (-1: no limit).
///
/// # Errors
/// The errors of `poll(2)`, except EINTR, which ends the wait like a timeout.
pub fn poll(entries: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    let count = entries.len() as libc::nfds_t;
    // SAFETY: the pointer and the count describe `entries`, which the call may write to.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), count, timeout_ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
        entries.iter_mut().for_each(|entry| entry.revents = 0);
    }
    Ok(())
}

/// Makes a descriptor non-blocking.
///
/// # Errors
/// The errors of `fcntl(2)`.
pub fn set_non_blocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: reads the flags of an open descriptor; no memory is involved.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sets the flags of an open descriptor; no memory is involved.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn pending_bytes(source: &File) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int at the given address, which is `count`.
    let result = unsafe { libc::ioctl(source.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 { 0 } else { u64::try_from(count).unwrap_or(0) }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, pipe};

    use super::*;

    fn pumped(undelivered: Undelivered) -> (PipeWriter, Pump, PipeReader) {
        let (source, writer) = pipe().unwrap();
        let (reader, sink) = pipe().unwrap();
        (writer, Pump::new(source.into(), sink.into(), BLOCKING_CHUNK, undelivered), reader)
    }

    /// Polls and handles until nothing has happened for a moment.
    fn run(pump: &mut Pump) {
        for _ in 0..10_000 {
            let mut entries = pump.poll_entries();
            poll(&mut entries, 10).unwrap();
            if entries.iter().all(|entry| entry.revents == 0) {
                return;
            }
            pump.handle(entries);
        }
        panic!("the pump spins: {pump:?}");
    }

    #[test]
    fn bytes_and_the_end_cross() {
        let (mut writer, mut pump, mut reader) = pumped(Undelivered::Stop);
        let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
        writer.write_all(&sent).unwrap();
        drop(writer);
        run(&mut pump);
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        assert!(pump.finished());
        assert_eq!(received, sent);
        assert_eq!((pump.taken(), pump.delivered()), (50_000, 50_000));
    }

    #[test]
    fn a_full_sink_stops_the_source() {
        let (mut writer, mut pump, reader) = pumped(Undelivered::Stop);
        writer.write_all(&[1; 60_000]).unwrap();
        run(&mut pump);
        writer.write_all(&[2; 60_000]).unwrap();
        run(&mut pump);
        assert!(pump.delivered() <= 65_536, "{}", pump.delivered());
        assert!(!pump.finished());
        drop(reader);
    }

    #[test]
    fn a_closed_reader_is_noticed_without_a_byte() {
        let (writer, mut pump, reader) = pumped(Undelivered::Stop);
        drop(reader);
        run(&mut pump);
        assert!(pump.sink_closed() && pump.source_ended());
        drop(writer);
    }

    #[test]
    fn discarding_counts_what_it_drops() {
        let (mut writer, mut pump, reader) = pumped(Undelivered::Discard);
        drop(reader);
        run(&mut pump);
        writer.write_all(&[0; 10]).unwrap();
        run(&mut pump);
        assert_eq!((pump.taken(), pump.delivered(), pump.finished()), (10, 0, false));
        drop(writer);
        run(&mut pump);
        assert!(pump.finished());
    }

    #[test]
    fn only_a_write_that_fails_while_somebody_reads_is_a_failure() {
        let (mut writer, mut pump, reader) = pumped(Undelivered::Discard);
        writer.write_all(b"lost").unwrap();
        drop(reader);
        run(&mut pump);
        assert_eq!((pump.sink_closed(), pump.failure()), (true, None));
        let (source, mut writer) = pipe().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut pump = Pump::new(source.into(), full.into(), BLOCKING_CHUNK, Undelivered::Discard);
        writer.write_all(b"lost").unwrap();
        run(&mut pump);
        assert_eq!((pump.sink_closed(), pump.failure()), (true, Some(libc::ENOSPC)));
    }

    #[test]
    fn an_announced_total_ends_an_open_source() {
        let (mut writer, mut pump, mut reader) = pumped(Undelivered::Stop);
        pump.end_source_at(6);
        writer.write_all(b"abc").unwrap();
        run(&mut pump);
        assert!(!pump.finished());
        writer.write_all(b"defghi").unwrap();
        run(&mut pump);
        assert!(pump.finished());
        let mut received = String::new();
        reader.read_to_string(&mut received).unwrap();
        assert_eq!(received, "abcdef");
    }

    #[test]
    fn an_announced_total_of_nothing_closes_the_sink_at_once() {
        let (writer, mut pump, mut reader) = pumped(Undelivered::Stop);
        pump.end_source_at(0);
        let mut received = Vec::new();
        assert_eq!(reader.read_to_end(&mut received).unwrap(), 0);
        drop(writer);
    }

    #[test]
    fn pending_bytes_of_an_open_source_still_cross() {
        let (mut writer, mut pump, mut reader) = pumped(Undelivered::Stop);
        writer.write_all(b"last").unwrap();
        pump.end_source_at_pending();
        run(&mut pump);
        assert!(pump.finished());
        let mut received = String::new();
        reader.read_to_string(&mut received).unwrap();
        assert_eq!(received, "last");
        drop(writer);
    }
}

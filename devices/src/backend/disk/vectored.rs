//! Reads and writes whole lists of guest buffers, however much one system call transfers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use crate::memory::Span;

/// Fills `spans` from `offset` of `file`.
///
/// # Errors
/// The errors of preadv(2), and `UnexpectedEof` where the file ends.
pub(super) fn read_all(file: BorrowedFd<'_>, offset: u64, spans: &[Span]) -> io::Result<()> {
    transfer(offset, spans, |iovecs, offset| {
        // SAFETY: each iovec is guest RAM that its memory keeps mapped (the contract of `Span`).
        unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), offset) }
    })
}

/// Writes `spans` to `file` from `offset`.
///
/// # Errors
/// The errors of pwritev(2).
pub(super) fn write_all(file: BorrowedFd<'_>, offset: u64, spans: &[Span]) -> io::Result<()> {
    transfer(offset, spans, |iovecs, offset| {
        // SAFETY: each iovec is guest RAM that its memory keeps mapped (the contract of `Span`).
        unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), offset) }
    })
}

/// Writes `len` zeroes to `file` from `offset`, but at most [`MAX_ZEROES`], for file systems that cannot
/// clear a range in another way. Returns the number of bytes.
///
/// # Errors
/// The errors of pwrite(2).
pub(super) fn write_zero_bytes(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let zeroes = vec![0; len.min(MAX_ZEROES) as usize];
    file.write_all_at(&zeroes, offset)?;
    Ok(zeroes.len() as u64)
}

/// The largest number of zeroes in one call, in bytes: a stop of the disk waits for the call.
const MAX_ZEROES: u64 = 1 << 20;

/// Calls `call` until everything is transferred. Usually one call is enough, and then nothing is copied.
fn transfer(
    mut offset: u64,
    spans: &[Span],
    call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    let mut left: u64 = spans.iter().map(|span| u64::from(span.len())).sum();
    let mut rest: Vec<Span> = Vec::new();
    let mut spans = spans;
    while left > 0 {
        let at = libc::off_t::try_from(offset).map_err(|_| super::out_of_range())?;
        let now = spans.get(..spans.len().min(MAX_IOVECS)).unwrap_or_default();
        let done = match u64::try_from(call(Span::iovecs(now), at)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => done,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        left = left.saturating_sub(done);
        offset = offset.saturating_add(done);
        if left > 0 {
            rest = after(spans, done);
            spans = &rest;
        }
    }
    drop(rest);
    Ok(())
}

/// Returns the spans after the first `done` bytes.
fn after(spans: &[Span], done: u64) -> Vec<Span> {
    let mut skip = done;
    let rest = spans.iter().filter_map(|span| {
        let part = skip.min(span.len().into());
        skip = skip.saturating_sub(part);
        span.from(part as u32).filter(|rest| rest.len() > 0)
    });
    rest.collect()
}

fn count(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

/// The largest number of iovecs in a call: IOV_MAX of Linux.
const MAX_IOVECS: usize = 1024;

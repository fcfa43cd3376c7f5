//! Streams for tasks. They are separate types: one type for threads and tasks would be ambiguous where
//! [`std::io::Read`] and tokio's `AsyncReadExt` are both imported.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::file_streams::{FileReader, FileWriter};
use super::streams::{ProcessInput, ProcessOutput};
use super::tasks::Timer;
use super::waits::poll_on;

/// A stream for a task. [`ProcessOutput`] and [`FileReader`] are read by `AsyncRead`, and [`ProcessInput`]
/// and [`FileWriter`] are written by `AsyncWrite`. It needs the feature `tokio`, and a runtime with its
/// timer.
///
/// ```no_run
/// # async fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncBufReadExt, BufReader};
///
/// let mut process = vm.exec(["dmesg", "-w"]).spawn_async().await?;
/// let stdout = process.stdout.take().ok_or("taken already")?.into_async();
/// let mut lines = BufReader::new(stdout).lines();
/// while let Some(line) = lines.next_line().await? {
///     println!("{line}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Async<T> {
    stream: T,
    timer: Timer,
}

impl<T> Async<T> {
    fn new(stream: T) -> Async<T> {
        Async { stream, timer: Timer::default() }
    }

    /// Returns the stream for a thread.
    pub fn into_inner(self) -> T {
        self.stream
    }
}

impl ProcessOutput {
    /// Returns the stream for a task.
    pub fn into_async(self) -> Async<ProcessOutput> {
        Async::new(self)
    }
}

impl ProcessInput {
    /// Returns the stream for a task. Its `shutdown` ends the command's input, like dropping it.
    pub fn into_async(self) -> Async<ProcessInput> {
        Async::new(self)
    }
}

impl FileReader {
    /// Returns the stream for a task.
    pub fn into_async(self) -> Async<FileReader> {
        Async::new(self)
    }
}

impl FileWriter {
    /// Returns the stream for a task. Its `shutdown` is [`FileWriter::finish`].
    pub fn into_async(self) -> Async<FileWriter> {
        Async::new(self)
    }
}

macro_rules! reads {
    ($stream:ty) => {
        impl AsyncRead for Async<$stream> {
            fn poll_read(
                self: Pin<&mut Self>,
                task: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let Async { stream, timer } = self.get_mut();
                let space = buffer.initialize_unfilled();
                poll_on(stream, timer, task, |stream, locked| stream.read_now(locked, space))
                    .map_ok(|count| buffer.advance(count))
            }
        }
    };
}

macro_rules! writes {
    ($stream:ty) => {
        impl AsyncWrite for Async<$stream> {
            fn poll_write(
                self: Pin<&mut Self>,
                task: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                let Async { stream, timer } = self.get_mut();
                poll_on(stream, timer, task, |stream, locked| stream.write_now(locked, bytes))
            }

            fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
                let Async { stream, timer } = self.get_mut();
                poll_on(stream, timer, task, |stream, locked| stream.end_now(locked))
            }
        }
    };
}

reads!(ProcessOutput);
reads!(FileReader);
writes!(ProcessInput);
writes!(FileWriter);

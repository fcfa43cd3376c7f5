//! A program's own writer as console output. A thread moves bytes from a pipe to the writer, so that a writer
//! that blocks delays only itself.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::thread::ThreadKind;

/// The thread that feeds a writer.
pub(crate) struct Pump {
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
    /// The number of bytes that the writer has taken.
    delivered: Arc<AtomicU64>,
}

impl Pump {
    /// Starts the thread. It ends when the returned descriptor and all its duplicates are closed, or when the
    /// writer fails.
    pub(crate) fn start(writer: Box<dyn Write + Send>) -> io::Result<(Pump, OwnedFd)> {
        let (reader, output) = io::pipe()?;
        let (alive, ended) = mpsc::channel();
        let delivered = Arc::new(AtomicU64::new(0));
        let count = delivered.clone();
        ThreadKind::Console.spawn(move || {
            let _alive: Sender<()> = alive;
            copy(reader, writer, &count);
        })?;
        Ok((Pump { ended, delivered }, output.into()))
    }

    /// Waits until the writer has taken everything; `false` if that takes longer than `limit`.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        self.ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }

    /// Returns the number of bytes that the writer has taken. Once the thread has ended, everything else that
    /// went into the pipe is lost.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }
}

fn copy(mut reader: PipeReader, mut writer: Box<dyn Write + Send>, delivered: &AtomicU64) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut bytes) {
        let mut rest = bytes.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match writer.write(rest) {
                Ok(taken @ 1..) => {
                    delivered.fetch_add(taken.min(rest.len()) as u64, Ordering::Release);
                    rest = rest.get(taken..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
        if writer.flush().is_err() {
            return;
        }
    }
}

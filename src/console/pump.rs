//! A writer of the program's own as console output: a thread moves bytes from a pipe to it, so that a writer that
//! blocks delays nobody but itself.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::kvm::spawn_with_signals_blocked;

/// The thread behind a writer.
pub(crate) struct Pump {
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

impl Pump {
    /// Starts the thread, which ends after the returned descriptor and its duplicates are closed, or when the writer
    /// fails.
    pub(crate) fn start(writer: Box<dyn Write + Send>) -> io::Result<(Pump, OwnedFd)> {
        let (reader, output) = io::pipe()?;
        let (alive, ended) = mpsc::channel();
        spawn_with_signals_blocked("console".into(), move || {
            let _alive: Sender<()> = alive;
            copy(reader, writer);
        })?;
        Ok((Pump { ended }, output.into()))
    }

    /// Waits until the writer has everything: false when it takes longer than `limit`.
    pub(crate) fn finish(self, limit: Duration) -> bool {
        self.ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }
}

fn copy(mut reader: PipeReader, mut writer: Box<dyn Write + Send>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut bytes) {
        let taken = writer.write_all(bytes.get(..count).unwrap_or_default());
        if taken.and_then(|()| writer.flush()).is_err() {
            return;
        }
    }
}

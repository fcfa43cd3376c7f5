//! A running `coracle host-emulate`, its output, and a place for its files.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::common;

/// A directory below `/tmp` that is removed on drop.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/coracle-emulated-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running `coracle host-emulate`, which is killed when its time is over.
pub(crate) struct Run {
    pub(crate) child: Child,
}

impl Run {
    pub(crate) fn start(mut command: Command) -> Self {
        common::default_signals(&mut command);
        Self { child: command.spawn().unwrap() }
    }

    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        // SAFETY: kill takes numbers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    /// Closes stdin, collects the rest of the output, and waits.
    pub(crate) fn finish(mut self) -> Output {
        drop(self.child.stdin.take());
        let stdout = self.child.stdout.take().map(read_all);
        let stderr = self.child.stderr.take().map(read_all);
        let status = self.wait();
        let joined =
            |reader: Option<thread::JoinHandle<Vec<u8>>>| reader.map_or_else(Vec::new, |r| r.join().unwrap());
        Output { status, stdout: joined(stdout), stderr: joined(stderr) }
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() >= deadline {
                self.child.kill().unwrap();
                panic!("the command did not end within {LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Output in which a test waits for text.
pub(crate) struct Lines {
    parts: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Lines {
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Self {
        let (sender, parts) = mpsc::channel();
        thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut part) {
                if sender.send(part[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { parts, seen: String::new() }
    }

    /// Waits until `text` has come, and discards everything up to it.
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(place) = self.seen.find(text) {
                self.seen.drain(..place + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(part) = self.parts.recv_timeout(left) else {
                panic!("'{text}' did not come; there was: {}", self.seen);
            };
            self.seen.push_str(&String::from_utf8_lossy(&part));
        }
    }
}

pub(crate) fn read_all(mut source: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Far longer than any of these tests takes, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(400);

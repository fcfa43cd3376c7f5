//! A thread next to the subject of a measurement: it generates the load, or is as busy as the vCPU of a guest
//! that polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A thread that repeats one action until it is dropped.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts to repeat `work`.
    pub(super) fn start(mut work: impl FnMut() + Send + 'static) -> Worker {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                work();
            }
        });
        Worker { stop, thread: Some(thread) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

//! What a command in a guest writes, on its way to a stream or a reader of ours: for those who run such commands.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One of the command's outputs on its way.
pub(crate) struct Copying {
    thread: thread::JoinHandle<()>,
    state: Arc<State>,
    broken: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// The thread waits for the guest, and not for our reader.
    waits_for_guest: AtomicBool,
}

impl Copying {
    /// Copies it, piece by piece, until it ends or `to` fails.
    pub(crate) fn start(
        mut output: impl Read + Send + 'static,
        mut to: impl Write + Send + 'static,
    ) -> Copying {
        let (state, broken) = (Arc::new(State::default()), Arc::new(AtomicBool::new(false)));
        let shared = (state.clone(), broken.clone());
        let thread = thread::spawn(move || {
            let (state, broken) = shared;
            let mut bytes = vec![0; PIECE];
            loop {
                state.waits_for_guest.store(true, Ordering::Relaxed);
                let Ok(count @ 1..) = output.read(&mut bytes) else { return };
                state.waits_for_guest.store(false, Ordering::Relaxed);
                let written = to.write_all(bytes.get(..count).unwrap_or_default());
                if written.and_then(|()| to.flush()).is_err() {
                    return broken.store(true, Ordering::Relaxed);
                }
            }
        });
        Copying { thread, state, broken }
    }

    /// Whether what it is copied to takes no more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether all is written, or a process that the command has left behind holds its end: then nothing came for a while
    /// since `last`, when something did.
    pub(crate) fn is_over(&self, last: &mut Instant) -> bool {
        if !self.state.waits_for_guest.load(Ordering::Relaxed) {
            *last = Instant::now();
        }
        self.thread.is_finished() || last.elapsed() > LEFT_BEHIND
    }
}

/// A process that the command has left behind may hold its streams for ever.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// A frame of the agent's protocol.
const PIECE: usize = 64 << 10;

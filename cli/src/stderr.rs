//! Everything that the command writes to stderr: its own sentences, log lines and a progress line. All of it
//! passes through one queue and one thread, so that nobody waits for the reader of stderr: not the control
//! thread of a machine, and not the end of the command for longer than [`flush`] does.
//!
//! The thread starts with the first text that stderr does not take at once. Log lines are dropped and counted
//! while [`MAX_LOG_LINES`] are queued; sentences are few and never dropped.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use coracle_devices::thread::spawn_with_signals_blocked;

use crate::guest_text::for_terminal;

/// The importance of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// A sentence of the command, such as why it ends.
    Sentence,
    /// A text that may be dropped.
    Log,
}

#[derive(Debug)]
struct Queue {
    texts: VecDeque<(Weight, Vec<u8>)>,
    /// The number of log lines in the queue or being written.
    log_lines: usize,
    /// The number of log lines that were dropped and not reported yet.
    dropped: u64,
    /// True while the thread is writing a text.
    is_writing: bool,
    /// The number of pieces that were written so far.
    written: u64,
    is_served: bool,
    /// True if the last text was a progress line, which the next text replaces.
    shows_progress: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue::new());
static CHANGED: Condvar = Condvar::new();

/// Writes a sentence of the command as one line. Parts of it may come from the guest, so control characters
/// are removed.
pub(crate) fn say(line: &str) {
    write(Weight::Sentence, format!("coracle: {}\n", for_terminal(line)));
}

/// Queues a text as it is. This never waits.
pub(crate) fn write(weight: Weight, text: impl Into<Vec<u8>>) {
    let mut queue = lock();
    let text = queue.in_place_of_progress(text.into());
    push(queue, weight, text);
}

/// Shows a progress line on a terminal. The next text replaces it; `None` removes it.
pub(crate) fn show_progress(line: Option<&str>) {
    let mut queue = lock();
    let text = queue.in_place_of_progress(line.unwrap_or_default().into());
    queue.shows_progress = line.is_some();
    push(queue, Weight::Log, text);
}

fn push(mut queue: MutexGuard<'static, Queue>, weight: Weight, text: Vec<u8>) {
    if text.is_empty() || !queue.push(weight, text) {
        return;
    }
    if !queue.is_served {
        queue.write_what_needs_no_wait();
        if queue.texts.is_empty() {
            return;
        }
        // Without a thread there is nobody to wait for either: the text is lost.
        queue.is_served = spawn_with_signals_blocked(Builder::new().name("stderr".into()), serve).is_ok();
    }
    CHANGED.notify_all();
}

/// Waits until everything is written: as long as stderr is being read, and a second for a reader that stands
/// still. After that second, a slow reader gets only the sentences, for at most [`FLUSH_LIMIT`].
pub(crate) fn flush() {
    let start = Instant::now();
    let mut queue = lock();
    while queue.is_served && queue.is_busy() {
        let before = queue.written;
        let stands_still = |queue: &mut Queue| queue.is_busy() && queue.written == before;
        let wait = CHANGED.wait_timeout_while(queue, STANDSTILL, stands_still);
        queue = wait.unwrap_or_else(PoisonError::into_inner).0;
        let elapsed = start.elapsed();
        if (queue.is_busy() && queue.written == before) || elapsed >= FLUSH_LIMIT {
            return;
        }
        if elapsed >= STANDSTILL {
            queue.drop_log_lines();
        }
    }
}

/// Writes the queue. This thread lives as long as the process.
fn serve() {
    let mut queue = lock();
    loop {
        if let Some(text) = queue.take() {
            drop(queue);
            write_all(&text);
            queue = lock();
            queue.is_writing = false;
            CHANGED.notify_all();
        } else {
            queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes to the descriptor and not to [`std::io::Stderr`], whose lock another thread may hold during a write
/// that blocks. On an error the rest is dropped: nobody reads a closed stderr.
fn write_all(text: &[u8]) {
    let mut rest = text;
    while !rest.is_empty() {
        let piece = rest.get(..PIECE).unwrap_or(rest);
        // SAFETY: the pointer and the length describe `piece`.
        let count = unsafe { libc::write(libc::STDERR_FILENO, piece.as_ptr().cast(), piece.len()) };
        match usize::try_from(count) {
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                lock().written += 1;
                CHANGED.notify_all();
            }
            Err(_) => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => wait_writable(),
                _ => return,
            },
        }
    }
}

/// Writes as much of the text as stderr takes without a wait, whether it is non-blocking or not, and returns
/// the number of bytes. 0 also if this kernel cannot write so: pipes can since Linux 6.4.
fn write_now(text: &[u8]) -> usize {
    let piece = text.get(..PIECE).unwrap_or(text);
    let vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
    // SAFETY: the vector describes `piece`, which is only read; -1 stands for the current position.
    let count = unsafe { libc::pwritev2(libc::STDERR_FILENO, &raw const vector, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(count).unwrap_or(0)
}

/// Writes as much of the text as stderr takes without a wait, outside of the queue. It makes system calls
/// only, so that a signal handler may call it.
pub(crate) fn write_or_drop(text: &[u8]) {
    let mut entry = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one valid entry.
    if write_now(text) == 0 && unsafe { libc::poll(&raw mut entry, 1, 0) } == 1 {
        // SAFETY: the pointer and the length describe `text`.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}

/// Waits for a stderr that another process has made non-blocking.
fn wait_writable() {
    let mut entry = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one valid entry.
    unsafe { libc::poll(&raw mut entry, 1, -1) };
}

impl Queue {
    const fn new() -> Queue {
        Queue {
            texts: VecDeque::new(),
            log_lines: 0,
            dropped: 0,
            is_writing: false,
            written: 0,
            is_served: false,
            shows_progress: false,
        }
    }

    /// Returns the text so that it replaces the progress line, if one is shown.
    fn in_place_of_progress(&mut self, mut text: Vec<u8>) -> Vec<u8> {
        if std::mem::take(&mut self.shows_progress) {
            text.splice(..0, *b"\r\x1b[K");
        }
        text
    }

    /// Queues a text; `false` if it was dropped.
    fn push(&mut self, weight: Weight, text: Vec<u8>) -> bool {
        if weight == Weight::Log {
            if self.log_lines >= MAX_LOG_LINES {
                self.dropped += 1;
                return false;
            }
            self.log_lines += 1;
        }
        self.texts.push_back((weight, text));
        true
    }

    /// Writes texts in their order until stderr would make the caller wait. The rest stays in the queue.
    fn write_what_needs_no_wait(&mut self) {
        while let Some((weight, text)) = self.texts.front_mut() {
            match write_now(text) {
                0 => return,
                count if count < text.len() => drop(text.drain(..count)),
                _ => {
                    self.log_lines -= usize::from(*weight == Weight::Log);
                    self.texts.pop_front();
                }
            }
        }
    }

    /// Takes the next text; before it, the number of texts that were dropped.
    fn take(&mut self) -> Option<Vec<u8>> {
        let (weight, mut text) = self.texts.pop_front()?;
        if weight == Weight::Log {
            self.log_lines -= 1;
        }
        match std::mem::take(&mut self.dropped) {
            0 => {}
            count => {
                let line = format!("coracle: {count} log lines were dropped, because stderr was not read\n");
                text.splice(..0, line.into_bytes());
            }
        }
        self.is_writing = true;
        Some(text)
    }

    fn drop_log_lines(&mut self) {
        let before = self.texts.len();
        self.texts.retain(|(weight, _)| *weight == Weight::Sentence);
        self.dropped += before.saturating_sub(self.texts.len()) as u64;
        self.log_lines = 0;
    }

    fn is_busy(&self) -> bool {
        self.is_writing || !self.texts.is_empty()
    }
}

fn lock() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The maximum number of queued log lines: more than a screen, in at most 3 MiB.
const MAX_LOG_LINES: usize = 256;
/// A pipe takes a piece of this size (PIPE_BUF) whole or not at all, so that a write that succeeds shows that
/// the reader makes progress.
const PIECE: usize = 4096;
/// A reader that takes nothing for this long is considered gone.
const STANDSTILL: Duration = Duration::from_secs(1);
/// The longest time that the end of the command waits for a reader that takes a little now and then.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_dropped_and_counted_and_sentences_never() {
        let mut queue = Queue::new();
        for _ in 0..MAX_LOG_LINES {
            assert!(queue.push(Weight::Log, b"log\n".to_vec()));
        }
        assert!(!queue.push(Weight::Log, b"too many\n".to_vec()));
        assert!(queue.push(Weight::Sentence, b"why\n".to_vec()));
        let first = String::from_utf8(queue.take().unwrap()).unwrap();
        assert_eq!(first, "coracle: 1 log lines were dropped, because stderr was not read\nlog\n");
        assert!(queue.push(Weight::Log, b"log\n".to_vec()), "there is room again");
        queue.drop_log_lines();
        let last = String::from_utf8(queue.take().unwrap()).unwrap();
        assert_eq!(last, "coracle: 256 log lines were dropped, because stderr was not read\nwhy\n");
        assert_eq!(queue.take(), None);
    }
    #[test]
    fn text_takes_the_place_of_a_progress_line() {
        let mut queue = Queue::new();
        assert_eq!(queue.in_place_of_progress(b"a\n".to_vec()), b"a\n");
        queue.shows_progress = true;
        assert_eq!(queue.in_place_of_progress(b"why\n".to_vec()), b"\r\x1b[Kwhy\n");
        assert_eq!(queue.in_place_of_progress(b"b\n".to_vec()), b"b\n");
    }
}

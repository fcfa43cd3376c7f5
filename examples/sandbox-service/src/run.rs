//! A snippet's run: its input, its output and its limits.

use std::time::{Duration, Instant};

use coracle::agent::{ExecError, ExecStatus, Process, ProcessInput};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The result of a run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The status, if the snippet ended by itself.
    pub(crate) status: Option<ExecStatus>,
    /// Whether it wrote too much.
    pub(crate) cut_off: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// The time at which the first byte of either output came.
    pub(crate) first_byte: Option<Instant>,
}

impl Run {
    /// Runs a process to its end, for at most `limit` and up to `most` bytes of output. If neither the status
    /// nor `cut_off` is set, it ran for too long. It is killed with its handle.
    ///
    /// # Errors
    /// The agent or the machine has ended.
    pub(crate) async fn of(
        mut process: Process,
        input: &str,
        limit: Duration,
        most: usize,
    ) -> Result<Run, ExecError> {
        let mut run = Run::default();
        let feed = feed(process.stdin.take(), input.as_bytes());
        let end = async {
            tokio::select! {
                ended = run.collect(&mut process, most) => ended,
                never = feed => never,
            }
        };
        tokio::time::timeout(limit, end).await.unwrap_or(Ok(()))?;
        Ok(run)
    }

    async fn collect(&mut self, process: &mut Process, most: usize) -> Result<(), ExecError> {
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else { return Err(ExecError::NoCommand) };
        let (mut stdout, mut stderr) = (stdout.into_async(), stderr.into_async());
        let (mut from_stdout, mut from_stderr) = (vec![0; PIECE], vec![0; PIECE]);
        let (mut is_open, mut is_stderr_open) = (true, true);
        while is_open || is_stderr_open {
            // A stream that breaks has ended; the status tells why.
            let piece = tokio::select! {
                read = stdout.read(&mut from_stdout), if is_open => {
                    let count = read.unwrap_or(0);
                    is_open = count > 0;
                    (&mut self.stdout, self.stderr.len(), from_stdout.get(..count))
                }
                read = stderr.read(&mut from_stderr), if is_stderr_open => {
                    let count = read.unwrap_or(0);
                    is_stderr_open = count > 0;
                    (&mut self.stderr, self.stdout.len(), from_stderr.get(..count))
                }
            };
            let (kept, others, bytes) = piece;
            let bytes = bytes.unwrap_or_default();
            if !bytes.is_empty() {
                self.first_byte.get_or_insert_with(Instant::now);
            }
            let room = most.saturating_sub(others).saturating_sub(kept.len());
            kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            if bytes.len() > room {
                self.cut_off = true;
                return Ok(());
            }
        }
        self.status = Some(process.wait_async().await?);
        Ok(())
    }
}

/// Gives a process its input, and never returns: whether a snippet reads it is its own affair.
async fn feed(stdin: Option<ProcessInput>, input: &[u8]) -> Result<(), ExecError> {
    if let Some(stdin) = stdin {
        let mut stdin = stdin.into_async();
        let _ = stdin.write_all(input).await;
        let _ = stdin.shutdown().await;
    }
    std::future::pending().await
}

/// As much as one frame of the agent brings.
const PIECE: usize = 64 << 10;

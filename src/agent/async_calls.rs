//! The calls on an agent for tasks: they wait by being woken, and take no thread. Dropping a future ends what it asked
//! for, as dropping a [`Process`] does.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use coracle_agent::guest_protocol::{PutRequest, Request, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{Channel, ChannelState, Locked};
use super::client::{AgentClient, NetworkSettings};
use super::error::{AgentError, ExecError, FileError};
use super::exec::{Exec, ExecStatus, Output};
use super::process::Process;
use super::streams::{ProcessInput, ProcessOutput};
use super::{AgentInfo, NetworkInfo, files};

/// Needs the feature `tokio`, and a runtime with its timer.
impl Exec {
    /// As [`Exec::output`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn output_async(self) -> Result<Output, ExecError> {
        let limit = self.output_limit;
        self.collect_async(Some(limit)).await
    }

    /// As [`Exec::status`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn status_async(self) -> Result<ExecStatus, ExecError> {
        self.collect_async(None).await.map(|output| output.status)
    }

    /// As [`Exec::spawn`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn spawn_async(mut self) -> Result<Process, ExecError> {
        self.ready().await?;
        let input = std::mem::take(&mut self.input);
        let process = self.start(&input)?;
        match process.limit() {
            None => answer(process.channel(), Process::started).await?,
            Some(_) => process.within_limit(Process::started).await?,
        }
        process.feed(input)?;
        Ok(process)
    }

    async fn collect_async(mut self, output_limit: Option<usize>) -> Result<Output, ExecError> {
        self.ready().await?;
        let timeout = self.timeout;
        let mut collector = self.start_collecting(output_limit)?;
        let channel = collector.channel();
        let end = come(&channel, |locked| collector.step(locked));
        match timeout {
            None => end.await,
            Some(limit) => {
                let in_time = tokio::time::timeout(limit, end).await;
                in_time.unwrap_or(Err(ExecError::TimedOut { limit }))
            }
        }
    }

    /// Waits for the agent, so that opening a channel does not.
    async fn ready(&mut self) -> Result<(), AgentError> {
        self.ready_limit = Some(Duration::ZERO);
        self.agent.clone()?.ready().await
    }
}

/// Needs the feature `tokio`, and a runtime with its timer.
impl Process {
    /// As [`Process::wait`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_async(&mut self) -> Result<ExecStatus, ExecError> {
        self.stdin = None;
        let status = self.within_limit(Process::ended).await;
        if matches!(status, Err(ExecError::TimedOut { .. })) {
            self.kill();
        }
        status
    }

    async fn within_limit<T>(
        &self,
        step: impl FnMut(&mut Locked<'_>) -> Result<Option<T>, ExecError>,
    ) -> Result<T, ExecError> {
        let come = come(self.channel(), step);
        match self.limit() {
            None => come.await,
            Some((limit, deadline)) => {
                let in_time = tokio::time::timeout_at(deadline.into(), come).await;
                in_time.unwrap_or(Err(ExecError::TimedOut { limit }))
            }
        }
    }
}

/// As its [`std::io::Read`], for a task.
impl AsyncRead for ProcessOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = poll(self.channel(), task, |locked| self.read_now(locked, buffer.initialize_unfilled()));
        buffer.advance(ready!(read)?);
        Poll::Ready(Ok(()))
    }
}

/// As its [`std::io::Write`], for a task.
impl AsyncWrite for ProcessInput {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        poll(self.channel(), task, |locked| ProcessInput::write_now(locked, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the command's input.
    fn poll_shutdown(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel().lock().end_input();
        Poll::Ready(Ok(()))
    }
}

/// Needs the feature `tokio`, and a runtime with its timer.
impl AgentClient {
    /// As [`AgentClient::wait_ready`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_ready_async(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        let ready = poll_fn(|task| match self.link().poll_ready(task.waker()) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        });
        tokio::time::timeout(limit, ready).await.unwrap_or(Err(AgentError::NotReady { limit }))?;
        self.wait_ready(Duration::ZERO)
    }

    /// As [`AgentClient::read_file`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn read_file_async(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        let (path, limit) = (path.as_ref(), Self::FILE_LIMIT);
        let channel = self.open(Request::Get(path.to_owned())).await?;
        let mut content = Vec::new();
        answer(&channel, |locked| {
            locked.take_all(Stream::Stdout, &mut content);
            if content.len() > limit {
                return Err(FileError::TooLarge { path: path.to_owned(), limit });
            }
            let seen = locked.seen();
            Ok((files::check(seen)? && seen.is_at_end(Stream::Stdout)).then_some(()))
        })
        .await?;
        Ok(content)
    }

    /// As [`AgentClient::write_file`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn write_file_async(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> Result<(), FileError> {
        let request = PutRequest { path: path.as_ref().to_owned(), mode: None };
        let channel = self.open(Request::Put(request)).await?;
        let mut rest = content.as_ref();
        answer(&channel, |locked| {
            if !rest.is_empty() {
                rest = rest.get(locked.send(rest)..).unwrap_or_default();
            }
            files::check(locked.seen()).map(|_| rest.is_empty().then_some(()))
        })
        .await?;
        channel.lock().end_input();
        answer(&channel, |locked| files::check(locked.seen()).map(|is_done| is_done.then_some(()))).await
    }

    /// As [`AgentClient::set_clock`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn set_clock_async(&self, time: SystemTime) -> Result<(), AgentError> {
        let channel = self.open(Self::clock_request(time)).await?;
        answer(&channel, |locked| ChannelState::answer(locked.seen())).await.map(drop)
    }

    /// As [`AgentClient::network_up`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn network_up_async(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        let channel = self.open(settings.into_request()).await?;
        let answer = answer(&channel, |locked| ChannelState::answer(locked.seen())).await?;
        answer.into_network()
    }

    async fn open(&self, request: Request) -> Result<Channel, AgentError> {
        self.ready().await?;
        Channel::open_within(self.link(), request, Duration::ZERO)
    }

    async fn ready(&self) -> Result<(), AgentError> {
        self.wait_ready_async(self.link().limits.ready).await.map(drop)
    }
}

/// As [`come`], with the limit for an agent that says nothing.
async fn answer<T, E: From<AgentError>>(
    channel: &Channel,
    mut step: impl FnMut(&mut Locked<'_>) -> Result<Option<T>, E>,
) -> Result<T, E> {
    let limit = channel.lock().answer_limit();
    let mut arrivals = 0;
    loop {
        let next = poll_fn(|task| match poll(channel, task, &mut step) {
            // Something has come, though not all: the time begins anew. A task is also woken for what else it waits for.
            Poll::Pending => {
                let before = std::mem::replace(&mut arrivals, channel.lock().seen().arrivals);
                if before == arrivals { Poll::Pending } else { Poll::Ready(None) }
            }
            Poll::Ready(result) => Poll::Ready(Some(result)),
        });
        match tokio::time::timeout(limit, next).await {
            Ok(Some(result)) => return result,
            Ok(None) => {}
            Err(_) => return Err(AgentError::NoAnswer { limit }.into()),
        }
    }
}

/// What `step` gives, tried whenever something has come on the channel.
async fn come<T, E>(
    channel: &Channel,
    mut step: impl FnMut(&mut Locked<'_>) -> Result<Option<T>, E>,
) -> Result<T, E> {
    poll_fn(|task| poll(channel, task, &mut step)).await
}

fn poll<T, E>(
    channel: &Channel,
    task: &mut Context<'_>,
    step: impl FnOnce(&mut Locked<'_>) -> Result<Option<T>, E>,
) -> Poll<Result<T, E>> {
    let mut locked = channel.lock();
    let result = step(&mut locked).transpose();
    if result.is_none() {
        locked.wake_next(task.waker());
    }
    result.map_or(Poll::Pending, Poll::Ready)
}

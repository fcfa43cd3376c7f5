//! The calls on an agent for tasks: they wait by being woken, and take no thread. Dropping a future ends what it asked
//! for, as dropping a [`Process`] does.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use coracle_agent::guest_protocol::{PutRequest, Request, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{Channel, ChannelState, Locked};
use super::client::{AgentClient, NetworkSettings};
use super::collect::Collector;
use super::error::{AgentError, ExecError, FileError};
use super::exec::{Exec, ExecStatus, Output};
use super::patience::Patience;
use super::process::{Process, ProcessLimits};
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
            None => answer(process.channel(), |locked, _| Process::started(locked)).await?,
            Some(_) => process.within_limit(Process::started).await?,
        }
        process.feed(input)?;
        Ok(process)
    }

    async fn collect_async(mut self, output_limit: Option<usize>) -> Result<Output, ExecError> {
        self.ready().await?;
        let time = ProcessLimits::from_now(self.timeout);
        run(self.start_collecting(output_limit)?, time).await
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

    /// As [`Process::wait_with_output`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_with_output_async(mut self) -> Result<Output, ExecError> {
        self.stdin = None;
        run(self.collector(), self.limit()).await
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
                in_time.unwrap_or(Err(ExecError::timed_out(limit)))
            }
        }
    }
}

/// As [`Collector::run`].
async fn run(mut collector: Collector, time: Option<(Duration, Instant)>) -> Result<Output, ExecError> {
    let channel = collector.channel();
    let Some((limit, deadline)) = time else {
        return answer(&channel, |locked, patience| {
            let output = collector.step(locked)?;
            patience.has_no_end(locked.seen().is_running());
            Ok(output)
        })
        .await;
    };
    let end = come(&channel, |locked| collector.step(locked));
    match tokio::time::timeout_at(deadline.into(), end).await {
        Ok(output) => output,
        Err(_) => Err(collector.at_end(ExecError::timed_out(limit))),
    }
}

/// As its [`std::io::Read`], for a task.
impl AsyncRead for ProcessOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.stream();
        let (channel, deadline) = self.get_mut().parts();
        let space = buffer.initialize_unfilled();
        match poll(channel, task, |locked| ProcessOutput::read_now(stream, locked, space)) {
            Poll::Ready(read) => buffer.advance(read?),
            Poll::Pending => return deadline.poll(channel, task).map(Err),
        }
        Poll::Ready(Ok(()))
    }
}

/// As its [`std::io::Write`], for a task.
impl AsyncWrite for ProcessInput {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (channel, deadline) = self.get_mut().parts();
        match poll(channel, task, |locked| ProcessInput::write_now(locked, bytes)) {
            Poll::Pending => deadline.poll(channel, task).map(Err),
            written => written,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the command's input.
    fn poll_shutdown(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().parts().0.lock().end_input();
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
        let most = u64::try_from(limit).unwrap_or(u64::MAX);
        let channel = self.open(Request::Get(path.to_owned())).await?;
        let mut content = Vec::new();
        answer(&channel, |locked, patience| {
            locked.take_all(Stream::Stdout, &mut content);
            patience.has_moved(content.len());
            if content.len() > limit {
                return Err(FileError::TooLarge { path: path.to_owned(), limit: most });
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
        let content = content.as_ref();
        let mut sent = 0_usize;
        answer(&channel, |locked, patience| {
            let rest = content.get(sent..).unwrap_or_default();
            sent = sent.saturating_add(locked.send(rest));
            patience.has_moved(files::acknowledged(sent));
            if sent == content.len() {
                locked.end_input();
                patience.has_moved(sent);
            }
            files::check(locked.seen()).map(|is_done| is_done.then_some(()))
        })
        .await
    }

    /// As [`AgentClient::set_clock`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn set_clock_async(&self, time: SystemTime) -> Result<(), AgentError> {
        let channel = self.open(Self::clock_request(time)).await?;
        answer(&channel, |locked, _| ChannelState::answer(locked.seen())).await.map(drop)
    }

    /// As [`AgentClient::network_up`], for a task.
    ///
    /// # Errors
    /// As there.
    pub async fn network_up_async(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        let channel = self.open(settings.into_request(self.card)).await?;
        let answer = answer(&channel, |locked, _| ChannelState::answer(locked.seen())).await?;
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

/// As [`come`], with the limit of a call's patience, which each step may change.
async fn answer<T, E: From<AgentError>>(
    channel: &Channel,
    mut step: impl FnMut(&mut Locked<'_>, &mut Patience) -> Result<Option<T>, E>,
) -> Result<T, E> {
    let mut patience = channel.patience();
    let mut timer = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|task| {
        let result = poll(channel, task, |locked| step(locked, &mut patience));
        if result.is_ready() {
            return result;
        }
        match patience.wait() {
            Ok(end) if timer.deadline() != end.into() => timer.as_mut().reset(end.into()),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        // Its end is looked at once more, when there is no patience left.
        if timer.as_mut().poll(task).is_ready() {
            task.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
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

//! The calls on an agent for tasks. They are woken instead of blocking a thread. Dropping a future ends its
//! request, as dropping a [`Process`] does.

use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use super::channel::{Channel, ChannelState, Locked};
use super::client::{AgentClient, NetworkSettings};
use super::collect::Collector;
use super::error::{AgentError, ExecError, FileError, ReadyLimit};
use super::exec::{Exec, ExecStatus, Output};
use super::file_streams::{FileReader, FileWriter, opened};
use super::patience::Patience;
use super::process::{Process, ProcessLimits};
use super::tasks::{answer, come};
use super::{AgentInfo, NetworkInfo, files};
use coracle_agent::protocol::agent::{Power, PutRequest, Request, Stream};

/// Needs the feature `tokio`, and a runtime with its timer.
impl Exec {
    /// Runs the command to its end and collects its output. This is the asynchronous form of
    /// [`Exec::output`].
    ///
    /// # Errors
    /// The errors of [`Exec::output`].
    pub async fn output_async(self) -> Result<Output, ExecError> {
        let limit = self.output_limit;
        self.collect_async(Some(limit)).await
    }

    /// Runs the command to its end and drops its output. This is the asynchronous form of [`Exec::status`].
    ///
    /// # Errors
    /// The errors of [`Exec::status`].
    pub async fn status_async(self) -> Result<ExecStatus, ExecError> {
        self.collect_async(None).await.map(|output| output.status)
    }

    /// Starts the command. This is the asynchronous form of [`Exec::spawn`].
    ///
    /// # Errors
    /// The errors of [`Exec::spawn`].
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

    /// Waits for the agent, so that opening a channel does not block.
    async fn ready(&mut self) -> Result<(), AgentError> {
        self.ready_limit = Some(Duration::ZERO);
        self.agent.clone()?.ready().await
    }
}

/// Needs the feature `tokio`, and a runtime with its timer.
impl Process {
    /// Waits for the command's end. This is the asynchronous form of [`Process::wait`].
    ///
    /// # Errors
    /// The errors of [`Process::wait`].
    pub async fn wait_async(&mut self) -> Result<ExecStatus, ExecError> {
        self.stdin = None;
        let status = self.within_limit(Process::ended).await;
        if matches!(status, Err(ExecError::TimedOut { .. })) {
            self.kill();
        }
        status
    }

    /// Returns the command's status, if it ends within `limit`. This is the asynchronous form of
    /// [`Process::wait_timeout`].
    ///
    /// # Errors
    /// The errors of [`Process::wait_timeout`].
    pub async fn wait_timeout_async(&mut self, limit: Duration) -> Result<Option<ExecStatus>, ExecError> {
        let ended = tokio::time::timeout(limit, self.within_limit(Process::ended)).await;
        if matches!(ended, Ok(Err(ExecError::TimedOut { .. }))) {
            self.kill();
        }
        ended.ok().transpose()
    }

    /// Waits for the command's end and collects its output meanwhile, up to its
    /// [`output_limit`](super::Exec::output_limit). This is the asynchronous form of
    /// [`Process::wait_with_output`].
    ///
    /// # Errors
    /// The errors of [`Process::wait_with_output`].
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

/// Runs the command to its end, or to its time limit. This is the asynchronous form of [`Collector::run`].
async fn run(mut collector: Collector, time: Option<(Duration, Instant)>) -> Result<Output, ExecError> {
    let channel = collector.channel();
    let output = match time {
        None => {
            let step = |locked: &mut Locked<'_>, patience: &mut Patience| {
                let output = collector.step(locked)?;
                patience.set_endless(locked.seen().is_running());
                Ok(output)
            };
            answer(&channel, step).await
        }
        Some((limit, deadline)) => {
            let end = come(&channel, |locked| collector.step(locked));
            let in_time = tokio::time::timeout_at(deadline.into(), end).await;
            in_time.unwrap_or(Err(ExecError::timed_out(limit)))
        }
    };
    output.map_err(|error| collector.at_end(error))
}

/// Needs the feature `tokio`, and a runtime with its timer.
impl AgentClient {
    /// Waits until the agent is ready, and returns its properties. This is the asynchronous form of
    /// [`AgentClient::wait_ready`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::wait_ready`].
    pub async fn wait_ready_async(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        self.ready_within(limit, ReadyLimit::Call).await?;
        self.wait_ready(Duration::ZERO)
    }

    async fn ready_within(&self, limit: Duration, of: ReadyLimit) -> Result<(), AgentError> {
        let ready = poll_fn(|task| match self.link().poll_ready(task.waker()) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        });
        tokio::time::timeout(limit, ready).await.unwrap_or(Err(AgentError::NotReady { limit, of }))
    }

    /// Reads a file of at most [`AgentClient::FILE_LIMIT`] bytes. This is the asynchronous form of
    /// [`AgentClient::read_file`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::read_file`].
    pub async fn read_file_async(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
        self.read_file_limited_async(path, Self::FILE_LIMIT).await
    }

    pub(super) async fn read_async(
        &self,
        request: Request,
        path: &Path,
        limit: usize,
    ) -> Result<Vec<u8>, FileError> {
        let channel = self.open_async(request).await?;
        let mut content = Vec::new();
        answer(&channel, |locked, patience| {
            locked.take_all(Stream::Stdout, &mut content);
            patience.note_progress(content.len());
            if content.len() > limit {
                let limit = u64::try_from(limit).unwrap_or(u64::MAX);
                return Err(FileError::TooLarge { path: path.to_owned(), limit });
            }
            let seen = locked.seen();
            Ok((files::check(seen)? && seen.is_at_end(Stream::Stdout)).then_some(()))
        })
        .await?;
        Ok(content)
    }

    /// Writes a file with its former permissions, or 0644. This is the asynchronous form of
    /// [`AgentClient::write_file`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::write_file`].
    pub async fn write_file_async(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> Result<(), FileError> {
        let request = PutRequest { path: path.as_ref().to_owned(), mode: None };
        let channel = self.open_async(Request::Put(request)).await?;
        let content = content.as_ref();
        let mut sent = 0_usize;
        answer(&channel, |locked, patience| {
            let rest = content.get(sent..).unwrap_or_default();
            sent = sent.saturating_add(locked.send(rest));
            patience.note_progress(files::acknowledged(sent));
            if sent == content.len() {
                locked.end_input();
                patience.note_progress(sent);
            }
            files::check(locked.seen()).map(|is_done| is_done.then_some(()))
        })
        .await
    }

    /// Sets the guest's clock. This is the asynchronous form of [`AgentClient::set_clock`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::set_clock`].
    pub async fn set_clock_async(&self, time: SystemTime) -> Result<(), AgentError> {
        let channel = self.open_async(Self::clock_request(time)).await?;
        answer(&channel, |locked, _| ChannelState::answer(locked.seen())).await.map(drop)
    }

    /// Asks the guest to power off cleanly, and does not wait for it. This is the asynchronous form of
    /// [`AgentClient::power_off`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::power_off`].
    pub async fn power_off_async(&self) -> Result<(), AgentError> {
        self.open_async(Request::Shutdown(Power::Off)).await.map(drop)
    }

    /// Asks the guest to restart cleanly, and does not wait for it. This is the asynchronous form of
    /// [`AgentClient::restart`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::restart`].
    pub async fn restart_async(&self) -> Result<(), AgentError> {
        self.open_async(Request::Shutdown(Power::Restart)).await.map(drop)
    }

    /// Sets the guest's network up: loopback, one interface with its address and route, and name servers in
    /// `/etc/resolv.conf`. This is the asynchronous form of [`AgentClient::network_up`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::network_up`].
    pub async fn network_up_async(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        let limit = settings.lease_time();
        let channel = self.open_async(settings.into_request(self.card)).await?;
        let answer = answer(&channel, |locked, _| ChannelState::answer(locked.seen())).await;
        answer.map_err(|error| error.of_lease(limit))?.into_network()
    }

    /// Opens a regular file for reading. This is the asynchronous form of [`AgentClient::open_file`]; see
    /// also [`FileReader::into_async`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::open_file`].
    pub async fn open_file_async(&self, path: impl AsRef<Path>) -> Result<FileReader, FileError> {
        let channel = self.open_async(Request::Get(path.as_ref().to_owned())).await?;
        let info = answer(&channel, |locked, _| opened(locked)).await?;
        Ok(FileReader::new(channel, info))
    }

    /// Opens a new file for writing. This is the asynchronous form of [`AgentClient::create_file`]; see also
    /// [`FileWriter::into_async`].
    ///
    /// # Errors
    /// The errors of [`AgentClient::create_file`].
    pub async fn create_file_async(
        &self,
        path: impl AsRef<Path>,
        mode: Option<u32>,
    ) -> Result<FileWriter, FileError> {
        let request = PutRequest { path: path.as_ref().to_owned(), mode };
        Ok(FileWriter::new(self.open_async(Request::Put(request)).await?))
    }

    pub(super) async fn open_async(&self, request: Request) -> Result<Channel, AgentError> {
        self.ready().await?;
        Channel::open_within(self.link(), request, Duration::ZERO)
    }

    async fn ready(&self) -> Result<(), AgentError> {
        self.ready_within(self.link().limits.ready, ReadyLimit::Config).await
    }
}

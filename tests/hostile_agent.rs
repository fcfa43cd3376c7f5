//! Tests of agents that break the protocol, played by this test over a socket pair: each call of the library
//! ends in time, with bounded memory, whatever comes.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::agent::runtime;
use common::{LIMIT, scratch};
use coracle::agent::{
    AgentClient, AgentError, CopyLimits, Exec, ExecError, ExecInput, FileError, ReadyLimit,
};
use coracle::config::AgentConfig;
use coracle_agent::protocol::agent::{
    AgentInfo, AgentMessage, DirEntry, Ending, FileInfo, FileKind, Hello, HostMessage, Place, SessionError,
    Stream,
};

/// The time limit of the calls here: far shorter than any of them would take if each frame restarted it.
const PATIENCE: Duration = Duration::from_millis(400);
const DRIP: Duration = Duration::from_millis(20);
const FIRST: u32 = 1;

/// Plays an agent that greets, and then follows `script` on the first channel that is opened.
struct Hostile {
    client: AgentClient,
    thread: Option<JoinHandle<()>>,
}

impl Hostile {
    fn new(script: impl FnOnce(Line) + Send + 'static) -> Hostile {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let config = AgentConfig { answer_limit: PATIENCE, ..AgentConfig::default() };
        let client = AgentClient::over_within(ours, &config).unwrap();
        let thread = thread::spawn(move || {
            let mut line = Line(theirs);
            line.bytes(&Hello::new(7).to_bytes());
            let info = AgentInfo { kernel: "6.1".into(), place: Place::FirstProcess, kills_groups: false };
            line.0.read_exact(&mut [0; Hello::LEN]).unwrap();
            line.bytes(&AgentMessage::Ready(info).to_frame(0));
            // The request, whose content does not matter here.
            let mut length = [0; 4];
            if line.0.read_exact(&mut length).is_ok() {
                line.0.read_exact(&mut vec![0; u32::from_le_bytes(length) as usize]).unwrap();
                script(line);
            }
        });
        Hostile { client, thread: Some(thread) }
    }

    fn exec(&self) -> Exec {
        self.client.exec(["any"])
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let (other, _) = UnixStream::pair().unwrap();
        self.client = AgentClient::over(other).unwrap();
        let result = self.thread.take().unwrap().join();
        if !thread::panicking() {
            result.unwrap();
        }
    }
}

struct Line(UnixStream);

impl Line {
    /// Returns `false` when the host has gone.
    fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    fn say(&mut self, message: &AgentMessage) -> bool {
        self.bytes(&message.to_frame(FIRST))
    }

    /// Sends the same message repeatedly until the host has gone; a host that does not go is abandoned.
    fn drip(mut self, message: &AgentMessage) {
        let start = Instant::now();
        while start.elapsed() < LIMIT && self.say(message) {
            thread::sleep(DRIP);
        }
    }

    fn byte() -> AgentMessage {
        AgentMessage::Data(Stream::Stdout, vec![b'x'])
    }

    fn file() -> AgentMessage {
        AgentMessage::File(FileInfo { mode: 0o644, size: u64::MAX })
    }
}

/// Runs a call that has to end within its time limit, whatever arrives slowly.
fn ends_in_time<T>(call: impl FnOnce() -> Result<T, AgentError>) {
    let start = Instant::now();
    let Err(error) = call() else { panic!("it has an answer") };
    assert!(matches!(error, AgentError::NoAnswer { limit } if limit == PATIENCE), "{error:?}");
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

fn of_file<T>(result: Result<T, FileError>) -> Result<T, AgentError> {
    result.map_err(|error| match error {
        FileError::Agent(error) => error,
        other => panic!("{other:?}"),
    })
}

fn of_exec<T>(result: Result<T, ExecError>) -> Result<T, AgentError> {
    result.map_err(|error| match error {
        ExecError::Agent { error, .. } => error,
        other => panic!("{other:?}"),
    })
}

/// Plays an agent that answers each request after a while, with one more in each directory.
fn bottomless(mut line: UnixStream) {
    let mut frame = || {
        let mut length = [0; 4];
        line.read_exact(&mut length)?;
        let mut content = vec![0; u32::from_le_bytes(length) as usize];
        line.read_exact(&mut content)?;
        let Ok((channel, HostMessage::Open(_))) = HostMessage::parse(&content) else { return Ok(()) };
        thread::sleep(DRIP);
        let entry = DirEntry { kind: FileKind::Folder, mode: 0o755, ..entry("d") };
        for message in
            [AgentMessage::Data(Stream::Stdout, entry.to_frame()), AgentMessage::Done, AgentMessage::Closed]
        {
            line.write_all(&message.to_frame(channel))?;
        }
        std::io::Result::Ok(())
    };
    while frame().is_ok() {}
}

fn entry(name: &str) -> DirEntry {
    let (name, kind) = (name.into(), FileKind::File);
    DirEntry { name, kind, mode: 0o644, uid: 0, gid: 0, size: 0, modified: 0 }
}

#[test]
fn file_that_comes_byte_by_byte_ends_in_time() {
    let agent = || {
        Hostile::new(|mut line| {
            line.say(&Line::file());
            line.drip(&Line::byte());
        })
    };
    let hostile = agent();
    ends_in_time(|| of_file(hostile.client.read_file("/f")));
    drop(hostile);
    let hostile = agent();
    ends_in_time(|| of_file(runtime().block_on(hostile.client.read_file_async("/f"))));
    drop(hostile);
    let hostile = Hostile::new(|line| line.drip(&AgentMessage::Data(Stream::Stdout, entry("e").to_frame())));
    ends_in_time(|| of_file(hostile.client.list_dir("/d")));
}

#[test]
fn input_that_is_granted_byte_by_byte_ends_in_time() {
    let agent = || Hostile::new(|line| line.drip(&AgentMessage::Window(Stream::Stdin, 1)));
    let content = vec![0; 1 << 20];
    let hostile = agent();
    ends_in_time(|| of_file(hostile.client.write_file("/f", &content)));
    drop(hostile);
    let hostile = agent();
    ends_in_time(|| of_file(runtime().block_on(hostile.client.write_file_async("/f", &content))));
}

#[test]
fn command_that_never_starts_or_never_closes_ends_in_time() {
    let never_starts = || Hostile::new(|line| line.drip(&Line::byte()));
    let hostile = never_starts();
    ends_in_time(|| of_exec(hostile.exec().spawn().map(drop)));
    drop(hostile);
    let hostile = never_starts();
    ends_in_time(|| of_exec(hostile.exec().output()));
    drop(hostile);
    let hostile = never_starts();
    ends_in_time(|| of_exec(runtime().block_on(hostile.exec().output_async())));
    drop(hostile);
    let never_closes = || {
        Hostile::new(|mut line| {
            line.say(&AgentMessage::Started { pid: 2 });
            line.say(&AgentMessage::Exited(Ending::Code(0)));
            line.drip(&Line::byte());
        })
    };
    let hostile = never_closes();
    ends_in_time(|| of_exec(hostile.exec().status()));
    drop(hostile);
    let hostile = never_closes();
    ends_in_time(|| of_exec(runtime().block_on(hostile.exec().status_async())));
    drop(hostile);
    let hostile = never_closes();
    ends_in_time(|| of_exec(hostile.exec().spawn().unwrap().wait_with_output()));
}

#[test]
fn command_with_a_limit_ends_with_it_whoever_waits() {
    let agent = || {
        Hostile::new(|mut line| {
            line.say(&AgentMessage::Started { pid: 2 });
            line.drip(&Line::byte());
        })
    };
    let limited = |hostile: &Hostile| hostile.exec().timeout(PATIENCE);
    let start = Instant::now();
    let hostile = agent();
    assert!(matches!(limited(&hostile).output(), Err(ExecError::TimedOut { limit: PATIENCE, .. })));
    drop(hostile);
    let hostile = agent();
    let error = runtime().block_on(limited(&hostile).output_async());
    assert!(matches!(error, Err(ExecError::TimedOut { limit: PATIENCE, .. })));
    drop(hostile);
    // Reading a stream includes waiting for the command.
    let hostile = agent();
    let mut process = limited(&hostile).spawn().unwrap();
    let error = process.stdout.as_mut().unwrap().read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop((process, hostile));
    let hostile = agent();
    let error = runtime().block_on(async {
        let mut process = limited(&hostile).spawn_async().await.unwrap();
        let mut stdout = process.stdout.take().unwrap().into_async();
        tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut Vec::new()).await.unwrap_err()
    });
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(hostile);
    let hostile = Hostile::new(|mut line| {
        line.say(&AgentMessage::Started { pid: 2 });
        // The agent reads everything and grants nothing.
        let _ = std::io::copy(&mut line.0, &mut std::io::sink());
    });
    let mut process = limited(&hostile).stdin(ExecInput::Piped).spawn().unwrap();
    let error = process.stdin.as_mut().unwrap().write_all(&vec![0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(start.elapsed() >= 5 * PATIENCE && start.elapsed() < LIMIT);
}

#[test]
fn grant_of_nothing_breaks_the_session() {
    let hostile = Hostile::new(|line| line.drip(&AgentMessage::Window(Stream::Stdin, 0)));
    let error = of_file(hostile.client.write_file("/f", vec![0; 1 << 20])).unwrap_err();
    assert!(matches!(error, AgentError::Protocol(SessionError::EmptyGrant { .. })), "{error:?}");
}

#[test]
fn floods_end_at_the_caller_s_limit() {
    let flood = |first: AgentMessage| {
        Hostile::new(move |mut line| {
            line.say(&first);
            // As fast as the host grants; the agent reads the host's messages and ignores them.
            let mut reader = line.0.try_clone().unwrap();
            let grants = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
            let piece = AgentMessage::Data(Stream::Stdout, vec![b'x'; 4096]);
            while line.say(&piece) {
                thread::sleep(Duration::from_micros(100));
            }
            drop(grants.join());
        })
    };
    let hostile = flood(Line::file());
    let mut got = Vec::new();
    let error = hostile.client.read_file_to("/f", 100_000, &mut got).unwrap_err();
    assert!(matches!(error, FileError::TooLarge { limit: 100_000, .. }), "{error:?}");
    assert!(got.len() <= 100_000, "{} bytes were written", got.len());
    drop(hostile);
    let hostile = flood(AgentMessage::Started { pid: 2 });
    let process = hostile.exec().output_limit(50_000).spawn().unwrap();
    let error = process.wait_with_output().unwrap_err();
    assert!(matches!(error, ExecError::OutputLimit { limit: 50_000, .. }), "{error:?}");
}

#[test]
fn names_that_lead_out_of_a_folder_break_the_list() {
    for name in ["..", ".", "", "a/../../etc", "/etc/passwd", "a\0b"] {
        let hostile = Hostile::new(move |mut line| {
            line.say(&AgentMessage::Data(Stream::Stdout, entry(name).to_frame()));
            line.say(&AgentMessage::Done);
            line.say(&AgentMessage::Closed);
            let _ = line.0.read(&mut [0; 64]);
        });
        let error = of_file(hostile.client.list_dir("/d")).unwrap_err();
        assert!(matches!(error, AgentError::Protocol(SessionError::Message(_))), "{name:?}: {error:?}");
    }
}

#[test]
fn copy_of_directories_without_end_ends_in_time() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // Nothing that arrives extends the time limit.
    let config = AgentConfig { answer_limit: PATIENCE, min_rate: u32::MAX, ..AgentConfig::default() };
    let client = AgentClient::over_within(ours, &config).unwrap();
    let agent = thread::spawn(move || {
        let info = AgentInfo { kernel: "6.1".into(), place: Place::FirstProcess, kills_groups: false };
        theirs.write_all(&Hello::new(7).to_bytes()).unwrap();
        theirs.read_exact(&mut [0; Hello::LEN]).unwrap();
        theirs.write_all(&AgentMessage::Ready(info).to_frame(0)).unwrap();
        bottomless(theirs);
    });
    let to = scratch().join("bottomless");
    ends_in_time(|| of_file(client.copy_out("/d", &to, CopyLimits::default())));
    drop(client);
    agent.join().unwrap();
}

#[test]
fn limit_that_an_agent_was_not_ready_in_is_named() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let limit = Duration::from_millis(20);
    let client =
        AgentClient::over_within(ours, &AgentConfig { ready_limit: limit, ..AgentConfig::default() });
    let client = client.unwrap();
    let of_config = [
        of_exec(client.exec(["any"]).output()).unwrap_err(),
        of_exec(runtime().block_on(client.exec(["any"]).output_async())).unwrap_err(),
        of_file(client.read_file("/f")).unwrap_err(),
    ];
    for error in of_config {
        assert!(matches!(error, AgentError::NotReady { of: ReadyLimit::Config, .. }), "{error:?}");
        assert!(error.to_string().contains("`AgentConfig::ready_limit`"), "{error}");
    }
    let own = client.wait_ready(limit).unwrap_err();
    assert!(matches!(own, AgentError::NotReady { of: ReadyLimit::Call, .. }), "{own:?}");
}

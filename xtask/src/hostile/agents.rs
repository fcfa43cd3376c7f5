//! Attacks by something that pretends to be a guest's agent. Each runs in a process of its own, which is
//! victim and attacker: a call of the library on one end of a socket pair, and on the other end an agent that
//! breaks the protocol.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use coracle::agent::AgentClient;
use coracle::config::AgentConfig;
use coracle_agent::protocol::agent::{
    AgentInfo, AgentMessage, DirEntry, FileInfo, FileKind, Hello, HostMessage, INITIAL_WINDOW, Place, Stream,
};

use super::case::{Case, MemoryLimit};
use super::scene::Scene;
use super::watch::{End, Run};

/// The behaviour of a false agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Sends nothing once it is ready.
    Silence,
    /// Sends a file byte by byte.
    Drip,
    /// Sends an endless file, as fast as it can.
    Flood,
    /// Lists an endless directory.
    Names,
    /// Keeps granting windows of zero bytes.
    Grants,
    /// Sends endless zeroes instead of a greeting.
    Zeroes,
    /// Lists a file whose name leads out of its directory.
    Escape,
}

/// Returns the attacks by agents: the call of the library has to fail in time.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case("agent: says nothing", Attack::Silence),
        case("agent: a file, byte by byte", Attack::Drip),
        case("agent: a file without end", Attack::Flood),
        case("agent: a directory without end", Attack::Names),
        case("agent: grants of nothing", Attack::Grants),
        case("agent: zeroes in place of a greeting", Attack::Zeroes),
        case("agent: a name that leads elsewhere", Attack::Escape),
    ]
}

fn case(name: &'static str, attack: Attack) -> Case {
    let prepare = Box::new(move |_: &Scene| victim(attack));
    Case { name: name.to_owned(), prepare, codes: &[0], says: "", memory: MemoryLimit::BesideRam }
}

fn victim(attack: Attack) -> Result<Run> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    let value = attack.to_possible_value().context("an attack has no name")?;
    command.args(["hostile", "--agent", value.get_name()]);
    Ok(Run::new(command).end(End::Limit(PATIENCE)))
}

/// Calls an agent that attacks.
///
/// # Errors
/// The call does not fail, or the connection cannot be set up.
pub(crate) fn call(attack: Attack) -> Result<()> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    thread::spawn(move || {
        // It continues until the victim hangs up.
        let _ = play(attack, theirs);
    });
    let config = AgentConfig { answer_limit: PATIENCE, ready_limit: PATIENCE, ..AgentConfig::default() };
    let client = AgentClient::over_within(ours, &config).context("cannot start the client")?;
    let is_refused = match attack {
        Attack::Names | Attack::Escape => client.list_dir_limited("/", LARGEST_ANSWER).is_err(),
        _ => client.read_file_limited("/file", LARGEST_ANSWER).is_err(),
    };
    // Leave time for a measurement of the memory, too.
    thread::sleep(LAST_LOOK);
    ensure!(is_refused, "the call took what an agent may not give");
    Ok(())
}

fn play(attack: Attack, mut line: UnixStream) -> io::Result<()> {
    if attack == Attack::Zeroes {
        return again(&mut line, &[0; 4096], None);
    }
    line.write_all(&Hello::new(1).to_bytes())?;
    line.read_exact(&mut [0; Hello::LEN])?;
    let info = AgentInfo { kernel: "6.1".into(), place: Place::FirstProcess, kills_groups: false };
    line.write_all(&AgentMessage::Ready(info).to_frame(0))?;
    let (channel, _) = message(&mut line)?;
    let file = AgentMessage::File(FileInfo { mode: 0o644, size: u64::MAX }).to_frame(channel);
    let data = |bytes: &[u8]| AgentMessage::Data(Stream::Stdout, bytes.to_vec()).to_frame(channel);
    match attack {
        Attack::Silence | Attack::Zeroes => thread::sleep(FOR_EVER),
        Attack::Drip => {
            line.write_all(&file)?;
            again(&mut line, &data(b"x"), Some(Duration::from_millis(50)))?;
        }
        Attack::Flood => {
            line.write_all(&file)?;
            within_window(&mut line, channel, &[b'x'; 16 << 10])?;
        }
        Attack::Names => within_window(&mut line, channel, &entry("n".to_owned()).to_frame().repeat(400))?,
        Attack::Grants => again(&mut line, &AgentMessage::Window(Stream::Stdin, 0).to_frame(channel), None)?,
        Attack::Escape => {
            line.write_all(&data(&entry("../../etc/passwd".to_owned()).to_frame()))?;
            line.write_all(&AgentMessage::End(Stream::Stdout).to_frame(channel))?;
            line.write_all(&AgentMessage::Done.to_frame(channel))?;
        }
    }
    Ok(())
}

/// Sends the same bytes repeatedly until nobody takes them. What the victim sends is not read.
fn again(line: &mut UnixStream, bytes: &[u8], pause: Option<Duration>) -> io::Result<()> {
    loop {
        line.write_all(bytes)?;
        pause.iter().for_each(|pause| thread::sleep(*pause));
    }
}

/// Sends the same piece of a stream repeatedly, within the window that the victim has granted.
fn within_window(line: &mut UnixStream, channel: u32, piece: &[u8]) -> io::Result<()> {
    let frame = AgentMessage::Data(Stream::Stdout, piece.to_vec()).to_frame(channel);
    let mut credit = u64::from(INITIAL_WINDOW);
    loop {
        while credit < piece.len() as u64 {
            if let (_, HostMessage::Window(Stream::Stdout, more)) = message(line)? {
                credit += u64::from(more);
            }
        }
        credit -= piece.len() as u64;
        line.write_all(&frame)?;
    }
}

/// Reads the next message of the victim, and its channel.
fn message(line: &mut UnixStream) -> io::Result<(u32, HostMessage)> {
    let mut length = [0; 4];
    line.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_le_bytes(length) as usize];
    line.read_exact(&mut frame)?;
    HostMessage::parse(&frame).map_err(io::Error::other)
}

fn entry(name: String) -> DirEntry {
    DirEntry { name: name.into(), kind: FileKind::File, mode: 0o644, uid: 0, gid: 0, size: 0, modified: 0 }
}

/// How long the victim waits for an agent.
const PATIENCE: Duration = Duration::from_secs(1);
/// Far longer than any attack is observed.
const FOR_EVER: Duration = Duration::from_secs(3600);
const LAST_LOOK: Duration = Duration::from_millis(50);
const LARGEST_ANSWER: usize = 1 << 20;

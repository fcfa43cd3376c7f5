//! `coracle-agent branch-here`: waits at a branch point until the host has taken its snapshot of the machine.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The name of the agent's socket, which is in no file system: every root finds it.
pub(crate) const SOCKET: &str = "coracle-agent";

/// The agent's answer, the first byte of its message. Variables follow, each with a zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This machine goes on from the snapshot.
    Fork,
    /// This is the machine that the snapshot was taken of.
    First,
    /// No host waits for a branch point.
    NoHost,
    /// Only root may reach one.
    NotRoot,
    /// The host that waited has gone.
    HostGone,
}

impl Answer {
    fn parse(byte: u8) -> Option<Self> {
        let all = [Self::Fork, Self::First, Self::NoHost, Self::NotRoot, Self::HostGone];
        all.into_iter().find(|answer| *answer as u8 == byte)
    }
}

/// Waits at the branch point. Then runs the program after `--` with the machine's variables, or prints them
/// as commands of a shell.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let program = match arguments.next() {
        None => None,
        Some(word) if word == "--" => match arguments.next() {
            Some(program) => Some(program),
            None => return fail("there is no program after `--`; leave that out to go on here"),
        },
        Some(word) => {
            return fail(&format!("{word:?} is not known: use `branch-here`, or `branch-here -- PROGRAM`"));
        }
    };
    let (answer, env) = match ask() {
        Ok(message) => message,
        Err(error) => {
            return fail(&format!("no agent that serves this machine's host can be reached: {error}"));
        }
    };
    match answer {
        Some(Answer::Fork | Answer::First) => go_on(program, arguments, &env),
        Some(Answer::NoHost) => fail(
            "no host waits for a branch point, or one has been reached: start the machine with \
             `--snapshot-on-ready`, or call `Vm::wait_branch_point` in a program, at most 5 s later",
        ),
        Some(Answer::NotRoot) => fail(
            "the host waits for a branch point of root only: run this as root, or let it allow all users",
        ),
        Some(Answer::HostGone) => fail("the host that waited has gone without a snapshot"),
        None => fail("the agent has gone"),
    }
}

/// Names and values of variables.
type Variables = Vec<(OsString, OsString)>;

fn ask() -> io::Result<(Option<Answer>, Variables)> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(SOCKET)?)?;
    let mut message = Vec::new();
    stream.read_to_end(&mut message)?;
    let Some((first, rest)) = message.split_first() else { return Ok((None, Vec::new())) };
    let pairs = rest.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair.get(..at)?, pair.get(at..)?.get(1..)?);
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    });
    Ok((Answer::parse(*first), pairs.collect()))
}

fn go_on(
    program: Option<OsString>,
    arguments: impl Iterator<Item = OsString>,
    env: &[(OsString, OsString)],
) -> ExitCode {
    if let Some(program) = program {
        let pairs = env.iter().map(|(name, value)| (name, value));
        let error = Command::new(&program).args(arguments).envs(pairs).exec();
        return fail(&format!("cannot execute {program:?}: {error}"));
    }
    let mut text = Vec::new();
    for (name, value) in env {
        text.extend_from_slice(b"export ");
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"=");
        text.extend_from_slice(&quoted(value));
        text.push(b'\n');
    }
    match io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot print the variables: {error}")),
    }
}

/// Returns the value as a word of a shell.
fn quoted(value: &OsStr) -> Vec<u8> {
    let mut word = vec![b'\''];
    for byte in value.as_bytes() {
        match byte {
            b'\'' => word.extend_from_slice(b"'\\''"),
            byte => word.push(*byte),
        }
    }
    word.push(b'\'');
    word
}

fn fail(why: &str) -> ExitCode {
    eprintln!("coracle-agent branch-here: {why}");
    ExitCode::from(125)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_words_of_a_shell() {
        assert_eq!(quoted("a b".as_ref()), b"'a b'");
        assert_eq!(quoted("it's $HOME".as_ref()), b"'it'\\''s $HOME'");
    }

    #[test]
    fn answers_are_those_that_are_sent() {
        for answer in [Answer::Fork, Answer::First, Answer::NoHost, Answer::NotRoot, Answer::HostGone] {
            assert_eq!(Answer::parse(answer as u8), Some(answer));
        }
        assert_eq!(Answer::parse(5), None);
    }
}

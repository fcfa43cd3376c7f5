//! `cargo xtask record`: runs a short session of the command on a terminal and draws the result as
//! `docs/session.svg`, the picture of the README.

mod svg;
mod terminal;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle::host::KvmKind;

use crate::static_build;
use crate::workspace::Workspace;

pub(crate) use svg::escaped;

#[derive(Args)]
pub(crate) struct RecordArguments {
    /// Use this program instead of a new static build
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Runs the session and writes the picture. If KVM cannot run Linux, the whole session runs on one emulated
/// host.
///
/// # Errors
/// The program does not build or start, the default guest is missing, or the session does not end as planned.
pub(crate) fn run(workspace: &Workspace, arguments: &RecordArguments) -> Result<()> {
    let program = match &arguments.program {
        Some(program) => {
            program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?
        }
        None => static_build::coracle(workspace)?,
    };
    let folder = prepare(workspace)?;
    let shell = ["sh", "-c", &script(&SESSION)];
    let mut command = match KvmKind::probe() {
        KvmKind::Hardware { .. } => Command::new(shell[0]),
        _ => {
            let mut command = Command::new(&program);
            command.args(["host-emulate", "--", shell[0]]);
            command
        }
    };
    let bin = program.parent().context("the program has no folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(&shell[1..]).current_dir(&folder).env("PATH", format!("{}:{path}", bin.display()));
    command.env("CORACLE_DATA", &workspace.data);
    let shown = at_a_terminal(&mut command)?;
    print!("{shown}");
    ensure!(shown.contains(LAST_LINE), "the session has not reached its end, a diagnosed failure");
    let picture = workspace.root.join("docs/session.svg");
    fs::write(&picture, svg::draw(&terminal::lines(&shown, COLUMNS), COLUMNS))?;
    println!("wrote {}", picture.display());
    Ok(())
}

/// Creates the session's directory with a kernel in it, and returns its path.
fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target.join("record");
    fs::create_dir_all(&folder)?;
    let kernel = workspace.data.join("guest/vmlinux");
    ensure!(kernel.exists(), "{}: there is no such file; run `cargo xtask guest`", kernel.display());
    replace_link(&kernel, &folder.join("vmlinux"))?;
    Ok(folder)
}

fn replace_link(target: &Path, link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(std::os::unix::fs::symlink(target, link)?),
    }
}

/// Returns the commands as a shell script that prints a prompt and the command before its output.
fn script(commands: &[&str]) -> String {
    let step = |command: &&str| {
        let quoted = command.replace('\'', r"'\''");
        format!("printf '\\033[1;32m$\\033[0m \\033[1m%s\\033[0m\\n' '{quoted}'\n{command}\n")
    };
    commands.iter().map(step).collect()
}

/// Runs a command whose stdout and stderr are a terminal, and returns its output.
fn at_a_terminal(command: &mut Command) -> Result<String> {
    let (ours, theirs) = pseudo_terminal().context("cannot open a pseudo-terminal")?;
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let mut child = command.spawn().context("cannot start the session")?;
    // The command holds copies of the slave end, which would keep the terminal open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shown = Vec::new();
    let mut ours = File::from(ours);
    // Linux reports EIO when nobody has the slave end open any more.
    match ours.read_to_end(&mut shown) {
        Err(error) if error.raw_os_error() != Some(libc::EIO) => return Err(error.into()),
        _ => {}
    }
    child.wait()?;
    String::from_utf8(shown).context("the session has written bytes that are not UTF-8")
}

fn pseudo_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    let mut size = libc::winsize { ws_row: ROWS, ws_col: COLUMNS as u16, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both results have room, the size is valid, and null asks for neither a name nor a mode.
    if unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null_mut(), &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok((ours, unsafe { OwnedFd::from_raw_fd(theirs) }))
}

/// A command in a guest, a boot test, and a kernel without a root: its console goes to a file, but its
/// diagnosis is shown.
const SESSION: [&str; 3] = [
    "coracle run -- sh -c 'uname -sr; exit 7'; echo $?",
    "coracle test -- grep -q hypervisor /proc/cpuinfo",
    "coracle run vmlinux > console.log; echo $?",
];

/// The last line of the session: the exit code of a panic.
const LAST_LINE: &str = "\n110\r\n";

/// Wide enough for a line of the diagnosis, and narrow enough for a page.
const COLUMNS: usize = 120;
const ROWS: u16 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_shows_each_command_and_its_output_in_order() {
        let text = script(&["printf '%s\\n' one", "echo two >&2"]);
        let shown = at_a_terminal(Command::new("sh").args(["-c", &text])).unwrap();
        let lines: Vec<_> = terminal::lines(&shown, COLUMNS).iter().map(terminal::text).collect();
        assert_eq!(lines, ["$ printf '%s\\n' one", "one", "$ echo two >&2", "two"]);
    }
}

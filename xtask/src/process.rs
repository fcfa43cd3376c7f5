//! Running other programs: every task of this crate starts its commands here, so that a failure always
//! names the whole command line.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A `cargo` command, by the cargo that runs this task.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with this process's own stdin, stdout and stderr.
///
/// # Errors
/// The program cannot be started, or does not end with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command without stdin and returns its stdout; what it wrote is shown only when it fails.
///
/// # Errors
/// The program cannot be started, or does not end with 0: then the error holds both outputs.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{stdout}{stderr}", line(command), output.status);
    }
    Ok(stdout)
}

/// True when `program` is an executable file in one of the folders of `PATH`, or in the two `sbin` folders
/// that Debian leaves out of an ordinary user's `PATH`.
pub(crate) fn exists(program: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;

    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|folder| {
        folder
            .join(program)
            .metadata()
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// The command as a person would type it, for messages (arguments are not quoted).
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_of_a_failing_command_tells_line_status_and_output() {
        let error = capture(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status: 3", "out\n", "err\n"] {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
    }

    #[test]
    fn exists_finds_the_shell_and_no_nonsense() {
        assert!(exists("sh"));
        assert!(!exists("no-such-program-of-coracle"));
    }
}

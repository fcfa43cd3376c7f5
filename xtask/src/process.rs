//! Running other programs. Every task of this crate starts its commands here, so that an error always names
//! the whole command line.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns a `cargo` command, for the cargo that runs this task.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with this process's own stdin, stdout and stderr.
///
/// # Errors
/// The program cannot be started, or its exit code is not 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command without stdin and returns its stdout. Its output is shown only if it fails.
///
/// # Errors
/// The program cannot be started, or its exit code is not 0; the error then contains both outputs.
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

/// Returns whether `program` is an executable file in a directory of `PATH`, or in one of the two `sbin`
/// directories that Debian omits from an ordinary user's `PATH`.
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

/// Formats the command as a person would type it, for messages; arguments are not quoted.
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

//! `cargo xtask demo`: from a fresh clone to a booted guest.

use std::io::{IsTerminal, stdin};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{guest, setup, static_build};

/// Sets up what is missing, builds `coracle` and boots the default guest. Returns the exit code of that run.
///
/// # Errors
/// Something that is missing cannot be installed, or does not build.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    setup::make_ready()?;
    guest::make(workspace, false)?;
    println!("building coracle");
    let coracle = static_build::coracle(workspace)?;
    println!("$ coracle run");
    let mut command = Command::new(&coracle);
    command.arg("run");
    if !stdin().is_terminal() {
        // Input of a script must not be typed into the guest.
        command.stdin(Stdio::null());
    }
    let status = command.status().with_context(|| format!("cannot start {}", coracle.display()))?;
    // As in shells: a process that a signal ended has 128 plus the signal's number.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok()).context("coracle ended without a status")?;
    println!("demo: `coracle run` ended with {code}");
    print!("{}", next_steps(&coracle));
    Ok(ExitCode::from(code))
}

/// Returns the program's path and examples, ready to be copied.
fn next_steps(coracle: &Path) -> String {
    let program = coracle.display();
    format!(
        "\nThe program is {program}\n\nTry next:\n  \
         {program} run -- sh -c 'uname -r; exit 7'      a command in a guest, with its output and exit code\n  \
         {program} test --expect 'coracle guest'        a boot test\n  \
         {program} doctor                               what this host can run, and how fast\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_three_commands_are_named() {
        let steps = next_steps(Path::new("/build/coracle"));
        assert!(steps.starts_with("\nThe program is /build/coracle\n"), "{steps}");
        let commands: Vec<_> = steps.lines().filter(|line| line.starts_with("  /build/coracle ")).collect();
        assert_eq!(commands.len(), 3, "{steps}");
    }
}

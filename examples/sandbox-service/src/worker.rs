//! The interpreters of snippets, and the commands in a guest that run them.

use coracle::VmHandle;
use coracle::agent::{Exec, ExecInput, Rlimit};
use serde::{Deserialize, Serialize};

/// The interpreter of a snippet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// `sh`.
    Shell,
    /// `python3`, if the root file system has it.
    Python,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 2] = [Language::Shell, Language::Python];

    /// Returns the program.
    pub fn interpreter(self) -> &'static str {
        match self {
            Language::Shell => "sh",
            Language::Python => "python3",
        }
    }

    /// Returns the code with which an interpreter gets ready for a snippet, waits at a branch point, and then
    /// runs the one in the variable [`SNIPPET`].
    pub(crate) fn worker(self) -> &'static str {
        match self {
            Language::Shell => include_str!("worker.sh"),
            Language::Python => include_str!("worker.py"),
        }
    }

    /// Returns the command that runs `code`, with the limits of a snippet. They keep the guest able to report
    /// how the snippet ended.
    pub(crate) fn command(self, guest: &VmHandle, code: &str) -> Exec {
        let exec = guest.exec([self.interpreter(), "-c", code]).user(NOBODY).cwd("/tmp");
        let exec = exec.stdin(ExecInput::Piped).max_processes(MAX_PROCESSES).rlimit(Rlimit::Core, 0);
        exec.kill_tree(true)
    }
}

/// The command, for root, that copies the guest's agent to the path at which the workers call it: only root
/// can follow the link to the agent itself.
pub(crate) const OFFER_BRANCH_POINT: &str =
    "cp /run/coracle/coracle-agent /run/coracle/snippet-waits && chmod 755 /run/coracle/snippet-waits";

/// The variable of a fork with the code of its snippet.
pub(crate) const SNIPPET: &str = "SNIPPET";
/// A snippet does not need root's rights, although they would end at the machine's boundary.
const NOBODY: &str = "65534:65534";
/// The number of processes and threads of a snippet, which contains a fork bomb.
const MAX_PROCESSES: u32 = 64;

//! The agent's program: the file that the user names, or else the one in this library, or else that of the
//! default guest. The initramfs with the module loader contains it.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use coracle_arch::regular_file;

use super::{GuestData, GuestDataMissing, find};
use crate::compression::{Compression, DecompressError};

/// Why the program is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentProgramError {
    /// The program is neither in this library nor in a data directory.
    #[error(transparent)]
    Missing(#[from] GuestDataMissing),
    /// Its file cannot be read.
    #[error("cannot read the agent {path:?}: {source}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The program in this library is damaged.
    #[error(
        "the agent that Coracle was built with cannot be decompressed; build it with the file that `cargo xtask \
         agent` makes{}",
        .0.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
    )]
    Bundled(Option<DecompressError>),
}

/// Whether this library contains the program.
pub const IS_AGENT_BUNDLED: bool = BUNDLED.is_some();

/// Returns the program, as a file for the guest.
///
/// # Errors
/// There is no program, or it cannot be read.
pub(crate) fn agent_program(named: Option<&Path>) -> Result<Vec<u8>, AgentProgramError> {
    if let Some(packed) = BUNDLED.filter(|_| named.is_none()) {
        return unpacked(packed);
    }
    let path = match named {
        Some(path) => Cow::Borrowed(path),
        None => Cow::Owned(find(GuestData::Agent)?),
    };
    regular_file::read(&path, MAX_BYTES as u64)
        .map_err(|error| AgentProgramError::Read { path: path.into_owned(), source: error.into() })
}

fn unpacked(packed: &[u8]) -> Result<Vec<u8>, AgentProgramError> {
    let compression = Compression::of(packed).ok_or(AgentProgramError::Bundled(None))?;
    compression.decompress(packed, MAX_BYTES).map_err(|error| AgentProgramError::Bundled(Some(error)))
}

#[cfg(feature = "bundled-agent")]
const BUNDLED: Option<&[u8]> = Some(include_bytes!(env!(
    "CORACLE_BUNDLED_AGENT",
    "the feature `bundled-agent` takes the program from the file that CORACLE_BUNDLED_AGENT names: \
     `cargo xtask agent` makes it and prints its path"
)));
#[cfg(not(feature = "bundled-agent"))]
const BUNDLED: Option<&[u8]> = None;

/// The largest program, in bytes. It has about a MiB, unless it was built without optimization.
const MAX_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_program_comes_before_any_other() {
        let myself = std::env::current_exe().unwrap();
        assert!(agent_program(Some(&myself)).unwrap().starts_with(b"\x7fELF"));
        let error = agent_program(Some(Path::new("/nonexistent/agent"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the agent \"/nonexistent/agent\": No such file or directory (os error 2)"
        );
    }

    #[test]
    #[cfg(feature = "bundled-agent")]
    fn bundled_program_is_one() {
        let packed = BUNDLED.unwrap();
        let program = agent_program(None).unwrap();
        assert!(program.starts_with(b"\x7fELF") && program.len() > packed.len());
    }

    #[test]
    fn damaged_bundle_names_the_command_that_makes_it() {
        for packed in [&b""[..], b"no archive", b"\xfd7zXZ\0cut off"] {
            assert!(unpacked(packed).unwrap_err().to_string().contains("cargo xtask agent"));
        }
    }
}

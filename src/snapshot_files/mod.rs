//! The files of a snapshot: one folder with a manifest, the state of the machine, and its memory.
//!
//! ```text
//! manifest.json   format, origin, machine, sizes and hashes of the other two; its last line is its checksum
//! state           a list of sections, each with a name, a version, a length and a checksum
//! memory          the RAM as the guest sees it, with holes; then the id and a hash for each 2 MiB
//! disk-ID         the same of the blocks of a disk, if the guest has written to an overlay
//! ```
//!
//! `crate::vm` fills the sections from a machine and makes machines of them; nothing here knows one, or KVM.
//! docs/snapshots.md describes the format. Every byte of these files may be somebody else's, so each length
//! is checked before it counts, and each error names the folder, the file and the place in it.

mod disks;
mod error;
mod folder;
mod manifest;
mod parent;
mod ram;
mod read;
mod state;
mod write;

use std::ffi::CStr;
use std::fmt;

pub use disks::DiskFileError;
pub(crate) use disks::{DeviceFacts, StoredFacts};
pub(crate) use error::At;
pub use error::SnapshotFileError;
pub(crate) use manifest::Manifest;
pub use manifest::{HostFacts, MachineFacts, ManifestError, ParentFacts};
pub(crate) use parent::{MAX_CHAIN, check_not_needed};
pub use ram::MemoryFileError;
pub(crate) use read::{Snapshot, Summary, check_disk, check_memory};
pub use state::StateFileError;
pub(crate) use state::{Section, Sections, encode as encode_state};
pub(crate) use write::{Draft, DraftDevice};

/// The identity of a snapshot, which all of its files have: 128 random bits, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// Draws a new one.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub(crate) fn new() -> std::io::Result<SnapshotId> {
        let mut bytes = [0; 16];
        // SAFETY: the kernel writes at most this many bytes to the array. A request of up to 256 bytes is
        // never cut short (getrandom(2)).
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if count < 0 { Err(std::io::Error::last_os_error()) } else { Ok(SnapshotId(bytes)) }
    }

    /// Parses the form in which it is displayed.
    pub(crate) fn parse(text: &str) -> Option<SnapshotId> {
        digits(text).map(SnapshotId)
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> SnapshotId {
        SnapshotId(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl serde::Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A SHA-256 hash, shown in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(crate) fn of(bytes: &[u8]) -> Hash {
        use sha2::Digest;
        Hash(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Parses exactly `N` bytes in lower-case hexadecimal.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The names of the files, as errors show them.
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
pub(crate) const MEMORY: &str = "memory";

/// Returns the name of a file in the form of system calls.
fn file_name(file: &str) -> &'static CStr {
    match file {
        MANIFEST => c"manifest.json",
        STATE => c"state",
        _ => c"memory",
    }
}

/// The newest format that this version reads, and the one that it writes. Every change that an older version
/// cannot read takes the next number, and older formats stay readable.
pub(crate) const FORMAT: u32 = 1;

//! The directory of unnamed files.

use std::path::PathBuf;

use coracle_agent::protocol::emulated_host::environment::caller;

/// Returns `TMPDIR`, or else `/var/tmp`: not `/tmp`, which is in memory on many systems. On an emulated host
/// it is always `/tmp`: what is not in memory there, including the caller's `TMPDIR`, is shared with the
/// outer host, and a file on a share needs its name.
pub fn directory() -> PathBuf {
    if caller().is_some() {
        return PathBuf::from("/tmp");
    }
    let directory = std::env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
    directory.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Returns the end of an error about such a file: how to choose another directory, if that is possible.
pub fn advice() -> &'static str {
    if caller().is_some() { "" } else { "; TMPDIR names another directory" }
}

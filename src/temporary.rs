//! Where files without a name go.

use std::path::{Path, PathBuf};

use crate::host;

/// `TMPDIR`, else `/var/tmp`: not `/tmp`, which is in memory on many systems. On an emulated host it is `/tmp`: what is
/// not in memory there is shared with the outer host, and a file on a share needs its name.
pub(crate) fn directory() -> PathBuf {
    let directory = std::env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
    let default = if host::caller().is_some() { "/tmp" } else { "/var/tmp" };
    directory.map_or_else(|| Path::new(default).to_owned(), PathBuf::from)
}

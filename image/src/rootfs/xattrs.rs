//! Extended attributes (xattr(7)): those of a file of the host, and which of them a root can have.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Reads the attributes of a file, or those of a symbolic link itself, and counts those that cannot be kept.
pub(super) fn read(path: &Path, left_out: &mut u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut xattrs = BTreeMap::new();
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return xattrs };
    let names = match list(&path) {
        Ok(names) => names,
        Err(error) if is_none(&error) => return xattrs,
        Err(_) => {
            *left_out = left_out.saturating_add(1);
            return xattrs;
        }
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name == HOST_LABEL {
            continue;
        }
        let value = CString::new(name).map_err(io::Error::from).and_then(|name| value(&path, &name));
        match value {
            Ok(value) if is_kept(name) => drop(xattrs.insert(name.to_vec(), value)),
            Err(error) if is_none(&error) => {}
            Ok(_) | Err(_) => *left_out = left_out.saturating_add(1),
        }
    }
    xattrs
}

/// Returns whether a file of a root can have an attribute with this name: one of the kinds that file systems
/// share, except those that the overlay above the root would take for its own.
pub(super) fn is_kept(name: &[u8]) -> bool {
    split(name).is_some() && !name.starts_with(b"trusted.overlay.")
}

/// Returns the index of the prefix of an attribute's name in EROFS, and the rest of the name (Linux,
/// fs/erofs/erofs_fs.h).
pub(super) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let found = KINDS.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)));
    // The ACLs are complete names, and not prefixes.
    found.filter(|(index, rest)| rest.is_empty() == ACLS.contains(index) && rest.len() <= MAX_NAME)
}

fn list(path: &CString) -> io::Result<Vec<u8>> {
    fill(|buffer, size| {
        // SAFETY: the path is nul-terminated, and the buffer has `size` bytes, or is null with `size` 0.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.cast(), size) }
    })
}

fn value(path: &CString, name: &CString) -> io::Result<Vec<u8>> {
    fill(|buffer, size| {
        // SAFETY: both strings are nul-terminated, and the buffer has `size` bytes, or is null with `size` 0.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), size) }
    })
}

/// Calls once for the size and once for the data, and again if the size has grown in between.
fn fill(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let size = usize::try_from(call(std::ptr::null_mut(), 0)).map_err(|_| io::Error::last_os_error())?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; size];
        match usize::try_from(call(bytes.as_mut_ptr(), size)) {
            Ok(filled) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE) => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// Returns whether the attribute does not exist, or the file system has none.
fn is_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODATA))
}

/// The label that this host's policy gives its files, which is meaningless in a guest.
const HOST_LABEL: &[u8] = b"security.selinux";

const KINDS: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
const ACLS: [u8; 2] = [2, 3];

/// The maximum length of a name: XATTR_NAME_MAX of Linux.
const MAX_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_index_and_a_rest() {
        assert_eq!(split(b"user.a.b"), Some((1, &b"a.b"[..])));
        assert_eq!(split(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        for name in [&b"user."[..], b"system.posix_acl_access2", b"system.nfs4_acl", b"x", b""] {
            assert_eq!(split(name), None);
        }
        assert!(is_kept(b"trusted.x") && !is_kept(b"trusted.overlay.opaque"));
    }
}

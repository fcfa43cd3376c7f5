//! The user who reads a directory, and what that means for the owners of its files in the guest.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use coracle_agent::protocol::emulated_host::environment::caller;

/// The user for whom this program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    uid: u32,
    /// In a user namespace that does not map all ids, the id that stands for the others.
    overflow: Option<u32>,
}

/// The owner of a file in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    /// The owner is the same as here.
    Known(u32, u32),
    /// The owner is unknown, and this is the most plausible one.
    Guessed { uid: u32, gid: u32, why: &'static str },
}

impl Caller {
    /// Returns the user of this process, or the one for whom it was started on an emulated host.
    pub(super) fn here() -> Caller {
        let own = || fs::metadata("/proc/self").map_or(0, |process| process.uid());
        let uid = caller().unwrap_or_else(own);
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = overflow.and_then(|id| id.trim().parse().ok()).filter(|_| !is_whole(&map));
        Caller { uid, overflow }
    }

    /// Returns the owner of a file in the guest. Files of an unprivileged caller belong to root there,
    /// because a root that was assembled without privilege belongs to the user who made it.
    pub(super) fn ids(&self, uid: u32, gid: u32) -> Ids {
        if self.overflow.is_some_and(|overflow| uid == overflow || gid == overflow) {
            let root = |id| if Some(id) == self.overflow { 0 } else { id };
            let why = "its owner has no id in this user namespace";
            return Ids::Guessed { uid: root(uid), gid: root(gid), why };
        }
        if self.uid == 0 || uid != self.uid {
            return Ids::Known(uid, gid);
        }
        Ids::Guessed { uid: 0, gid: 0, why: "it belongs to you, who are not root here" }
    }

    /// Returns whether the caller can read a regular file. Root can read every file, so nothing is tried. If
    /// a link or a FIFO has taken the file's place, it is neither followed nor waited for.
    pub(super) fn may_read(&self, path: &Path) -> bool {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        self.uid == 0 || OpenOptions::new().read(true).custom_flags(flags).open(path).is_ok()
    }
}

/// Returns whether a map of user ids (user_namespaces(7)) maps all ids to themselves.
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"]) || map.is_empty()
}

#[cfg(test)]
impl Caller {
    pub(super) fn of(uid: u32) -> Caller {
        Caller { uid, overflow: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_ids_and_others_become_root_with_what_is_theirs() {
        let root = Caller { uid: 0, overflow: None };
        assert_eq!(root.ids(1000, 100), Ids::Known(1000, 100));
        let user = Caller { uid: 1000, overflow: None };
        assert!(matches!(user.ids(1000, 100), Ids::Guessed { uid: 0, gid: 0, .. }));
        assert_eq!(user.ids(0, 0), Ids::Known(0, 0));
        assert_eq!(user.ids(33, 33), Ids::Known(33, 33));
    }

    #[test]
    fn ids_that_a_namespace_has_not_are_guessed() {
        let caller = Caller { uid: 0, overflow: Some(65534) };
        assert!(matches!(caller.ids(65534, 5), Ids::Guessed { uid: 0, gid: 5, .. }));
        assert_eq!(caller.ids(7, 5), Ids::Known(7, 5));
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n"));
    }
}

//! Recognizes a directory or tar that contains a root in another format, such as a container image, by the
//! names in it.

use super::tree::{InodeId, Kind, Tree};

/// The format of a tree that is not a root, and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) found: String,
    pub(super) fix: String,
}

/// Examines the names at the top of a tree; `None` if it may be a root.
pub(super) fn identify(tree: &Tree) -> Option<Foreign> {
    let top = names(tree, Tree::ROOT)?;
    let has = |name: &str| top.iter().any(|(top, _)| *top == name.as_bytes());
    if SYSTEM.iter().any(|name| has(name)) {
        return None;
    }
    // Docker writes both formats at once since version 25.
    if has("manifest.json") && ["repositories", "oci-layout"].iter().any(|name| has(name)) {
        return Some(Foreign {
            found: "an image of containers as `docker save` writes it".into(),
            fix: "give what `docker export $(docker create IMAGE)` writes".into(),
        });
    }
    if has("oci-layout") && has("index.json") {
        return Some(Foreign {
            found: "an image of containers in the OCI layout".into(),
            fix: "unpack it (`umoci unpack --image DIR:TAG BUNDLE`) and give BUNDLE/rootfs".into(),
        });
    }
    let [(name, id)] = top.as_slice() else { return None };
    let below = names(tree, *id)?;
    let is_system = below.iter().filter(|(name, _)| SYSTEM.iter().any(|known| *name == known.as_bytes()));
    if is_system.count() < MIN {
        return None;
    }
    let name = String::from_utf8_lossy(name).escape_debug().to_string();
    Some(Foreign {
        found: format!("a single directory, {name}, with the root in it"),
        fix: format!("give that directory, or a tar of its content (`tar -C {name} -c .`)"),
    })
}

fn names(tree: &Tree, id: InodeId) -> Option<Vec<(&[u8], InodeId)>> {
    match &tree.inode(id).kind {
        // A directory with more names could be a root or anything else.
        Kind::Directory(names) => {
            Some(names.iter().take(MAX_NAMES).map(|(name, id)| (name.as_slice(), *id)).collect())
        }
        _ => None,
    }
}

/// Names at the top of a root; every system has several of them.
const SYSTEM: [&str; 9] = ["bin", "sbin", "etc", "usr", "lib", "lib64", "init", "linuxrc", "nix"];
/// How many of them make a directory a root.
const MIN: usize = 2;
/// The maximum number of names that are examined.
const MAX_NAMES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rootfs::samples::{attributes, content, plain};

    fn found(paths: &[&str]) -> Option<String> {
        let mut tree = Tree::new(attributes(0o755, 0, 0));
        for path in paths {
            let kind = match path.strip_suffix('/') {
                Some(_) => Kind::Directory(BTreeMap::new()),
                None => Kind::File(content(b"x")),
            };
            tree.put(path.as_bytes(), plain(kind)).unwrap();
        }
        identify(&tree).map(|Foreign { found, fix }| format!("{found}: {fix}"))
    }

    #[test]
    fn images_of_containers_are_named() {
        let saved = found(&["manifest.json", "repositories", "0a1b/layer.tar", "0c2d.json"]).unwrap();
        assert!(saved.contains("`docker save`") && saved.contains("docker export"), "{saved}");
        let oci = ["oci-layout", "index.json", "blobs/sha256/0a"];
        assert!(found(&oci).unwrap().contains("OCI layout"));
        assert!(found(&[&oci[..], &["manifest.json"]].concat()).unwrap().contains("`docker save`"));
    }

    #[test]
    fn root_in_a_single_directory_is_named() {
        let said = found(&["rootfs/bin/sh", "rootfs/etc/passwd"]).unwrap();
        assert!(
            said.contains("a single directory, rootfs,") && said.contains("`tar -C rootfs -c .`"),
            "{said}"
        );
    }

    #[test]
    fn what_may_be_a_root_is_let_be() {
        for root in [
            &["bin/sh", "etc/", "manifest.json", "oci-layout", "index.json"][..],
            &["usr/bin/sh", "usr/lib/x"],
            &["init"],
            &["app/bin/program"],
            &["program", "manifest.json"],
            &["nix/store/x"],
            &["a/bin/", "b/etc/"],
        ] {
            assert_eq!(found(root), None, "{root:?}");
        }
    }
}

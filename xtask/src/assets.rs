//! Directories in the data directory that hold what a task has produced. They are named after role, kernel
//! release and content, as in `guest-6.1.0-56-cloud-amd64-0123456789ab`, and a link such as `guest` points to
//! the one in use.
//!
//! A directory appears complete or not at all, and never changes afterwards. Whoever creates one holds the
//! lock.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A directory of this kind, which need not exist yet.
#[derive(Debug)]
pub(crate) struct AssetFolder<'a> {
    data: &'a Path,
    role: &'a str,
    name: String,
}

impl<'a> AssetFolder<'a> {
    /// Names the directory for `release` of `role` whose content has this key.
    pub(crate) fn new(data: &'a Path, role: &'a str, release: &str, key: &str) -> Self {
        Self { data, role, name: format!("{role}-{release}-{key}") }
    }

    /// Finds an existing directory of `role` with this key, whatever its release.
    ///
    /// # Errors
    /// The data directory cannot be listed.
    pub(crate) fn with_key(data: &'a Path, role: &'a str, key: &str) -> Result<Option<Self>> {
        let names = names(data)?.into_iter();
        let name = names.filter(|name| is_folder_name(role, name)).find(|name| name.ends_with(key));
        Ok(name.map(|name| Self { data, role, name }))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.data.join(&self.name)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().is_dir()
    }

    /// Creates the directory: `write` fills a scratch directory, which is then renamed.
    ///
    /// # Errors
    /// `write` fails, or a directory cannot be created, removed or renamed.
    pub(crate) fn make(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let scratch = scratch(self.data, self.role)?;
        write(&scratch)?;
        let path = self.path();
        fs::rename(&scratch, &path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// Points the role's link to this directory, and removes the directories that it replaces.
    ///
    /// # Errors
    /// The link cannot be created, or a directory cannot be removed.
    pub(crate) fn put_in_use(&self) -> Result<()> {
        let Self { data, role, name } = self;
        let link = data.join(role);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
            return Ok(());
        }
        let new_link = data.join(format!(".{role}.link"));
        let _ = fs::remove_file(&new_link);
        symlink(name, &new_link).with_context(|| format!("cannot make {}", new_link.display()))?;
        fs::rename(&new_link, &link).with_context(|| format!("cannot replace {}", link.display()))?;
        for old in names(data)?.into_iter().filter(|old| old != name && is_folder_name(role, old)) {
            let path = data.join(old);
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// Locks the data directory until the returned file is closed. Creates the directory if it is missing.
///
/// # Errors
/// The directory cannot be created or written to.
pub(crate) fn lock(data: &Path) -> Result<File> {
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let lock =
        File::create(data.join("lock")).with_context(|| format!("cannot write to {}", data.display()))?;
    lock.lock().context("cannot lock the data directory")?;
    Ok(lock)
}

/// Reads a whole file.
///
/// # Errors
/// The file cannot be read; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a whole file.
///
/// # Errors
/// The file cannot be written; the error names it.
pub(crate) fn write(path: &Path, data: &[u8]) -> Result<()> {
    fs::write(path, data).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the SHA-256 of the bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns a directory's key: the start of the SHA-256 of `parts`, each preceded by its length.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut content = Sha256::new();
    for part in parts {
        content.update((part.len() as u64).to_le_bytes());
        content.update(part);
    }
    hex(&content.finalize())[..KEY_DIGITS].to_owned()
}

/// Creates an empty directory for a role to fill.
fn scratch(data: &Path, role: &str) -> Result<PathBuf> {
    let scratch = data.join(format!(".{role}.new"));
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    fs::create_dir(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(scratch)
}

fn names(data: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(data).with_context(|| format!("cannot list {}", data.display()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Returns whether the name has the form `ROLE-RELEASE-KEY`.
fn is_folder_name(role: &str, name: &str) -> bool {
    let rest = name.strip_prefix(role).and_then(|rest| rest.strip_prefix('-'));
    rest.and_then(|rest| rest.rsplit_once('-')).is_some_and(|(release, key)| {
        let is_key =
            key.len() == KEY_DIGITS && key.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        is_key && release.starts_with(|first: char| first.is_ascii_digit())
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 48 bits: enough to tell apart the few versions on one machine.
const KEY_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory for each test, removed at its end.
    struct Data(PathBuf);

    impl Data {
        fn new(test: &str, folders: &[&str]) -> Self {
            let path = std::env::temp_dir().join(format!("coracle-assets-{test}-{}", std::process::id()));
            for folder in folders {
                fs::create_dir_all(path.join(folder)).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Data {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_folders_of_our_naming_are_ours() {
        assert!(is_folder_name("guest", "guest-6.1.0-56-cloud-amd64-0123456789ab"));
        for other in [
            "guest",
            "guest-0123456789ab",
            "guest-mine-0123456789ab",
            "guest-6.1-0123456789AB",
            "guest-6.1-0123",
            "host-6.1-0123456789ab",
        ] {
            assert!(!is_folder_name("guest", other), "{other}");
        }
    }

    #[test]
    fn new_folder_replaces_those_of_our_naming_only() {
        let [of_host, foreign] = ["host-6.1-0123456789ab", "guest-mine"];
        let data = Data::new("replace", &[of_host, foreign]);
        let [old, new] = [("6.1", "0123456789ab"), ("6.2", "ba9876543210")]
            .map(|(release, key)| AssetFolder::new(&data.0, "guest", release, key));
        for folder in [&old, &new] {
            folder.make(|scratch| write(&scratch.join("file"), b"content")).unwrap();
            folder.put_in_use().unwrap();
        }
        assert_eq!((old.exists(), new.exists()), (false, true));
        assert!([of_host, foreign].iter().all(|folder| data.0.join(folder).is_dir()));
        assert_eq!(fs::read_link(data.0.join("guest")).unwrap(), Path::new("guest-6.2-ba9876543210"));
    }

    #[test]
    fn folder_whose_making_fails_is_not_there_and_can_be_made_again() {
        let data = Data::new("fail", &[""]);
        let folder = AssetFolder::new(&data.0, "guest", "6.1", "0123456789ab");
        let half = folder.make(|scratch| {
            write(&scratch.join("half"), b"")?;
            anyhow::bail!("no more")
        });
        assert!(half.is_err() && !folder.exists());
        folder.make(|scratch| write(&scratch.join("whole"), b"")).unwrap();
        assert!(folder.path().join("whole").is_file() && !folder.path().join("half").exists());
    }

    #[test]
    fn folder_is_found_by_its_key_whatever_its_release() {
        let data = Data::new("key", &["tuned-6.1.9-0123456789ab", "guest-6.1-ba9876543210"]);
        let found = |key| AssetFolder::with_key(&data.0, "tuned", key).unwrap().map(|folder| folder.name);
        assert_eq!(found("0123456789ab").as_deref(), Some("tuned-6.1.9-0123456789ab"));
        assert_eq!(found("ba9876543210"), None);
    }

    #[test]
    fn key_tells_where_one_part_ends() {
        assert_eq!(key(&[b"ab", b"c"]).len(), KEY_DIGITS);
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
    }
}

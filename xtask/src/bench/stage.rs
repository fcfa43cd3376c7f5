//! Copies, in memory, of everything that a measurement starts or reads. Inside an emulated host all other
//! files come over a network file system that does not cache, so that the file system would dominate the
//! start of a program with many libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

/// A directory of such copies, removed on drop.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
}

impl Stage {
    /// Creates the directory and copies `coracle`.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub(super) fn new(coracle: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("coracle-bench-{}", std::process::id()));
        fs::create_dir_all(folder.join("lib"))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let stage = Self { folder };
        stage.take(coracle, "coracle")?;
        Ok(stage)
    }

    /// Copies a program of the PATH with its libraries.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub(super) fn take_program(&self, name: &str) -> Result<()> {
        let program = capture(Command::new("sh").args(["-c", &format!("command -v {name}")]))?;
        let program = Path::new(program.trim());
        self.take(program, name)?;
        // `ldd` fails for a static program.
        let ldd = capture(Command::new("ldd").arg(program)).unwrap_or_default();
        for library in libraries(&ldd) {
            let library = Path::new(library);
            let name = library.file_name().and_then(|name| name.to_str()).context("a library has no name")?;
            self.take(library, &format!("lib/{name}"))?;
        }
        Ok(())
    }

    /// Copies a file and returns the path of the copy.
    ///
    /// # Errors
    /// The file cannot be copied.
    pub(super) fn take(&self, file: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.path(name);
        fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        Ok(copy)
    }

    /// Returns the path of a file in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn coracle(&self) -> PathBuf {
        self.path("coracle")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Returns the paths that `ldd` has found for a program's libraries.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    let found = ldd.lines().filter_map(|line| line.split_once(" => "));
    found.filter_map(|(_, rest)| rest.split(' ').next()).filter(|path| path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
                   \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(ldd).collect::<Vec<_>>(), ["/lib/x86_64-linux-gnu/libz.so.1"]);
    }
}

//! A program of the host, with the shared libraries that it needs, found as its own loader finds them.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_arch::regular_file;

/// A program that a guest can run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// Its loader and the libraries that the loader finds; empty for a static program.
    pub(super) libraries: Vec<PathBuf>,
}

/// Why a program cannot run in a guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// The file cannot be read.
    #[error("the program {} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is not an ELF program.
    #[error("the program {} is not an ELF file: cargo puts it after `coracle cargo-runner`", path.display())]
    NotElf { path: PathBuf },
    /// The program is for another architecture.
    #[error(
        "the program {} is of another architecture (ELF class {class}, machine {machine}): guests are x86-64",
        path.display()
    )]
    Architecture { path: PathBuf, class: u8, machine: u16 },
    /// The file is cut short.
    #[error("the program {} is cut short: its program headers are outside of it", path.display())]
    Short { path: PathBuf },
    /// The program's loader cannot be run.
    #[error("the loader {} of the program {} cannot be started", loader.display(), path.display())]
    Loader { path: PathBuf, loader: PathBuf, source: io::Error },
    /// The loader does not find all libraries.
    #[error(
        "the program {} needs {missing}, which is not found: install it, or name its directory in LD_LIBRARY_PATH",
        path.display()
    )]
    Library { path: PathBuf, missing: String },
}

impl Program {
    /// Checks a program and finds its libraries.
    ///
    /// # Errors
    /// The file is not a program for a guest, or a library is missing.
    pub(super) fn find(path: &Path) -> Result<Program, ProgramError> {
        let libraries = match loader(path)? {
            None => Vec::new(),
            Some(loader) => libraries(path, &loader)?,
        };
        Ok(Program { path: path.to_owned(), libraries })
    }
}

/// Returns the loader that a program names in its PT_INTERP segment (System V ABI, "Program Header"); `None`
/// for a static program.
fn loader(path: &Path) -> Result<Option<PathBuf>, ProgramError> {
    let unread = |source| ProgramError::Read { path: path.to_owned(), source };
    let short = || ProgramError::Short { path: path.to_owned() };
    let (file, _) = regular_file::open(path).map_err(|error| unread(error.into()))?;
    let mut header = [0; HEADER];
    let not_elf = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ProgramError::NotElf { path: path.to_owned() },
        _ => unread(error),
    };
    file.read_exact_at(&mut header, 0).map_err(not_elf)?;
    if !header.starts_with(b"\x7fELF") {
        return Err(ProgramError::NotElf { path: path.to_owned() });
    }
    let (class, machine) = (header[4], number(&header[18..20]) as u16);
    if (class, machine) != (CLASS_64, MACHINE_X86_64) {
        return Err(ProgramError::Architecture { path: path.to_owned(), class, machine });
    }
    let (table, entry_size, count) =
        (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    for index in 0..count {
        let mut entry = [0; ENTRY];
        let place = index.checked_mul(entry_size).and_then(|offset| table.checked_add(offset));
        file.read_exact_at(&mut entry, place.ok_or_else(short)?).map_err(|_| short())?;
        if number(&entry[..4]) == PT_INTERP {
            let len = usize::try_from(number(&entry[32..40])).unwrap_or(PATH_MAX).min(PATH_MAX);
            let mut name = vec![0; len];
            file.read_exact_at(&mut name, number(&entry[8..16])).map_err(|_| short())?;
            name.retain(|byte| *byte != 0);
            return Ok(Some(std::ffi::OsString::from_vec(name).into()));
        }
    }
    Ok(None)
}

/// Asks the loader for the libraries that it would load. glibc's and musl's loaders both take `--list`; `ldd`
/// does the same.
fn libraries(path: &Path, loader: &Path) -> Result<Vec<PathBuf>, ProgramError> {
    let listed =
        Command::new(loader).arg("--list").arg(path).env_remove("LD_PRELOAD").stdin(Stdio::null()).output();
    let listed = listed.map_err(|source| ProgramError::Loader {
        path: path.to_owned(),
        loader: loader.to_owned(),
        source,
    })?;
    let library =
        |missing: &str| ProgramError::Library { path: path.to_owned(), missing: missing.to_owned() };
    let mut libraries = vec![loader.to_owned()];
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        match library_of(line) {
            Listed::At(found) if !libraries.contains(&found) => libraries.push(found),
            Listed::Missing(name) => return Err(library(&name)),
            Listed::At(_) | Listed::Nothing => {}
        }
    }
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr);
        return Err(library(&format!("something that its loader does not find ({})", said.trim())));
    }
    Ok(libraries)
}

/// The meaning of a line in the loader's list.
#[derive(Debug, PartialEq, Eq)]
enum Listed {
    At(PathBuf),
    Missing(String),
    /// The kernel's vDSO, or a line without a library.
    Nothing,
}

/// Parses `NAME => PATH (ADDRESS)`, `NAME => not found` or `PATH (ADDRESS)`.
fn library_of(line: &str) -> Listed {
    let line = line.trim();
    let (name, place) = line.split_once(" => ").unwrap_or((line, line));
    if place == "not found" {
        return Listed::Missing(name.to_owned());
    }
    let path = place.rsplit_once(" (0x").map_or(place, |(path, _)| path);
    if path.starts_with('/') { Listed::At(path.into()) } else { Listed::Nothing }
}

/// Reads a little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The lengths, in bytes, of the header of a 64-bit ELF file and of an entry in its program header table.
const HEADER: usize = 64;
const ENTRY: usize = 56;
const CLASS_64: u8 = 2;
const MACHINE_X86_64: u16 = 62;
const PT_INTERP: u64 = 3;
const PATH_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn this_test_program_has_a_loader_and_a_libc() {
        let program = Program::find(&std::env::current_exe().unwrap()).unwrap();
        // If the tests are built statically, there is neither a loader nor a library.
        let is_static = program.libraries.is_empty();
        let has = |name: &str| program.libraries.iter().any(|path| path.to_string_lossy().contains(name));
        assert!(is_static || has("libc.") && has("/ld-"), "{program:?}");
        assert!(program.libraries.iter().all(|path| path.is_file()), "{program:?}");
    }

    fn refused(content: &[u8]) -> String {
        let file = TempFile::new().unwrap();
        fs::write(file.as_path(), content).unwrap();
        Program::find(file.as_path()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_program_of_a_guest_is_refused() {
        assert!(
            refused(b"#!/bin/sh\n")
                .ends_with("is not an ELF file: cargo puts it after `coracle cargo-runner`")
        );
        let mut header = fs::read(std::env::current_exe().unwrap()).unwrap();
        header.truncate(HEADER);
        assert!(refused(&header).contains("is cut short"), "{}", refused(&header));
        header[18] = 183;
        assert!(refused(&header).contains("(ELF class 2, machine 183)"), "{}", refused(&header));
        let missing = Program::find(Path::new("/no/such")).unwrap_err();
        assert!(matches!(missing, ProgramError::Read { .. }));
    }

    #[test]
    fn lines_of_loaders_are_read() {
        let at = |path: &str| Listed::At(path.into());
        assert_eq!(library_of("\tlinux-vdso.so.1 (0x00007ffd)"), Listed::Nothing);
        assert_eq!(library_of("\tlibc.so.6 => /lib/a b/libc.so.6 (0x00007f)"), at("/lib/a b/libc.so.6"));
        assert_eq!(library_of("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), at("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library_of("\tlibno.so => not found"), Listed::Missing("libno.so".into()));
        assert_eq!(library_of("\tstatically linked"), Listed::Nothing);
    }
}

//! Writes cpio archives in the "newc" format, which the kernel unpacks (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst). The same entries always give the same bytes:
//! names are sorted, inodes are numbered in order, the owner and the time are 0. A name is a sequence of
//! bytes, as in Linux, and need not be UTF-8.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use coracle_arch::{nameless_file, regular_file};

use crate::temporary;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<Vec<u8>, Entry>,
}

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A name is empty, or contains a byte or has a value that would end it or the archive.
    #[error(
        "{name:?} cannot be the name of an entry in a cpio archive: it is empty, has a NUL, or marks the archive's end"
    )]
    Name {
        /// The rejected name.
        name: String,
    },
    /// A file is larger than the format's 32-bit sizes allow.
    #[error("{name:?} is larger than the 4 GiB that an entry of a cpio archive can have")]
    TooLarge {
        /// The name of the entry.
        name: String,
    },
    /// A file of the host cannot be read completely.
    #[error("{} cannot be put into an initramfs: {source}", path.display())]
    Source {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system call, or that the file has become shorter.
        r#source: io::Error,
    },
    /// The archive cannot be written.
    #[error("an initramfs cannot be written to a file in {}: {source}{}", folder.display(), temporary::advice())]
    Spool {
        /// The directory of the archive.
        folder: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
}

#[derive(Debug)]
struct Entry {
    /// File type and permissions, as in `st_mode`.
    mode: u32,
    data: Data,
    /// The major and minor number of a device.
    device: (u32, u32),
}

/// The data of an entry.
#[derive(Debug)]
enum Data {
    /// The content of a file, or the target of a symbolic link.
    Bytes(Vec<u8>),
    /// The content of this file of the host, which is read when the archive is written.
    HostFile(PathBuf),
}

impl Archive {
    /// Adds a directory and its parents, all with mode 0755.
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        self.folder_with(path, 0o755);
    }

    /// Adds a directory with these permissions, and its missing parents with mode 0755.
    pub fn folder_with(&mut self, path: impl AsRef<Path>, permissions: u32) {
        let path = name(path.as_ref());
        self.parents(path);
        self.insert(path, S_IFDIR | permissions, Vec::new(), (0, 0));
    }

    /// Adds a regular file and its parent directories.
    pub fn file(&mut self, path: impl AsRef<Path>, permissions: u32, data: Vec<u8>) {
        let path = name(path.as_ref());
        self.parents(path);
        self.insert(path, S_IFREG | permissions, data, (0, 0));
    }

    /// Adds a regular file and its parent directories. The content is that of a file of the host, which is
    /// opened when the archive is written.
    pub fn host_file(&mut self, path: impl AsRef<Path>, permissions: u32, source: impl Into<PathBuf>) {
        let path = name(path.as_ref());
        self.parents(path);
        let entry =
            Entry { mode: S_IFREG | permissions, data: Data::HostFile(source.into()), device: (0, 0) };
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds a symbolic link and its parent directories.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) {
        let path = name(path.as_ref());
        self.parents(path);
        self.insert(path, S_IFLNK | 0o777, bytes(target.as_ref()).to_vec(), (0, 0));
    }

    /// Adds a character device and its parent directories.
    pub fn character_device(&mut self, path: impl AsRef<Path>, permissions: u32, major: u32, minor: u32) {
        let path = name(path.as_ref());
        self.parents(path);
        self.insert(path, S_IFCHR | permissions, Vec::new(), (major, minor));
    }

    /// Returns the bytes of the archive.
    ///
    /// # Errors
    /// An entry is larger than the format's 4 GiB, has an invalid name, or cannot be read.
    pub fn finish(self) -> Result<Vec<u8>, ArchiveError> {
        let mut out = Vec::new();
        // Writing to memory does not fail.
        self.write(&mut out).map_err(|failure| failure.of(Path::new("memory")))?;
        Ok(out)
    }

    /// Writes the archive to an unnamed file in `$TMPDIR`, or else `/var/tmp`, which is deleted when it is
    /// closed.
    ///
    /// # Errors
    /// See [`Archive::finish`]; or the directory cannot take a file of this size.
    pub fn spool(self) -> Result<File, ArchiveError> {
        let folder = temporary::directory();
        let file = nameless_file::create_in(&folder).map_err(Failure::Write).and_then(|file| {
            let mut out = io::BufWriter::new(&file);
            self.write(&mut out)?;
            out.flush().map_err(Failure::Write)?;
            drop(out);
            Ok(file)
        });
        file.map_err(|failure| failure.of(&folder))
    }

    fn write(self, out: &mut impl Write) -> Result<(), Failure> {
        for (inode, (name, entry)) in (1..).zip(&self.entries) {
            if name.is_empty() || name.contains(&0) || name == TRAILER {
                return Err(ArchiveError::Name { name: lossy(name) }.into());
            }
            append(out, inode, name, entry)?;
        }
        append(out, 0, TRAILER, &Entry { mode: 0, data: Data::Bytes(Vec::new()), device: (0, 0) })
    }

    /// Adds the parent directories of an entry, because the kernel does not create any itself. The name of a
    /// directory sorts before those in it.
    fn parents(&mut self, path: &[u8]) {
        for (above, _) in memchr::memchr_iter(b'/', path).filter_map(|end| path.split_at_checked(end)) {
            if self.entries.get(above).is_none_or(|entry| entry.mode & S_IFMT != S_IFDIR) {
                self.insert(above, S_IFDIR | 0o755, Vec::new(), (0, 0));
            }
        }
    }

    fn insert(&mut self, path: &[u8], mode: u32, data: Vec<u8>, device: (u32, u32)) {
        self.entries.insert(path.to_owned(), Entry { mode, data: Data::Bytes(data), device });
    }
}

/// Why an archive is not written.
enum Failure {
    Archive(ArchiveError),
    Write(io::Error),
}

impl Failure {
    fn of(self, folder: &Path) -> ArchiveError {
        match self {
            Failure::Archive(error) => error,
            Failure::Write(source) => ArchiveError::Spool { folder: folder.to_owned(), source },
        }
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Failure {
        Failure::Archive(error)
    }
}

/// Writes an entry: its header and name, then its content, each padded to a multiple of four from the start
/// of the archive.
fn append(out: &mut impl Write, inode: u32, name: &[u8], entry: &Entry) -> Result<(), Failure> {
    let in_32_bits = |len| u32::try_from(len).map_err(|_| ArchiveError::TooLarge { name: lossy(name) });
    let unread = |path: &Path, source| ArchiveError::Source { path: path.to_owned(), source };
    let (len, mut content): (u64, Box<dyn Read + '_>) = match &entry.data {
        Data::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes.as_slice())),
        Data::HostFile(path) => {
            let (file, metadata) = regular_file::open(path).map_err(|error| unread(path, error.into()))?;
            (metadata.len(), Box::new(file))
        }
    };
    let size = in_32_bits(len)?;
    let name_size = in_32_bits((name.len() as u64).saturating_add(1))?;
    let links = if entry.mode & S_IFMT == S_IFDIR { 2 } else { 1 };
    let (major, minor) = entry.device;
    // Inode, mode, owner, group, links, time, size, device of the file system (2), device (2), size of the
    // name, checksum.
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    let mut header = b"070701".to_vec();
    for field in fields {
        header.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    header.extend_from_slice(name);
    header.push(0);
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&header).map_err(Failure::Write)?;
    let mut left = len;
    let mut piece = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let part = piece.get_mut(..room).unwrap_or_default();
        let read = content.read_exact(part);
        if let (Err(source), Data::HostFile(path)) = (read, &entry.data) {
            return Err(unread(path, source).into());
        }
        out.write_all(part).map_err(Failure::Write)?;
        left = left.saturating_sub(room as u64);
    }
    let padding = len.next_multiple_of(ALIGNMENT as u64).saturating_sub(len);
    out.write_all([0; ALIGNMENT].get(..padding as usize).unwrap_or_default()).map_err(Failure::Write)
}

/// Converts a path to the name of an entry.
fn name(path: &Path) -> &[u8] {
    let mut name = bytes(path);
    while let Some(rest) = name.strip_prefix(b"/").or(name.strip_suffix(b"/")) {
        name = rest;
    }
    name
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The alignment of names and contents, in bytes.
const ALIGNMENT: usize = 4;
/// How much of a file of the host is in memory at once, in bytes.
const PIECE: usize = 256 << 10;

const S_IFMT: u32 = 0o170_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, b"#!/bin/sh\n".to_vec());
        archive.file("lib/modules/a.ko", 0o644, b"module".to_vec());
        archive.folder("/proc/");
        archive.symlink("/bin/sh", "busybox");
        archive.character_device("/dev/console", 0o600, 5, 1);
        archive
    }

    /// Parses the archive, and returns a line for each entry: inode, mode, device, name, content.
    fn listing(mut archive: &[u8]) -> String {
        let mut listing = String::new();
        loop {
            let (header, rest) = archive.split_at(110);
            assert!(header.starts_with(b"070701"));
            let field = |index: usize| {
                let digits = str::from_utf8(&header[6 + 8 * index..][..8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let name_end = field(11) as usize - 1;
            let name = rest[..name_end].escape_ascii().to_string();
            assert_eq!(rest[name_end], 0);
            let data = (110 + name_end + 1).next_multiple_of(4);
            let end = data + field(6) as usize;
            if name == "TRAILER!!!" {
                return listing;
            }
            let content = archive[data..end].escape_ascii();
            let (inode, mode, major, minor) = (field(0), field(1), field(9), field(10));
            listing += &format!("{inode} {mode:o} {major}:{minor} {name} {content}\n");
            archive = &archive[end.next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_read_back_sorted_with_their_folders() {
        let expected = [
            "1 40755 0:0 bin ",
            "2 120777 0:0 bin/sh busybox",
            "3 40755 0:0 dev ",
            "4 20600 5:1 dev/console ",
            "5 100755 0:0 init #!/bin/sh\\n",
            "6 40755 0:0 lib ",
            "7 40755 0:0 lib/modules ",
            "8 100644 0:0 lib/modules/a.ko module",
            "9 40755 0:0 proc ",
            "",
        ];
        assert_eq!(listing(&sample().finish().unwrap()), expected.join("\n"));
    }

    #[test]
    fn same_entries_in_another_order_give_the_same_bytes() {
        let mut other = Archive::default();
        other.character_device("dev/console", 0o600, 5, 1);
        other.symlink("bin/sh", "busybox");
        other.folder("proc");
        other.file("lib/modules/a.ko", 0o644, b"module".to_vec());
        other.file("init", 0o755, b"#!/bin/sh\n".to_vec());
        assert_eq!(other.finish().unwrap(), sample().finish().unwrap());
    }

    #[test]
    fn files_of_the_host_are_read_when_the_archive_is_written() {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
        let mut archive = Archive::default();
        archive.folder_with("/tmp", 0o1777);
        archive.host_file("/tmp/a", 0o755, file.as_path());
        std::fs::write(file.as_path(), "12345").unwrap();
        let mut spooled = Vec::new();
        let mut in_file = archive.spool().unwrap();
        std::io::Seek::rewind(&mut in_file).unwrap();
        in_file.read_to_end(&mut spooled).unwrap();
        assert_eq!(listing(&spooled), "1 41777 0:0 tmp \n2 100755 0:0 tmp/a 12345\n");

        let mut gone = Archive::default();
        gone.host_file("a", 0o644, "/no/such/file");
        let error = gone.finish().unwrap_err().to_string();
        assert_eq!(
            error,
            "/no/such/file cannot be put into an initramfs: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn any_name_of_linux_is_kept_and_no_other() {
        use std::ffi::OsStr;
        let mut archive = Archive::default();
        archive.file(OsStr::from_bytes(b"a, b\n\xff/TRAILER!!!"), 0o644, Vec::new());
        archive.symlink("l", OsStr::from_bytes(b"\xfe"));
        let expected =
            "1 40755 0:0 a, b\\n\\xff \n2 100644 0:0 a, b\\n\\xff/TRAILER!!! \n3 120777 0:0 l \\xfe\n";
        assert_eq!(listing(&archive.finish().unwrap()), expected);
        for name in ["a\0b", "TRAILER!!!", "/"] {
            let mut archive = Archive::default();
            archive.file(name, 0o644, Vec::new());
            assert!(archive.finish().is_err(), "{name:?}");
        }
    }

    #[test]
    fn cpio_program_lists_the_archive_when_there_is_one() {
        let mut cpio = Command::new("cpio");
        let cpio = cpio.args(["-it", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match cpio.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Write to the stream directly: the test harness captures the output of `eprintln!` in a test
                // that passes.
                let _ = writeln!(std::io::stderr(), "skipped: no cpio program on this machine");
                return;
            }
            child => child.unwrap(),
        };
        child.stdin.take().unwrap().write_all(&sample().finish().unwrap()).unwrap();
        let listing = child.wait_with_output().unwrap();
        let names = "bin\nbin/sh\ndev\ndev/console\ninit\nlib\nlib/modules\nlib/modules/a.ko\nproc\n";
        assert_eq!(String::from_utf8(listing.stdout).unwrap(), names);
    }
}

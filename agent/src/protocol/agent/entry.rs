//! The entries of a folder, as they come on the stream of a list: one frame each, without kind and channel.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::ProtocolError;
use crate::protocol::wire::FrameReader;
use crate::protocol::wire::{Decoder, Encoder};

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name, without the folder's: never empty, `.` or `..`, and without `/` and zero bytes, whatever the agent
    /// says.
    pub name: OsString,
    /// What it is; a symbolic link is not followed.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// When its content was last changed: seconds since 1970.
    pub modified: i64,
}

/// Kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl FileKind {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Folder,
        Self::Link,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Pipe,
        Self::Socket,
    ];

    /// The kind in `st_mode` (`inode(7)`).
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Folder,
            libc::S_IFLNK => Self::Link,
            libc::S_IFCHR => Self::CharacterDevice,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFIFO => Self::Pipe,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::File,
        }
    }

    fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        let kind = Self::ALL.get(usize::from(value)).copied();
        kind.ok_or(ProtocolError::UnknownValue { what: "kind of file", value })
    }
}

impl DirEntry {
    /// The entry as a frame.
    pub fn to_frame(&self) -> Vec<u8> {
        let Self { name, kind, mode, uid, gid, size, modified } = self;
        let frame = Encoder::new(*kind as u8).u32(*mode).u32(*uid).u32(*gid);
        frame.u64(*size).i64(*modified).text(name).finish()
    }

    fn parse(content: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Decoder::new(content);
        let kind = FileKind::from_wire(fields.u8("kind")?)?;
        let entry = Self {
            kind,
            mode: fields.u32("mode")?,
            uid: fields.u32("uid")?,
            gid: fields.u32("gid")?,
            size: fields.u64("size")?,
            modified: fields.i64("time")?,
            name: fields.text("name")?,
        };
        fields.end()?;
        match name_is_one(entry.name.as_bytes()) {
            true => Ok(entry),
            false => Err(ProtocolError::EntryName),
        }
    }
}

/// Takes the stream of a list apart.
#[derive(Debug)]
pub struct EntryReader(FrameReader);

impl Default for EntryReader {
    fn default() -> Self {
        Self(FrameReader::new(MAX_ENTRY))
    }
}

impl EntryReader {
    /// Takes the next bytes of the stream: the entries that are whole now.
    ///
    /// # Errors
    /// Bytes that are no entry.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<DirEntry>, ProtocolError> {
        self.0.push(bytes);
        let mut entries = Vec::new();
        while let Some(frame) = self.0.next_frame()? {
            entries.push(DirEntry::parse(&frame)?);
        }
        Ok(entries)
    }
}

/// Whether it can be the name of an entry of a folder (`path_resolution(7)`): a caller that joins it to a path of its
/// own stays in the folder.
fn name_is_one(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Names have 255 bytes at most in Linux, some network file systems' more.
const MAX_ENTRY: usize = 4096;

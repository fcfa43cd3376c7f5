//! The file `state`: a list of sections, each with a name, a version, a length and a checksum.
//!
//! ```text
//! header, 40 bytes:   magic (8), format (4), machine (2), number of sections (2), id (16), 0 (4), CRC-32 (4)
//! section, 40 bytes:  name (24, padded with zeroes), version (2), flags (2), length (4),
//!                     CRC-32 of the content (4), CRC-32 of this header (4); then the content
//! ```
//!
//! Numbers are little-endian, and each CRC-32 is that of zlib. Every bit of the file is under one of the
//! checksums. The header is the same in every format.

use coracle_arch::x86_64::vcpu_state::VcpuStateError;
use coracle_devices::state::{SavedState, StateError};

use super::{FORMAT, SnapshotId};

/// A part of the state of a machine, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// Letters, digits and hyphens, at most [`Section::MAX_NAME`] of them.
    pub(crate) name: String,
    /// Whether a reader that does not know the section has to refuse the snapshot.
    pub(crate) is_required: bool,
    pub(crate) content: SavedState,
}

impl Section {
    /// The longest name, in bytes.
    pub(crate) const MAX_NAME: usize = 24;
}

/// The sections of a file that have not been taken yet.
#[derive(Debug)]
pub(crate) struct Sections(Vec<Section>);

/// The reason why the file `state` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// The file does not begin as a state does.
    #[error("it does not begin as the state of a snapshot does; it is another file, or damaged")]
    Magic,
    /// The file ends too early.
    #[error("it ends after {len} bytes, in the middle of {what}; it was copied in part")]
    Cut {
        /// The length of the file in bytes.
        len: usize,
        /// The part that is not complete.
        what: String,
    },
    /// There are bytes after the last section.
    #[error("{extra} bytes follow the last section; it is damaged")]
    TrailingBytes {
        /// The number of bytes.
        extra: usize,
    },
    /// A checksum does not match.
    #[error("the checksum of {what} is {stored:#010x}, and its bytes have {found:#010x}; it is damaged")]
    Checksum {
        /// The part of the file.
        what: String,
        /// The checksum in the file.
        stored: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The format is newer than this version.
    #[error("its format is {format}, and this version reads 1 to {FORMAT}; use a newer Coracle")]
    Format {
        /// The format.
        format: u32,
    },
    /// The state is that of a machine of another architecture.
    #[error("it is that of a machine with number {machine} (e_machine of ELF), and this host's is {X86_64}")]
    Machine {
        /// The number of the architecture.
        machine: u16,
    },
    /// The state belongs to another snapshot.
    #[error("it belongs to the snapshot {id}, and the manifest to {expected}; copy the files together")]
    OtherSnapshot {
        /// The id in the file.
        id: SnapshotId,
        /// The id in the manifest.
        expected: SnapshotId,
    },
    /// A field of a header has a value that no version writes.
    #[error("{field} is {value:#x}: {allowed}; it is damaged")]
    Field {
        /// The field.
        field: String,
        /// The value.
        value: u64,
        /// The possible values.
        allowed: &'static str,
    },
    /// The name of a section is not valid.
    #[error("the name of section {index} is `{name}`: a name has 1 to 24 of a-z, 0-9 and -; it is damaged")]
    Name {
        /// The number of the section, from 0.
        index: usize,
        /// The name, without control characters.
        name: String,
    },
    /// Two sections have one name.
    #[error("there are two sections `{name}`; it is damaged")]
    Twice {
        /// The name.
        name: String,
    },
    /// A section is longer than any of its kind.
    #[error("section `{name}` has {len} bytes, and at most {most} are possible; it is damaged")]
    TooLong {
        /// The name.
        name: String,
        /// The length in bytes.
        len: usize,
        /// The largest length.
        most: usize,
    },
    /// A section that the restore needs is not known.
    #[error("it needs the section `{name}`, which this version does not know; use a newer Coracle")]
    UnknownSection {
        /// The name.
        name: String,
    },
    /// A section is missing.
    #[error("the section `{name}` is missing; it is damaged")]
    MissingSection {
        /// The name.
        name: &'static str,
    },
    /// The content of a section is not possible.
    #[error("section `{name}`: {source}")]
    Content {
        /// The name.
        name: String,
        /// The reason.
        r#source: StateError,
    },
    /// The state of a vCPU has values that no vCPU has.
    #[error("vCPU {vcpu}: {source}")]
    Vcpu {
        /// The index of the vCPU.
        vcpu: usize,
        /// The field and its value.
        r#source: VcpuStateError,
    },
    /// The RAM cannot have these parts with content.
    #[error("section `ram`: {ram} bytes of RAM cannot have content in these parts; it is damaged")]
    Ram {
        /// The length of the RAM.
        ram: u64,
    },
}

impl StateFileError {
    /// Makes the error of a section whose content is not possible.
    pub(crate) fn content(name: impl Into<String>, source: StateError) -> StateFileError {
        StateFileError::Content { name: name.into(), source }
    }
}

/// Encodes the file.
pub(crate) fn encode(id: &SnapshotId, sections: &[Section]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&FORMAT.to_le_bytes());
    file.extend_from_slice(&X86_64.to_le_bytes());
    file.extend_from_slice(&(sections.len() as u16).to_le_bytes());
    file.extend_from_slice(id.bytes());
    file.extend_from_slice(&[0; 4]);
    file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
    for Section { name, is_required, content } in sections {
        let start = file.len();
        file.extend_from_slice(name.as_bytes());
        file.resize(start + Section::MAX_NAME, 0);
        file.extend_from_slice(&content.version().to_le_bytes());
        file.extend_from_slice(&u16::from(*is_required).to_le_bytes());
        file.extend_from_slice(&(content.bytes().len() as u32).to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(content.bytes()).to_le_bytes());
        let checksum = crc32fast::hash(file.get(start..).unwrap_or_default());
        file.extend_from_slice(&checksum.to_le_bytes());
        file.extend_from_slice(content.bytes());
    }
    file
}

impl Sections {
    /// Reads the file `bytes` of the snapshot `id`. Takes at most as much memory as the file.
    ///
    /// # Errors
    /// The file belongs to another snapshot, has a newer format, or is damaged.
    pub(crate) fn decode(bytes: &[u8], id: &SnapshotId) -> Result<Sections, StateFileError> {
        let mut rest = Reader { file: bytes.len(), bytes };
        let header: &[u8; HEADER] = rest.take("its header")?;
        let count = check_header(header, id)?;
        let mut sections: Vec<Section> = Vec::new();
        for index in 0..count {
            let section = rest.section(index)?;
            if sections.iter().any(|other| other.name == section.name) {
                return Err(StateFileError::Twice { name: section.name });
            }
            sections.push(section);
        }
        let extra = rest.bytes.len();
        if extra > 0 { Err(StateFileError::TrailingBytes { extra }) } else { Ok(Sections(sections)) }
    }

    /// Takes the section `name`, which has at most `most` bytes.
    ///
    /// # Errors
    /// It is longer.
    pub(crate) fn take(&mut self, name: &str, most: usize) -> Result<Option<SavedState>, StateFileError> {
        let Some(index) = self.0.iter().position(|section| section.name == name) else { return Ok(None) };
        let Section { name, content, .. } = self.0.swap_remove(index);
        let len = content.bytes().len();
        if len > most { Err(StateFileError::TooLong { name, len, most }) } else { Ok(Some(content)) }
    }

    /// Drops the sections that were not taken, if a machine can do without them.
    ///
    /// # Errors
    /// A section is required, and nobody knew it.
    pub(crate) fn finish(self) -> Result<(), StateFileError> {
        let unknown = self.0.into_iter().find(|section| section.is_required);
        unknown.map_or(Ok(()), |Section { name, .. }| Err(StateFileError::UnknownSection { name }))
    }
}

/// Returns the number of sections.
fn check_header(header: &[u8; HEADER], id: &SnapshotId) -> Result<usize, StateFileError> {
    let mut fields = Reader { file: HEADER, bytes: header };
    if fields.take("its header")? != MAGIC {
        return Err(StateFileError::Magic);
    }
    let format = fields.u32()?;
    let machine = fields.u16()?;
    let count = fields.u16()?;
    let own = SnapshotId::from_bytes(*fields.take("its header")?);
    let zero = fields.u32()?;
    check("its header", fields.u32()?, header.split_last_chunk::<4>().map_or(&[][..], |(all, _)| all))?;
    if !(1..=FORMAT).contains(&format) {
        return Err(StateFileError::Format { format });
    }
    if machine != X86_64 {
        return Err(StateFileError::Machine { machine });
    }
    if own != *id {
        return Err(StateFileError::OtherSnapshot { id: own, expected: *id });
    }
    field("the field before the checksum of its header", zero, zero == 0, "always 0")?;
    field("the number of sections", count, count <= MAX_SECTIONS, "0x40 at most")?;
    Ok(count.into())
}

fn field(
    field: &str,
    value: impl Into<u64>,
    is_possible: bool,
    allowed: &'static str,
) -> Result<(), StateFileError> {
    if is_possible {
        return Ok(());
    }
    Err(StateFileError::Field { field: field.to_owned(), value: value.into(), allowed })
}

/// The bytes of a file that have not been read yet.
struct Reader<'a> {
    /// The length of the whole file.
    file: usize,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn section(&mut self, index: usize) -> Result<Section, StateFileError> {
        let what = || format!("the header of section {index}");
        let header: &[u8; SECTION] = self.take(&what())?;
        let mut fields = Reader { file: SECTION, bytes: header };
        let name: &[u8; Section::MAX_NAME] = fields.take("a name")?;
        let version = fields.u16()?;
        let flags = fields.u16()?;
        let len = fields.u32()?;
        let checksum = fields.u32()?;
        check(&what(), fields.u32()?, header.split_last_chunk::<4>().map_or(&[][..], |(all, _)| all))?;
        let name = name_of(name, index)?;
        let what = format!("the section `{name}`");
        field(&format!("the field of flags of {what}"), flags, flags & !REQUIRED == 0, "0 or 1")?;
        let cut = || StateFileError::Cut { len: self.file, what: what.clone() };
        let len = usize::try_from(len).map_err(|_| cut())?;
        let (content, rest) = self.bytes.split_at_checked(len).ok_or_else(cut)?;
        self.bytes = rest;
        check(&what, checksum, content)?;
        let content = SavedState::from_parts(version, content.to_vec());
        Ok(Section { name, is_required: flags & REQUIRED != 0, content })
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<&'a [u8; N], StateFileError> {
        let cut = || StateFileError::Cut { len: self.file, what: what.to_owned() };
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(cut)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, StateFileError> {
        self.take("a number").copied().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, StateFileError> {
        self.take("a number").copied().map(u32::from_le_bytes)
    }
}

fn check(what: &str, stored: u32, bytes: &[u8]) -> Result<(), StateFileError> {
    let found = crc32fast::hash(bytes);
    if stored == found {
        return Ok(());
    }
    Err(StateFileError::Checksum { what: what.to_owned(), stored, found })
}

fn name_of(padded: &[u8; Section::MAX_NAME], index: usize) -> Result<String, StateFileError> {
    let end = padded.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    let name = padded.get(..end).unwrap_or_default();
    let is_possible = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if name.is_empty() || !name.iter().all(is_possible) {
        return Err(StateFileError::Name { index, name: name.escape_ascii().to_string() });
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// The length of the longest file: that of 64 vCPUs with 64 KiB of XSAVE each takes 6 MiB.
pub(super) const MAX_STATE: u64 = 16 << 20;
const MAGIC: &[u8; 8] = b"CORASTAT";
/// EM_X86_64 of the ELF specification.
const X86_64: u16 = 62;
const HEADER: usize = 40;
const SECTION: usize = 40;
/// The largest number of sections: many more than machines have, and few enough to compare their names.
const MAX_SECTIONS: u16 = 0x40;
/// The flag of a section that a reader has to know.
const REQUIRED: u16 = 1;

#[cfg(test)]
mod tests;

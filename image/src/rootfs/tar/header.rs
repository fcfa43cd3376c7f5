//! The block of 512 bytes before each member of a tar.

use super::SparseMap;
use crate::rootfs::tree::Device;

/// The content of a header, in the formats of POSIX and GNU, and in the old one before both.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// The letter for the member's type.
    pub(super) kind: u8,
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    /// The number of bytes that follow, without padding.
    pub(super) size: u64,
    pub(super) device: Device,
    pub(super) sparse: Option<Sparse>,
}

/// The fields of GNU's header for a sparse file.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) map: SparseMap,
    /// Whether another block with more of the map follows.
    pub(super) goes_on: bool,
    pub(super) real_size: u64,
}

/// The unit of everything in a tar, in bytes.
pub(super) const BLOCK: u64 = 512;

/// Why a block cannot be used as a header.
#[derive(Debug)]
pub(super) enum Fault {
    /// The block is not a header, or the named part of it is damaged.
    Damaged(&'static str),
    /// A number in it is malformed or out of range.
    Field(Wrong),
}

/// A value in a header that is not valid.
#[derive(Debug, Clone)]
pub(super) struct Wrong {
    /// The name of the member, if the header has it.
    pub(super) name: Vec<u8>,
    pub(super) field: String,
    pub(super) value: String,
}

/// Returns whether the first bytes of a file are a header.
pub(in crate::rootfs) fn is_header(start: &[u8]) -> bool {
    let is_header = |block| matches!(Header::parse(block), Ok(Some(_)) | Err(Fault::Field(_)));
    start.first_chunk().is_some_and(is_header)
}

impl Header {
    /// Parses a block; `None` is the end mark.
    pub(super) fn parse(block: &[u8; BLOCK as usize]) -> Result<Option<Header>, Fault> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(block).map_err(Fault::Damaged)?;
        let kind = block[156];
        let is_gnu = block[257..265] == *b"ustar  \0";
        let is_posix = block[257..262] == *b"ustar" && !is_gnu;
        let mut name = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if is_posix && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let wrong = |field: &str, bytes: &[u8]| {
            let value = number(bytes).map_or_else(|| shown(text(bytes)), |number| number.to_string());
            Fault::Field(Wrong { name: name.clone(), field: field.to_owned(), value })
        };
        let positive = |field, bytes: &[u8]| {
            let positive = number(bytes).and_then(|number| u64::try_from(number).ok());
            positive.ok_or_else(|| wrong(field, bytes))
        };
        let id = |field, bytes: &[u8]| {
            positive(field, bytes).and_then(|id| id.try_into().map_err(|_| wrong(field, bytes)))
        };
        let mode = positive("mode", &block[100..108])?;
        let has_device = matches!(kind, b'3' | b'4');
        let device = |bytes: &[u8]| if has_device { id("device", bytes) } else { Ok(0) };
        let header = Header {
            link: text(&block[157..257]).to_vec(),
            kind,
            permissions: (mode & 0o7777) as u16,
            uid: id("uid", &block[108..116])?,
            gid: id("gid", &block[116..124])?,
            mtime: number(&block[136..148]).ok_or_else(|| wrong("mtime", &block[136..148]))?,
            size: positive("size", &block[124..136])?,
            device: Device { major: device(&block[329..337])?, minor: device(&block[337..345])? },
            sparse: (kind == b'S').then(|| sparse(block)).transpose().map_err(Fault::Damaged)?,
            name,
        };
        Ok(Some(header))
    }
}

/// Checks the sum of a block's bytes against the one in it.
fn check_sum(block: &[u8; BLOCK as usize]) -> Result<(), &'static str> {
    let sum = number(&block[148..156]).ok_or("its checksum is not a number")?;
    // Some old programs have added signed bytes.
    let in_sum = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(at, byte)| in_sum(at, *byte));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    if sum == unsigned || sum == signed { Ok(()) } else { Err("its checksum is wrong") }
}

/// Shortens a value for messages.
pub(super) fn shown(value: &[u8]) -> String {
    let start = value.get(..MAX_SHOWN).unwrap_or(value);
    String::from_utf8_lossy(start).escape_debug().to_string()
}

/// Parses a block that continues the map of a sparse file; `true` if one more follows.
pub(super) fn more_of_map(block: &[u8; BLOCK as usize], map: &mut SparseMap) -> Result<bool, &'static str> {
    pieces(&block[..504], map)?;
    if map.len() > MAX_PIECES {
        return Err("a sparse file has too many pieces");
    }
    Ok(block[504] != 0)
}

fn sparse(block: &[u8; BLOCK as usize]) -> Result<Sparse, &'static str> {
    let mut map = Vec::new();
    pieces(&block[386..482], &mut map)?;
    let real_size = number(&block[483..495]).and_then(|size| u64::try_from(size).ok());
    let real_size = real_size.ok_or("the size of a sparse file is not a number")?;
    Ok(Sparse { map, goes_on: block[482] != 0, real_size })
}

/// Parses pairs of offset and length, up to the first empty field; pieces without bytes are dropped.
fn pieces(fields: &[u8], map: &mut SparseMap) -> Result<(), &'static str> {
    for piece in fields.chunks_exact(24) {
        let (offset, len) = piece.split_at(12);
        if offset.starts_with(&[0]) {
            break;
        }
        let field = |field| number(field).and_then(|number| u64::try_from(number).ok());
        let piece = field(offset).zip(field(len)).ok_or("the map of a sparse file is damaged")?;
        map.extend(Some(piece).filter(|(_, len)| *len > 0));
    }
    Ok(())
}

fn text(field: &[u8]) -> &[u8] {
    super::until_zero(field)
}

/// Parses an octal number between blanks and zero bytes, with nothing for 0; or a number in two's complement
/// after a set bit.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The marker bit is not part of the number; the bit after it is the sign.
        let sign = if first & 0x40 != 0 { -1 } else { 0 };
        let start = if sign < 0 { i128::from(first as i8) } else { i128::from(first & 0x3f) };
        let value = field
            .iter()
            .skip(1)
            .try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(i128::from(*byte)))?;
        return value.try_into().ok();
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(byte, b' ' | 0));
    digits.copied().try_fold(0_i64, |value, digit| {
        value.checked_mul(8)?.checked_add(char::from(digit).to_digit(8)?.into())
    })
}

/// How many bytes of a wrong value a message shows.
const MAX_SHOWN: usize = 40;
/// The maximum number of pieces in a sparse file; GNU tar creates one for each run of data.
const MAX_PIECES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        for wrong in [&b"0000648\0"[..], b"abc", b"-1\0", b""] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn block_with_a_wrong_sum_is_no_header() {
        assert!(!is_header(&[b'a'; 512]));
        assert!(!is_header(b"short"));
        assert!(!is_header(&[0; 512]));
    }
}

//! The records of a pax header: `LENGTH KEY=VALUE` and a line break, where the length is that of the record.
//! A value may contain any byte, so only the length determines its end.

use std::collections::BTreeMap;

use super::header::{Wrong, shown};
use super::{SparseMap, TarError};

/// The values that pax headers add to a file's own header.
#[derive(Debug, Clone, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The number of access lists and labels in forms that are not supported.
    pub(super) lost_xattrs: u64,
    pub(super) sparse: Option<Sparse>,
    /// The first invalid value; the member to which it belongs comes later.
    pub(super) wrong: Option<Wrong>,
}

/// A sparse file in one of GNU tar's formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// The map, in the formats 0.0 and 0.1.
    pub(super) map: SparseMap,
    /// Whether the map precedes the content, as in format 1.0.
    pub(super) map_is_in_front: bool,
}

impl Extensions {
    /// Parses the records of the header at `at`.
    ///
    /// # Errors
    /// A record is damaged.
    pub(super) fn read(&mut self, mut records: &[u8], at: u64) -> Result<(), TarError> {
        let wrong = |what| TarError::Header { at, what };
        while records.first().is_some_and(|byte| *byte != 0) {
            let (record, rest) = record(records).ok_or_else(|| wrong("an extension is damaged"))?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(|| wrong("an extension is damaged"))?);
            let value = value.get(1..).unwrap_or_default();
            if self.take(key, value).is_none() {
                let wrong = || Wrong { name: Vec::new(), field: shown(key), value: shown(value) };
                self.wrong.get_or_insert_with(wrong);
            }
            records = rest;
        }
        Ok(())
    }

    /// Returns a key that a global header must not have: each file that follows would cost as much memory as
    /// the whole header.
    pub(super) fn of_one_file(&self) -> Option<&'static str> {
        let keys = [
            (self.path.is_some(), "path"),
            (self.link.is_some(), "linkpath"),
            (self.size.is_some(), "size"),
            (self.sparse.is_some(), "GNU.sparse"),
            (!self.xattrs.is_empty(), "SCHILY.xattr"),
        ];
        keys.iter().find(|(is_said, _)| *is_said).map(|(_, key)| *key)
    }

    /// Applies a value; `None` if it is not valid. An empty value cancels an earlier one.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let is_empty = value.is_empty();
        let text = || (!is_empty).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = optional(value, number)?,
            b"uid" => self.uid = optional(value, number)?.map(u32::try_from).transpose().ok()?,
            b"gid" => self.gid = optional(value, number)?.map(u32::try_from).transpose().ok()?,
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.name" => self.sparse().name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse().real_size = Some(number(value)?),
            b"GNU.sparse.major" => self.sparse().map_is_in_front = number(value)? == 1,
            b"GNU.sparse.map" => self.sparse().map = map(value)?,
            b"GNU.sparse.offset" => {
                let offset = number(value)?;
                self.sparse().map.push((offset, 0));
            }
            b"GNU.sparse.numbytes" => self.sparse().map.last_mut()?.1 = number(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if key.starts_with(b"SCHILY.acl.") || key.starts_with(b"RHT.security.") {
                    self.lost_xattrs = self.lost_xattrs.saturating_add(1);
                }
            }
        }
        Some(())
    }

    fn sparse(&mut self) -> &mut Sparse {
        self.sparse.get_or_insert_default()
    }
}

/// Returns how many lines the map before a sparse file of format 1.0 has, given its first line, the number of
/// pieces.
pub(super) fn lines_in_front(text: &[u8]) -> Option<u64> {
    let first = text.split(|byte| *byte == b'\n').next()?;
    number(first)?.checked_mul(2)?.checked_add(1)
}

/// Parses the map before the content of a sparse file of format 1.0, all of whose lines are in `text`.
pub(super) fn map_in_front(text: &[u8]) -> Option<SparseMap> {
    let lines = lines_in_front(text)?;
    let numbers = text
        .split(|byte| *byte == b'\n')
        .skip(1)
        .take(usize::try_from(lines).ok()?.saturating_sub(1))
        .map(number);
    pairs(&numbers.collect::<Option<Vec<u64>>>()?)
}

/// Splits off the first record, without its length and line break.
fn record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = records.iter().take(MAX_LENGTH_DIGITS).position(|byte| *byte == b' ')?;
    let len = usize::try_from(number(records.get(..blank)?)?).ok()?;
    let (record, rest) = records.split_at_checked(len)?;
    Some((record.get(blank..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?, rest))
}

/// Parses `OFFSET,LENGTH,OFFSET,LENGTH...`.
fn map(value: &[u8]) -> Option<SparseMap> {
    pairs(&value.split(|byte| *byte == b',').map(number).collect::<Option<Vec<u64>>>()?)
}

fn pairs(numbers: &[u64]) -> Option<SparseMap> {
    let (pairs, rest) = numbers.as_chunks();
    rest.is_empty().then(|| pairs.iter().map(|[offset, len]| (*offset, *len)).collect())
}

fn optional<T>(value: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { read(value).map(Some) }
}

fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// Parses seconds since 1970 with a fraction; they may be negative.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (is_before, value) = value.strip_prefix(b"-").map_or((false, value), |value| (true, value));
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(number(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    let digits: Vec<u8> = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
    let nanos = u32::try_from(number(&digits)?).ok()?;
    Some(match (is_before, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (seconds.checked_neg()?, 0),
        (true, _) => (seconds.checked_neg()?.checked_sub(1)?, 1_000_000_000_u32.saturating_sub(nanos)),
    })
}

/// The maximum number of digits of a length, enough for every header that is accepted.
const MAX_LENGTH_DIGITS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[u8]) -> Result<Extensions, TarError> {
        let mut extensions = Extensions::default();
        extensions.read(records, 0).map(|()| extensions)
    }

    #[test]
    fn values_may_hold_line_breaks_and_zero_bytes() {
        let extensions = read(b"26 SCHILY.xattr.user.a=\n\0\n12 path=a\nb\n").unwrap();
        assert_eq!(extensions.xattrs.get(&b"user.a"[..]), Some(&b"\n\0".to_vec()));
        assert_eq!(extensions.path.as_deref(), Some(&b"a\nb"[..]));
    }

    #[test]
    fn times_have_fractions_and_may_lie_before_1970() {
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn damaged_records_are_refused() {
        for records in [&b"9 path=a\nx"[..], b"99 path=a\n", b"path=a\n", b"0 x=y\n", b"7 pathx\n"] {
            assert!(read(records).is_err(), "{records:?}");
        }
        for (records, field) in [(&b"9 size=x\n"[..], "size"), (b"18 uid=5000000000\n", "uid")] {
            assert_eq!(read(records).unwrap().wrong.unwrap().field, field);
        }
    }

    #[test]
    fn empty_value_takes_back_what_was_said() {
        let extensions = read(b"9 path=a\n8 path=\n9 size=7\n").unwrap();
        assert_eq!((extensions.path, extensions.size), (None, Some(7)));
    }

    #[test]
    fn maps_are_read_in_all_forms() {
        assert_eq!(map(b"0,1,512,2"), Some(vec![(0, 1), (512, 2)]));
        assert_eq!(map(b"0,1,512"), None);
        assert_eq!(lines_in_front(b"2\n0\n1"), Some(5));
        assert_eq!(map_in_front(b"2\n0\n1\n512\n2\n\0\0"), Some(vec![(0, 1), (512, 2)]));
        assert_eq!(map_in_front(b"1\n0\nx\n"), None);
        assert_eq!(map_in_front(b"x\n"), None);
        let pairs = b"24 GNU.sparse.offset=10\n25 GNU.sparse.numbytes=2\n";
        assert_eq!(read(pairs).unwrap().sparse.unwrap().map, [(10, 2)]);
    }
}

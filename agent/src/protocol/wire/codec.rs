//! Fields of a message: fixed little-endian numbers, length-prefixed byte strings, and counted lists. A
//! hostile program may have written the bytes, so decoding checks each length against the bytes that are
//! left.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{ProtocolError, Stream};

/// Builds one frame.
pub(crate) struct Encoder {
    frame: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(kind: u8) -> Self {
        Self { frame: vec![0, 0, 0, 0, kind] }
    }

    /// Returns the frame, with its length filled in.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = wire_length(self.frame.len().saturating_sub(4));
        if let Some(header) = self.frame.first_chunk_mut::<4>() {
            *header = length.to_le_bytes();
        }
        self.frame
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.frame.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn i64(self, value: i64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn text(self, value: &OsStr) -> Self {
        self.u32(wire_length(value.len())).raw(value.as_bytes())
    }

    pub(crate) fn stream(self, stream: Stream) -> Self {
        self.u8(match stream {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        })
    }

    /// Adds one byte for whether there is a value, and then the value.
    pub(crate) fn option<T>(self, value: Option<T>, item: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => item(self.u8(1), value),
            None => self.u8(0),
        }
    }

    pub(crate) fn list<T>(self, items: &[T], item: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().fold(self.u32(wire_length(items.len())), item)
    }
}

/// Takes the fields from one frame's content.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(content: &'a [u8]) -> Self {
        Self { rest: content }
    }

    pub(crate) fn raw(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtocolError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ProtocolError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, ProtocolError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, ProtocolError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, ProtocolError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, ProtocolError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, ProtocolError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// Returns everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, ProtocolError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(ProtocolError::UnknownValue { what: field, value }),
        }
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<OsString, ProtocolError> {
        let length = self.u32(field)? as usize;
        Ok(OsString::from_vec(self.raw(length, field)?.to_vec()))
    }

    /// Reads an optional value.
    pub(crate) fn option<T>(
        &mut self,
        field: &'static str,
        item: impl FnOnce(&mut Self) -> Result<T, ProtocolError>,
    ) -> Result<Option<T>, ProtocolError> {
        if self.flag(field)? { item(self).map(Some) } else { Ok(None) }
    }

    /// Reads a counted list. Memory stays bounded by the frame: an item takes at least one byte of it, and
    /// nothing is reserved for items that have not been read.
    pub(crate) fn list<T>(
        &mut self,
        field: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T, ProtocolError>,
    ) -> Result<Vec<T>, ProtocolError> {
        let count = self.u32(field)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Reads a counted list of at most `limit` items.
    pub(crate) fn list_up_to<T>(
        &mut self,
        limit: usize,
        what: &'static str,
        item: impl FnMut(&mut Self) -> Result<T, ProtocolError>,
    ) -> Result<Vec<T>, ProtocolError> {
        let count = self.rest.first_chunk().map_or(0, |count| u32::from_le_bytes(*count) as usize);
        if count > limit {
            return Err(ProtocolError::ListLength { what, count, limit });
        }
        self.list(what, item)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(ProtocolError::TrailingBytes { count }),
        }
    }
}

/// Returns a length on the wire. A length above 32 bits is far over a frame's limit, which the other end
/// enforces.
fn wire_length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

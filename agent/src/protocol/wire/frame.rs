//! Cuts the byte stream of a port into frames. Both ends use it. It never trusts a length before it is
//! checked, and keeps no more than one frame.

use super::ProtocolError;

/// Collects bytes and returns complete frames.
#[derive(Debug)]
pub struct FrameReader {
    limit: usize,
    received: Vec<u8>,
    /// Bytes at the front of `received` that were already returned.
    taken: usize,
}

impl FrameReader {
    /// Makes a reader that refuses frames longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, received: Vec::new(), taken: 0 }
    }

    /// Adds bytes that arrived. Call [`FrameReader::next_frame`] until it returns `None` before adding more,
    /// so that no more than one frame and these bytes are kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.drain(..self.taken);
        self.taken = 0;
        self.received.extend_from_slice(bytes);
    }

    /// Returns the content of the next complete frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`ProtocolError::FrameLength`] for a length that is zero or over the limit. The stream cannot be
    /// followed after that.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        let Some((header, rest)) = self.waiting().split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length == 0 || length > self.limit {
            return Err(ProtocolError::FrameLength { length, limit: self.limit });
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let content = content.to_vec();
        self.taken = self.taken.saturating_add(header.len()).saturating_add(length);
        Ok(Some(content))
    }

    /// Returns the bytes that are not a complete frame yet.
    pub(crate) fn into_waiting(self) -> Vec<u8> {
        self.waiting().to_vec()
    }

    /// Returns the bytes that are not a complete frame yet, without consuming them.
    pub(crate) fn waiting(&self) -> &[u8] {
        self.received.get(self.taken..).unwrap_or_default()
    }
}

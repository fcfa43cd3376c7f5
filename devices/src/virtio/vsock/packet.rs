//! The packets between driver and device (virtio 1.2, section 5.10.6): a header, and for [`Op::Data`] the
//! bytes after it.

use std::io::Write;

/// The header of a packet. All of it is only a claim of the sender until it has been checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The address of the sender.
    pub src_cid: u64,
    /// The address of the receiver.
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// The number of bytes after the header.
    pub len: u32,
    /// The type of socket, [`STREAM`].
    pub kind: u16,
    /// The number of an [`Op`].
    pub op: u16,
    pub flags: u32,
    /// The size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// The bytes that the sender has taken out of that buffer since the beginning, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The length of a header in bytes.
    pub(super) const LEN: usize = 44;

    pub(super) fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let Self { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt } = self;
        let mut bytes = [0; Self::LEN];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| rest.write_all(field).unwrap_or_default();
        [src_cid, dst_cid].iter().for_each(|field| put(&field.to_le_bytes()));
        [src_port, dst_port, len].iter().for_each(|field| put(&field.to_le_bytes()));
        [kind, op].iter().for_each(|field| put(&field.to_le_bytes()));
        [flags, buf_alloc, fwd_cnt].iter().for_each(|field| put(&field.to_le_bytes()));
        bytes
    }
}

/// The purpose of a packet (virtio 1.2, section 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Opens a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Refuses or ends a connection.
    Reset = 3,
    /// Ends one direction of a connection, or both: [`NO_MORE_RECEIVED`], [`NO_MORE_SENT`].
    Shutdown = 4,
    /// Carries bytes.
    Data = 5,
    /// Reports the sender's receive buffer, as every other packet does too.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    pub(super) fn new(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The ports of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub guest: u32,
    pub host: u32,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

/// The address of the host (virtio 1.2, section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only type of socket that the device offers.
pub(super) const STREAM: u16 = 1;
/// Flags of [`Op::Shutdown`]: the sender will receive no more bytes, or will send no more.
pub(super) const NO_MORE_RECEIVED: u32 = 1 << 0;
pub(super) const NO_MORE_SENT: u32 = 1 << 1;
pub(super) const BOTH_WAYS: u32 = NO_MORE_RECEIVED | NO_MORE_SENT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_its_fields_where_the_specification_puts_them() {
        let bytes: Vec<u8> = (0..44).collect();
        let header = Header::from_bytes(bytes.as_slice().try_into().unwrap());
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.dst_port, header.len), (0x1716_1514, 0x1b1a_1918));
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!((header.flags, header.buf_alloc, header.fwd_cnt), (0x2322_2120, 0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.to_bytes().as_slice(), bytes);
    }

    #[test]
    fn operations_are_known_by_their_number() {
        for number in 0..=u16::MAX {
            assert!(Op::new(number).is_none_or(|op| op as u16 == number), "{number}");
        }
        assert_eq!((Op::new(0), Op::new(8)), (None, None));
    }
}

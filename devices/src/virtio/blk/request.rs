//! The requests of a driver to a disk (virtio 1.2, section 5.2.6). All of their content comes from the guest,
//! and is checked here.

use crate::backend::disk::{SECTOR, end_inside};
use crate::memory::Span;
use crate::virtio::queue::Chain;

/// A request that can be answered, because it has space for a status.
#[derive(Debug)]
pub(super) struct Request {
    /// The last byte that the device writes.
    pub status: Span,
    /// The task, or the status of a request that is refused.
    pub task: Result<Task, Status>,
}

/// The task of a request. Its range lies inside the disk, and its data is in the rest of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Read into the writable buffers.
    Read { offset: u64 },
    /// Write the readable buffers.
    Write { offset: u64 },
    /// Make all earlier writes durable.
    Flush,
    /// Return the serial number.
    Id,
    /// Discard the content of a range.
    Discard { offset: u64, len: u64 },
    /// Make a range read as zeroes.
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// The status byte of an answer (virtio 1.2, section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The limits of the disk and of the negotiation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The size of the disk in bytes.
    pub capacity: u64,
    /// Whether discards were negotiated.
    pub discards: bool,
    /// Whether writing zeroes was negotiated.
    pub zeroes: bool,
}

impl Request {
    /// Takes header and status off `chain`, so that the data is left. Returns `None` if there is no byte for
    /// a status.
    pub(super) fn parse(chain: &mut Chain, limits: &Limits) -> Option<Self> {
        let status = chain.writable.split_last()?;
        let Some(header) = chain.readable.read_array::<HEADER_LEN>() else {
            return Some(Self { status, task: Err(Status::IoError) });
        };
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(sector));
        Some(Self { status, task: task(kind, sector, chain, limits) })
    }
}

fn task(kind: u32, sector: u64, chain: &mut Chain, limits: &Limits) -> Result<Task, Status> {
    match kind {
        IN => Ok(Task::Read { offset: data_offset(sector, chain.writable.len(), limits)? }),
        OUT => Ok(Task::Write { offset: data_offset(sector, chain.readable.len(), limits)? }),
        FLUSH => Ok(Task::Flush),
        GET_ID => Ok(Task::Id),
        DISCARD if limits.discards => match range(chain, limits)? {
            Range { offset, len, flags: 0 } => Ok(Task::Discard { offset, len }),
            _ => Err(Status::Unsupported),
        },
        WRITE_ZEROES if limits.zeroes => match range(chain, limits)? {
            Range { offset, len, flags: flags @ 0..=UNMAP } => {
                Ok(Task::WriteZeroes { offset, len, unmap: flags == UNMAP })
            }
            _ => Err(Status::Unsupported),
        },
        _ => Err(Status::Unsupported),
    }
}

/// Returns the offset of `len` bytes from `sector`, if they are whole sectors of the disk and not too many.
fn data_offset(sector: u64, len: u64, limits: &Limits) -> Result<u64, Status> {
    if !len.is_multiple_of(SECTOR) || len > MAX_DATA {
        return Err(Status::IoError);
    }
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    end_inside(offset, len, limits.capacity).map(|_| offset).ok_or(Status::IoError)
}

struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

/// Returns the only range of a discard or a write of zeroes (`struct virtio_blk_discard_write_zeroes`).
fn range(chain: &mut Chain, limits: &Limits) -> Result<Range, Status> {
    let range = chain.readable.read_array::<RANGE_LEN>().filter(|_| chain.readable.is_empty());
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range.ok_or(Status::IoError)?;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    if sectors > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let len = u64::from(sectors).checked_mul(SECTOR).ok_or(Status::IoError)?;
    end_inside(offset, len, limits.capacity).ok_or(Status::IoError)?;
    Ok(Range { offset, len, flags: u32::from_le_bytes(flags) })
}

/// Request types (virtio 1.2, section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
/// The flag of a write of zeroes by which the disk may free the blocks.
const UNMAP: u32 = 1;

/// The largest amount of data of one request, in bytes. Linux sends at most 1.25 MiB by default; without a
/// limit, a guest could hold the disk's thread for as long as it likes.
pub(super) const MAX_DATA: u64 = 32 << 20;
/// The largest number of sectors of one discard or write of zeroes: 1 GiB, which takes even a host that has
/// to write the zeroes only about a second.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

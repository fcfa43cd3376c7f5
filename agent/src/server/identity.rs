//! The identity of a machine that goes on from a snapshot. Without it, the machine would be taken for its
//! siblings, and its kernel would give out the same random numbers.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use coracle_agent::protocol::agent::{Failure, IdentityRequest, Step};

use super::machine;
use crate::mounts;
use crate::network;

/// Takes over the identity, the random numbers first. Nothing else may happen before the end, so the call
/// waits for a DHCP server, too.
///
/// # Errors
/// The first step that failed, by the file, the interface or the call.
pub(super) fn take_over(request: &IdentityRequest) -> Result<(), Failure> {
    let IdentityRequest { hostname, machine_id, seed, time, env: _, cards } = request;
    reseed(seed).map_err(|error| Failure::new(Step::Machine, RANDOM, &error))?;
    machine::set_clock(*time)?;
    network::take_over(cards)?;
    if let Some(name) = hostname {
        set_hostname(name).map_err(|error| Failure::new(Step::Machine, name, &error))?;
    }
    set_machine_id(machine_id).map_err(|error| Failure::new(Step::Machine, MACHINE_ID, &error))
}

/// Mixes the seed into the kernel's random numbers, and makes all of its generators begin with it.
fn reseed(seed: &[u8]) -> io::Result<()> {
    let mut pool = Pool { bits: 0, bytes: 0, content: [0; IdentityRequest::MAX_SEED] };
    for (space, byte) in pool.content.iter_mut().zip(seed) {
        *space = *byte;
    }
    pool.bytes = libc::c_int::try_from(seed.len().min(pool.content.len())).map_err(io::Error::other)?;
    pool.bits = pool.bytes.saturating_mul(8);
    let device = File::open(RANDOM)?;
    // SAFETY: the kernel reads the header and as many bytes as it says, all of which are in the structure.
    if unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes nothing.
    if unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The argument of `RNDADDENTROPY` (`random(4)`).
#[repr(C)]
struct Pool {
    bits: libc::c_int,
    bytes: libc::c_int,
    content: [u8; IdentityRequest::MAX_SEED],
}

fn set_hostname(name: &OsString) -> io::Result<()> {
    let bytes = name.as_bytes();
    // SAFETY: pointer and length are those of the name.
    if unsafe { libc::sethostname(bytes.as_ptr().cast(), bytes.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes the machine's id, if the system has one. On a root that cannot be written to, the file is covered.
fn set_machine_id(id: &str) -> io::Result<()> {
    let has_one = fs::symlink_metadata(MACHINE_ID).is_ok_and(|file| file.is_file());
    if !has_one {
        return Ok(());
    }
    let content = format!("{id}\n");
    match fs::write(MACHINE_ID, &content) {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            fs::write(COVER, &content)?;
            mounts::bind(COVER.as_ref(), MACHINE_ID.as_ref())
        }
        result => result,
    }
}

const RANDOM: &str = "/dev/urandom";
const MACHINE_ID: &str = "/etc/machine-id";
/// The file that is mounted over a machine's id that cannot be written.
const COVER: &str = "/run/coracle-machine-id";
/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `linux/random.h`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

//! Finds the block device that `root=` names, by the kernel's own lists and by the content of each device.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use coracle_agent::root_device::RootDevice;

use super::superblock::{Content, Superblock, uuid};

/// The time that a device may take to appear, unless the user waits forever. Its driver was loaded just
/// before.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
const DEVICE_POLL: Duration = Duration::from_millis(5);
/// The interval of the search if each round reads from the devices.
const CONTENT_POLL: Duration = Duration::from_millis(50);

/// Waits for a device and returns its node; `None` if it does not appear.
pub(super) fn wait_for(device: &RootDevice, for_ever: bool) -> Option<PathBuf> {
    let period = if device.needs_initramfs() { CONTENT_POLL } else { DEVICE_POLL };
    let start = Instant::now();
    loop {
        if let Some(node) = find(device) {
            return Some(node);
        }
        if !for_ever && start.elapsed() > DEVICE_LIMIT {
            return None;
        }
        thread::sleep(period);
    }
}

fn find(device: &RootDevice) -> Option<PathBuf> {
    let node = match device {
        RootDevice::Path(path) => PathBuf::from(path),
        RootDevice::Numbers(major, minor) => {
            let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
            node(event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?)
        }
        RootDevice::PartitionLabel(label) => first(|name| event_has(name, &format!("PARTNAME={label}")))?,
        RootDevice::PartitionUuid(id) => first(|name| partition_uuid(name).as_ref() == Some(id))?,
        RootDevice::Uuid(id) => {
            first(|name| superblock(name).and_then(|found| found.uuid).as_ref() == Some(id))?
        }
        RootDevice::Label(label) => {
            first(|name| superblock(name).and_then(|found| found.label).as_ref() == Some(label))?
        }
    };
    fs::metadata(&node).is_ok().then_some(node)
}

/// Returns the block devices with their contents, for a message.
pub(super) fn listed() -> String {
    let described = |name: &String| match superblock(name) {
        None => name.clone(),
        Some(Superblock { kind, uuid, label }) => {
            let uuid = uuid.map_or_else(String::new, |uuid| format!(" UUID={uuid}"));
            let label = label.map_or_else(String::new, |label| format!(" LABEL={label}"));
            format!("{name} ({kind}{uuid}{label})")
        }
    };
    let names = block_devices();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.iter().map(described).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the nodes of the partitions of a device.
pub(super) fn partitions_of(device: &Path) -> Vec<String> {
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let is_part = |part: &String| parent(part).is_some_and(|parent| parent == name);
    block_devices().into_iter().filter(is_part).map(|part| format!("/dev/{part}")).collect()
}

fn first(is_it: impl Fn(&str) -> bool) -> Option<PathBuf> {
    block_devices().into_iter().find(|name| is_it(name)).map(|name| node(&name))
}

fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn superblock(name: &str) -> Option<Superblock> {
    match Content::of(&node(name)) {
        Ok(Content::FileSystem(found)) => Some(found),
        Ok(_) | Err(_) => None,
    }
}

fn event_has(name: &str, wanted: &str) -> bool {
    let event = fs::read_to_string(format!("/sys/class/block/{name}/uevent"));
    event.is_ok_and(|event| event.lines().any(|line| line == wanted))
}

/// Returns the identity of a partition. Linux has had it in `uevent` only since 6.9, so it is read from the
/// disk's table.
fn partition_uuid(name: &str) -> Option<String> {
    let number = fs::read_to_string(format!("/sys/class/block/{name}/partition")).ok()?;
    let disk = File::open(node(&parent(name)?)).ok()?;
    table_entry(&|buffer, offset| disk.read_exact_at(buffer, offset), number.trim().parse().ok()?)
}

/// Returns the disk of a partition.
fn parent(name: &str) -> Option<String> {
    let device = Path::new("/sys/class/block").join(name);
    fs::metadata(device.join("partition")).ok()?;
    Some(fs::canonicalize(device).ok()?.parent()?.file_name()?.to_str()?.to_owned())
}

/// Returns the identity that a table gives to the partition `number`, which counts from 1: the GUID of a GPT
/// (UEFI 2.10, 5.3.3), or the signature of an MBR (5.2.1) with the number, in Linux's form.
fn table_entry(read: &dyn Fn(&mut [u8], u64) -> io::Result<()>, number: u64) -> Option<String> {
    for block in [512_u64, 4096] {
        let mut header = [0; 92];
        if read(&mut header, block).is_err() || !header.starts_with(b"EFI PART") {
            continue;
        }
        let entries = u64::from_le_bytes(*header.get(72..)?.first_chunk()?);
        let count = u32::from_le_bytes(*header.get(80..)?.first_chunk()?);
        let size = u32::from_le_bytes(*header.get(84..)?.first_chunk()?);
        let index = number.checked_sub(1).filter(|index| *index < count.into())?;
        let entry = entries.checked_mul(block)?.checked_add(index.checked_mul(size.into())?)?;
        let mut id = [0; 16];
        read(&mut id, entry.checked_add(16)?).ok()?;
        // The first three fields are little-endian.
        let [a, b, c, d, e, f, g, h, rest @ ..] = id;
        let [i, j, k, l, m, n, o, p] = rest;
        return Some(uuid([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]));
    }
    let mut signature = [0; 4];
    read(&mut signature, 440).ok()?;
    Some(format!("{:08x}-{number:02x}", u32::from_le_bytes(signature)))
}

fn block_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(disk: &[u8], number: u64) -> Option<String> {
        let read = |buffer: &mut [u8], offset: u64| {
            let rest =
                usize::try_from(offset).ok().and_then(|offset| disk.get(offset..)?.get(..buffer.len()));
            rest.map(|rest| buffer.copy_from_slice(rest)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        table_entry(&read, number)
    }

    #[test]
    fn partitions_have_the_identities_that_linux_gives_them() {
        for block in [512, 4096] {
            let mut disk = vec![0; 32 << 10];
            disk[440..444].copy_from_slice(&[0xcd, 0xab, 0x23, 0x01]);
            assert_eq!(entry(&disk, 1).as_deref(), Some("0123abcd-01"));
            assert_eq!(entry(&disk, 15).as_deref(), Some("0123abcd-0f"));
            disk[block..][..8].copy_from_slice(b"EFI PART");
            disk[block + 72..][..8].copy_from_slice(&2_u64.to_le_bytes());
            disk[block + 80..][..4].copy_from_slice(&4_u32.to_le_bytes());
            disk[block + 84..][..4].copy_from_slice(&256_u32.to_le_bytes());
            let id: Vec<u8> = (0..16).collect();
            disk[2 * block + 256 + 16..][..16].copy_from_slice(&id);
            assert_eq!(entry(&disk, 2).as_deref(), Some("03020100-0504-0706-0809-0a0b0c0d0e0f"));
            assert_eq!(entry(&disk, 5), None);
            assert_eq!(entry(&disk, 0), None);
            // A table that points outside the disk, and one that points nowhere.
            for entries in [1000, u64::MAX] {
                disk[block + 72..][..8].copy_from_slice(&entries.to_le_bytes());
                assert_eq!(entry(&disk, 2), None);
            }
        }
    }
}

//! The files `state` and `manifest.json` of a snapshot, as a restore reads them before it asks KVM.

use coracle::fuzzing::{read_manifest, read_state};

/// An input that begins with `{` is a manifest, and any other a state; the first bytes of its id choose the
/// number of vCPUs and the size of RAM. It is read as it is, and then with checksums that match.
pub fn snapshot_state(data: &[u8]) {
    if data.first() == Some(&b'{') {
        // Whatever was read is written in one way only.
        if let Ok(written) = read_manifest(data) {
            assert_eq!(read_manifest(&written).unwrap(), written);
        }
        return;
    }
    let at = |index: usize| data.get(index).copied().unwrap_or_default();
    let (vcpus, memory_mib) = (at(16) % 65, u64::from(at(17)) << u32::from(at(18) % 16));
    for file in [data.to_vec(), repaired(data)] {
        if let Ok(written) = read_state(&file, vcpus, memory_mib) {
            let again = read_state(&written, vcpus, memory_mib).unwrap();
            assert_eq!(again, written);
        }
    }
}

/// Makes the checksums match, as far as there are any.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    let Some(header) = file.first_chunk_mut::<HEADER>() else { return file };
    repair(header);
    let mut at = HEADER;
    while let Some((header, content)) =
        file.get_mut(at..).and_then(|rest| rest.split_first_chunk_mut::<HEADER>())
    {
        let len = u32::from_le_bytes([header[28], header[29], header[30], header[31]]) as usize;
        let Some(content) = content.get(..len) else { break };
        header[32..36].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
        repair(header);
        at += HEADER + len;
    }
    file
}

fn repair(header: &mut [u8; HEADER]) {
    let checksum = crc32fast::hash(&header[..HEADER - 4]);
    header[HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
}

/// The bytes of the file's header, and of that of a section.
const HEADER: usize = 40;

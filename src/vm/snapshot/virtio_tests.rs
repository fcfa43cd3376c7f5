//! Devices through the files of a snapshot, without a machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_arch::nameless_file;
use coracle_devices::backend::disk::{FrozenDisk, FrozenLayer};
use coracle_devices::state::SavedState;
use coracle_devices::virtio::state::SavedDevice;
use vmm_sys_util::tempdir::TempDir;

use super::host;
use super::virtio::{self, Devices};
use crate::config::VmConfig;
use crate::snapshot_files::{Draft, MachineFacts, Snapshot};
use crate::virtio::{ConsoleSpec, Content, KnownDisk, Link, TemplateDevice, made_config};

fn device(id: &str, link: Link, content: Content) -> TemplateDevice {
    TemplateDevice { id: id.parse().unwrap(), link, content, identity: None }
}

fn disk(capacity: u64, is_read_only: bool) -> KnownDisk {
    KnownDisk { capacity, is_read_only, queues: 1, serial: String::new() }
}

/// A file with `byte` at one offset, and else a hole.
fn sparse(len: u64, offset: u64, byte: u8) -> Arc<File> {
    let file = nameless_file::create_in_memory(c"blocks", 0).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(&[byte], offset).unwrap();
    Arc::new(file)
}

/// Writes a snapshot of a machine with these devices.
fn store(devices: &[TemplateDevice]) -> Result<(TempDir, PathBuf), String> {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("snapshot");
    let state = SavedDevice { transport: SavedState::encode(1, &1_u8), device: SavedState::encode(1, &2_u8) };
    let states: Vec<_> = devices.iter().map(|device| (device.id.to_string(), state.clone())).collect();
    let draft = Draft::begin(&path).unwrap();
    draft.memory(2 << 20).unwrap();
    let (stored, facts) = virtio::store(&draft, devices, &states).map_err(|error| error.to_string())?;
    let mut config = VmConfig::new("kernel");
    config.memory = "2M".parse().unwrap();
    draft.finish(host::facts(), MachineFacts::of(&config), facts, &stored.encode()).unwrap();
    Ok((folder, path))
}

fn load(path: &Path) -> (Vec<TemplateDevice>, VmConfig) {
    let Snapshot { manifest, mut sections, disks, .. } = Snapshot::open(path).unwrap();
    let stored = Devices::decode(&mut sections).unwrap();
    sections.finish().unwrap();
    assert_eq!(stored.states().len(), manifest.devices.len());
    let mut config = VmConfig::default();
    let devices = virtio::load(path, &stored, &manifest.devices, disks, &mut config).unwrap();
    (devices, config)
}

#[test]
fn blocks_that_are_at_no_path_come_back_from_the_files() {
    let capacity = 5 << 20;
    let layer = |offset: u64, byte| {
        let mut present = vec![0_u8; 160];
        present[offset as usize >> 15] = 1 << (offset >> 12 & 7);
        Arc::new(FrozenLayer::of_file(sparse(capacity, offset, byte), &present, capacity).unwrap())
    };
    let whole = FrozenDisk::read_only(sparse(3 << 20, 2 << 20, 9), 3 << 20);
    let devices = [
        device("a", Link::Disk(disk(capacity, false), "/a,cow".parse().unwrap()), {
            Content::Layers(vec![layer(4 << 20, 1), layer(0, 2)])
        }),
        device("b", Link::Disk(disk(4096, false), "/b,cow".parse().unwrap()), Content::Layers(vec![])),
        device("root", Link::Disk(disk(3 << 20, true), made_config()), Content::Shared(whole)),
        device("c", Link::Disk(disk(capacity, false), "/c,cow".parse().unwrap()), {
            Content::Layers(vec![layer(1 << 20, 3)])
        }),
        device("rng0", Link::Plain(crate::virtio::PLAIN[0]), Content::AtPath),
        device("console0", Link::Console(ConsoleSpec::Both), Content::AtPath),
    ];
    let (_folder, path) = store(&devices).unwrap();
    let (loaded, config) = load(&path);
    assert!(config.rng && !config.balloon);
    let infos = |devices: &[TemplateDevice]| devices.iter().map(TemplateDevice::info).collect::<Vec<_>>();
    assert_eq!(infos(&loaded), infos(&devices));
    assert!(matches!(loaded[5].link, Link::Console(ConsoleSpec::Both)));
    let again = |content: &Content| {
        let file = nameless_file::create_in_memory(c"again", 0).unwrap();
        let present = FrozenLayer::store(content.layers(), capacity, &file).unwrap();
        let read = |offset| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        (present.iter().map(|byte| byte.count_ones()).sum::<u32>(), read(0), read(1 << 20), read(4 << 20))
    };
    assert_eq!(again(&loaded[0].content), (2, 2, 0, 1));
    assert_eq!(again(&loaded[1].content), (0, 0, 0, 0));
    assert_eq!(again(&loaded[3].content), (1, 0, 3, 0));
    let Content::Shared(whole) = &loaded[2].content else { panic!("{:?}", loaded[2]) };
    let mut byte = [0];
    whole.base().read_exact_at(&mut byte, 2 << 20).unwrap();
    assert_eq!(byte, [9]);
    assert!(super::check(&path).unwrap_err().to_string().contains("section `vcpus` is missing"));
}

#[test]
fn disks_that_are_too_large_for_a_snapshot_are_named() {
    let capacity = (1 << 40) + 512;
    let layer = Arc::new(FrozenLayer::of_file(sparse(512, 0, 1), &[1], capacity).unwrap());
    let link = Link::Disk(disk(capacity, false), "/a,cow".parse().unwrap());
    let error = store(&[device("large", link, Content::Layers(vec![layer]))]).map(drop).unwrap_err();
    let expected =
        "disk-large: the disk has 1099511628288 bytes, and at most 1099511627776 can be in a snapshot";
    assert!(error.contains(expected), "{error}");
}

//! Snapshots of each format that there has been, as they were written then (`tests/goldens/snapshot-FORMAT`):
//! today's version decodes all of them, and lets their machines go on where KVM and the CPU are the same.
//!
//! `CORACLE_NEW_GOLDEN=1 cargo test --test goldens` writes one of today's format. The old ones are never
//! written again.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use common::forks::{Piped, builder};
use coracle::fuzzing::{read_manifest, read_state, show_state};
use coracle::{SnapshotError, Vm, snapshot};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;

/// The format that this version writes.
const PRESENT: u32 = 1;
/// The memory of their machines.
const MIB: u64 = 16;

fn folder(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/snapshot-{format}"))
}

/// Breaks the text of a structure into lines.
fn lines(fields: &str) -> String {
    let (mut text, mut width) = (String::new(), 0);
    for piece in fields.split_inclusive(", ") {
        if width + piece.len() > 118 || piece.contains('{') {
            text = text.trim_end().to_owned() + "\n";
            width = 0;
        }
        text += piece;
        width += piece.len();
    }
    text + "\n"
}

/// Writes a disk of 64 sectors, of which sector n has bytes with the value 65 + n.
fn disk(path: PathBuf) -> PathBuf {
    fs::write(&path, (0..64 * 512).map(|at| (at / 512) as u8 + b'A').collect::<Vec<u8>>()).unwrap();
    path
}

fn write_packed(path: &Path, content: &[u8]) {
    let mut packed = GzEncoder::new(File::create(path).unwrap(), Compression::best());
    packed.write_all(content).unwrap();
    packed.finish().unwrap();
}

fn unpack(from: &Path, to: &Path) {
    let mut content = Vec::new();
    GzDecoder::new(File::open(from).unwrap()).read_to_end(&mut content).unwrap();
    fs::write(to, content).unwrap();
}

/// Asks the guest for the letters of two sectors.
fn sectors(guest: &mut Piped) -> [u8; 2] {
    guest.send(b"?");
    let mut letters = [0; 2];
    guest.output.read_exact(&mut letters).unwrap();
    letters
}

/// Makes the golden of the present format: a machine with one device of each kind that needs nothing of the
/// host, and a copy-on-write disk to which its guest has written.
fn write_present() {
    // The files have these paths.
    let around = Path::new("/tmp/golden");
    fs::create_dir_all(around).unwrap();
    let (kernel, path) = (around.join("guest.elf"), around.join("snapshot"));
    fs::copy(common::payload("disk-cell"), &kernel).unwrap();
    let disk = format!("path={},cow,id=data", disk(around.join("data.img")).display());
    let mut guest = Piped::start(builder("disk-cell").configure(|config| {
        config.kernel = Some(kernel);
        config.disks.push(disk.parse().unwrap());
        config.vsock = Some("cid=3".parse().unwrap());
        config.rng = true;
        config.balloon = true;
    }));
    guest.send(b"x");
    assert_eq!(sectors(&mut guest), *b"Gx");
    guest.vm.snapshot_to(&path).unwrap();
    let to = folder(PRESENT);
    fs::create_dir_all(&to).unwrap();
    for plain in ["manifest.json", "state"] {
        fs::copy(path.join(plain), to.join(plain)).unwrap();
    }
    for packed in ["memory", "disk-data"] {
        write_packed(&to.join(format!("{packed}.gz")), &fs::read(path.join(packed)).unwrap());
    }
    let state = fs::read(path.join("state")).unwrap();
    fs::write(to.join("fields.txt"), lines(&show_state(&state, 1, MIB).unwrap())).unwrap();
    // With more devices than those of most machines, it is whole, too.
    snapshot::check(&path).unwrap();
    fs::remove_dir_all(around).unwrap();
}

#[test]
fn files_of_each_format_have_the_fields_that_they_had() {
    if std::env::var_os("CORACLE_NEW_GOLDEN").is_some() {
        write_present();
    }
    for format in 1..=PRESENT {
        let folder = folder(format);
        let read = |name: &str| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (manifest, state) = (read("manifest.json"), read("state"));
        assert!(manifest.len() + state.len() <= 64 << 10);
        let json: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(json["format"], format, "it is the golden of that format");
        // Brought to today's version. That of the present format is the same bytes.
        let today: Value = serde_json::from_slice(&read_manifest(&manifest).unwrap()).unwrap();
        for (field, value) in json.as_object().unwrap() {
            let changes = ["format", "sha256"].contains(&field.as_str());
            assert!(
                changes || today[field] == *value,
                "format {format}, {field}: {} of {value}",
                today[field]
            );
        }
        let again = read_state(&state, 1, MIB).unwrap();
        let shown = lines(&show_state(&state, 1, MIB).unwrap());
        assert_eq!(lines(&show_state(&again, 1, MIB).unwrap()), shown, "format {format}");
        let golden = String::from_utf8(read("fields.txt")).unwrap();
        for (number, (line, expected)) in shown.lines().zip(golden.lines()).enumerate() {
            assert_eq!(line, expected, "format {format}, line {}", number + 1);
        }
        assert_eq!(shown.len(), golden.len());
        if format == PRESENT {
            assert_eq!(again, state);
            assert_eq!(today, json);
        }
    }
}

#[test]
fn machines_of_each_format_go_on_where_kvm_and_the_cpu_are_theirs() {
    if !common::kvm_or_skip() {
        return;
    }
    for format in 1..=PRESENT {
        let (from, path) = (folder(format), common::fresh_path(&format!("golden-{format}")));
        fs::create_dir(&path).unwrap();
        for plain in ["manifest.json", "state"] {
            fs::copy(from.join(plain), path.join(plain)).unwrap();
        }
        for packed in ["memory", "disk-data"] {
            unpack(&from.join(format!("{packed}.gz")), &path.join(packed));
        }
        let disk = format!("path={},cow", disk(common::fresh_path("golden.img")).display()).parse().unwrap();
        match Vm::restore(&path).console_piped().disk("data", disk).start() {
            Ok(vm) => {
                snapshot::check(&path).unwrap();
                let mut guest = Piped::of(vm);
                assert_eq!(sectors(&mut guest), *b"Gx", "format {format}");
                guest.send(b"q");
                guest.exits(0);
            }
            Err(
                error @ (SnapshotError::KvmKind { .. }
                | SnapshotError::CpuVendor { .. }
                | SnapshotError::CpuFeatures { .. }),
            ) => common::skip(&format!("the golden of format {format} was made elsewhere: {error}")),
            Err(error) => panic!("format {format}: {error}"),
        }
    }
}

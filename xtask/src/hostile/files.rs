//! Attacks by files from elsewhere: roots, kernels, initrds, suites, config files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use coracle_payload::Payload;

use super::case::{Case, MemoryLimit};
use super::scene::Scene;
use super::tar::{Tar, record};
use super::watch::{End, Run};

/// Returns the attacks by files. All of them have to be refused, each with one sentence.
pub(super) fn cases() -> Vec<Case> {
    vec![
        refused("tar: sparse map for every member", "root.tar", |scene| {
            let map = record("GNU.sparse.map", &vec!["0,0"; 131_000].join(","));
            global_tar(scene, &(map + &record("GNU.sparse.realsize", "0")))
        }),
        refused("tar: attributes for every member", "root.tar", |scene| {
            let records = (0..20_000).map(|number| record(&format!("SCHILY.xattr.user.{number}"), "x"));
            global_tar(scene, &records.collect::<String>())
        }),
        refused("tar: a header that promises 8 GiB", "root.tar", |scene| {
            let path = scene.path("root.tar");
            let mut tar = Tar::create(&path)?;
            tar.member("pax", b'x', (8 << 30) - 1, b"")?;
            tar.end()?;
            with_root(scene, &path)
        }),
        refused("tar: ends in the middle of a member", "root.tar", |scene| {
            let path = scene.path("root.tar");
            let mut tar = Tar::create(&path)?;
            tar.member("file", b'0', 1 << 30, b"short")?;
            tar.end()?;
            with_root(scene, &path)
        }),
        refused("tar: zstd, 4 KB that keep 512 MiB in a window of 128 MiB", "root.tar.zst", |scene| {
            with_root(scene, &scene.file("root.tar.zst", &zstd_zeroes(512))?)
        }),
        refused("kernel: zstd, 16 MiB in a window of 128 MiB", "a file of zeros", |scene| {
            let packed = [zstd_zeroes(16), (16_u32 << 20).to_le_bytes().to_vec()].concat();
            let payload = Payload::named("exit-7").context("there is no payload exit-7")?;
            let mut image = payload.bzimage(&packed);
            // The memory that the kernel reserves (Documentation/arch/x86/boot.rst, `init_size`).
            image.get_mut(0x260..0x264).context("a header")?.copy_from_slice(&(1_u32 << 30).to_le_bytes());
            let kernel = scene.file("vmlinuz", &image)?;
            file_command(scene, "run", &["--accel", "kvm", "--timeout", "1s", "--protocol", "pvh"], &kernel)
        }),
        refused("kernel: a device without end", "/dev/zero", |scene| {
            file_command(scene, "run", &[], Path::new("/dev/zero"))
        }),
        refused("kernel: a FIFO", "kernel", |scene| file_command(scene, "run", &[], &scene.fifo("kernel")?)),
        refused("initrd: a FIFO", "initrd", |scene| {
            let kernel = scene.payload("hello")?;
            let mut run = file_command(scene, "run", &["--accel", "kvm", "-i"], &scene.fifo("initrd")?)?;
            run.command.arg(kernel);
            Ok(run)
        }),
        refused("suite: a device without end", "/dev/zero", |scene| {
            file_command(scene, "test", &["--suite"], Path::new("/dev/zero"))
        }),
        refused("suite: a FIFO", "suite.toml", |scene| {
            file_command(scene, "test", &["--suite"], &scene.fifo("suite.toml")?)
        }),
        refused("suite: 10^12 cases", "suite.toml", |scene| {
            let values = (1..=100).map(|number| format!("\"{number}M\"")).collect::<Vec<_>>().join(", ");
            let append = values.replace('M', "a");
            let suite = format!(
                "[matrix]\nmemory = [{values}]\nappend = [{}]\ncpus = [{}]\ntimeout = [{}]\nboot_timeout = [{}]\n\
                 idle_timeout = [{}]\n[[case]]\nname = \"x\"\n",
                append.replace(", ", "], [").replacen('"', "[\"", 1) + "]",
                (1..=100).map(|number| number.to_string()).collect::<Vec<_>>().join(", "),
                values.replace('M', "s"),
                values.replace('M', "s"),
                values.replace('M', "s"),
            );
            suite_run(scene, &suite)
        }),
        refused("suite: a pattern of 10^9 states", "suite.toml", |scene| {
            suite_run(scene, "[[case]]\nname = \"x\"\nexpect = [\"(((a{1000}){1000}){1000})\"]\n")
        }),
        refused("config: a device without end", "/dev/zero", |scene| {
            file_command(scene, "run", &["--config"], Path::new("/dev/zero"))
        }),
        refused("config: a FIFO", "vm.json", |scene| {
            file_command(scene, "run", &["--config"], &scene.fifo("vm.json")?)
        }),
        refused("config: a hundred thousand brackets", "vm.json", |scene| {
            let path = scene.file("vm.json", "[".repeat(100_000).as_bytes())?;
            file_command(scene, "run", &["--config"], &path)
        }),
    ]
}

fn refused(name: &'static str, says: &'static str, prepare: fn(&Scene) -> Result<Run>) -> Case {
    Case {
        name: name.to_owned(),
        prepare: Box::new(prepare),
        codes: &[125],
        says,
        memory: MemoryLimit::OfFile,
    }
}

/// Creates a tar with a global header and 3,000 empty files.
fn global_tar(scene: &Scene, records: &str) -> Result<Run> {
    let path = scene.path("root.tar");
    let mut tar = Tar::create(&path)?;
    tar.global(records.as_bytes())?;
    tar.empty_files(3000)?;
    tar.end()?;
    with_root(scene, &path)
}

/// Creates a Zstandard frame (RFC 8878, 3.1.1) with `mib` MiB of zeroes. Each block takes 8 bytes and expands
/// to 1 MiB: its literals are one byte, repeated a million times. No compressor writes such blocks, but
/// decoders accept them.
fn zstd_zeroes(mib: usize) -> Vec<u8> {
    // The window is 1 KiB << 17.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    let repeated = |count: u32| {
        let [low, middle, high, _] = ((count << 4) | 0b1101).to_le_bytes();
        [(5 << 3) | (2 << 1), 0, 0, low, middle, high, 0, 0]
    };
    frame.extend(repeated((1 << 20) - 1).repeat(mib));
    frame.extend(repeated(u32::try_from(mib).unwrap_or_default()));
    // The last block is empty.
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}

fn with_root(scene: &Scene, root: &Path) -> Result<Run> {
    // The kernel is that of the default guest. It is never entered: roots are read first.
    file_command(scene, "run", &["--accel", "kvm", "--timeout", "1s", "--root"], root)
}

fn suite_run(scene: &Scene, suite: &str) -> Result<Run> {
    file_command(scene, "test", &["--suite"], &scene.file("suite.toml", suite.as_bytes())?)
}

/// Returns the command `coracle SUBCOMMAND WORDS FILE`.
fn file_command(scene: &Scene, subcommand: &str, words: &[&str], file: &Path) -> Result<Run> {
    let mut command: Command = scene.coracle(subcommand);
    command.args(words).arg(file);
    let metadata = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
    let file_bytes = if metadata.is_file() { metadata.len() } else { 0 };
    Ok(Run { file_bytes, ..Run::new(command).end(End::Start) })
}

//! Tests of bad input: one sentence that names the setting, the problem and the remedy, and code 125, before
//! a guest runs.

mod common;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Finished, coracle, file, finish, payload, scratch};

fn run(kernel: &Path, args: &[&str]) -> Finished {
    finish(coracle().args(["run", "--accel", "kvm"]).arg(kernel).args(args))
}

#[track_caller]
fn refused(run: &Finished, words: &[&str]) {
    assert_eq!(run.code(), 125, "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stdout.is_empty(), "{run:?}");
    for words in words {
        assert!(run.stderr.contains(words), "{words:?} is not in {:?}", run.stderr);
    }
}

fn elf(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(payload("poweroff")).unwrap();
    change(&mut bytes);
    file(name, &bytes)
}

#[test]
fn kernels_that_are_no_files_are_refused() {
    refused(&run(Path::new("/no/such/kernel"), &[]), &["/no/such/kernel"]);
    refused(&run(Path::new("/"), &[]), &["directory"]);
    refused(&run(Path::new("/dev/null"), &[]), &["/dev/null"]);
    refused(&run(&fifo("kernel-fifo"), &[]), &["FIFO"]);
}

/// A bzImage counts as Linux, whatever it contains, and only Linux's initrds are checked.
#[test]
fn initrds_that_linux_does_not_unpack_are_named_before_it_runs() {
    let linux = file("vmlinuz", &coracle_payload::Payload::named("exit-7").unwrap().bzimage(b""));
    let mut archive = coracle_image::initramfs::Archive::default();
    archive.file("init", 0o755, vec![7; 5000]);
    let cpio = archive.finish().unwrap();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&[u8], &[&str]); 4] = [
        (&tar, &["tar archive", "--root"]),
        (b"PK\x03\x04", &["zip archive", "cpio -o -H newc"]),
        (b"070707000", &["(odc)", "cpio -o -H newc"]),
        (&cpio[..1000], &["is cut short", "which has 1000 bytes"]),
    ];
    for (bytes, words) in cases {
        let initrd = file("initrd", bytes);
        let initrd = initrd.to_str().unwrap();
        refused(&run(&linux, &["-i", initrd]), words);
        refused(&run(&linux, &["-i", initrd]), &[initrd]);
        if common::kvm_or_skip() {
            run(&payload("poweroff"), &["-i", initrd]).expect(0, "powered off");
        }
    }
}

#[test]
fn roots_in_a_form_of_their_own_are_named_with_what_works() {
    let linux = file("vmlinuz", &coracle_payload::Payload::named("exit-7").unwrap().bzimage(b""));
    let folder = scratch().join("forms");
    for (form, names, words) in [
        ("saved", &["manifest.json", "repositories"][..], ["`docker save`", "docker export"]),
        ("oci", &["oci-layout", "index.json"], ["OCI layout", "umoci unpack"]),
        (
            "single",
            &["rootfs/bin/sh", "rootfs/etc/passwd"],
            ["a single directory, rootfs", "tar -C rootfs -c ."],
        ),
    ] {
        let root = folder.join(form);
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let tar = folder.join(format!("{form}.tar"));
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.unwrap().success());
        for root in [root, tar] {
            refused(&run(&linux, &["--root", root.to_str().unwrap()]), &words);
        }
    }
}

#[test]
fn argument_that_is_not_utf8_is_named() {
    let path = std::ffi::OsStr::from_bytes(b"disk-\xff.img");
    refused(
        &finish(coracle().args(["run", "--disk"]).arg(path)),
        &["\"disk-\\xFF.img\" is not UTF-8", "another name"],
    );
}

#[test]
fn numbers_and_names_that_are_wrong_are_answered_with_what_to_write() {
    for (args, words) in [
        (&["run", "--timeout", "-1s"][..], "`-1s` is negative"),
        (&["run", "--boot-timeout", "5sec"], "write 5s"),
        (&["run", "--idle-timeout=-5"], "`-5` is negative"),
        (&["test", "--assert-boot", "-5ms"], "`-5ms` is negative"),
        (&["test", "--retries", "-1"], "-1 is not in 0..=10"),
        (&["test", "--suite", "x", "--jobs", "-1"], "-1 is not in 1..=256"),
        (&["run", "--env", "=x", "--", "true"], "it has no name: write NAME=VALUE"),
        (&["cargo-runner", "--env", "", "/bin/true"], "it has no name: write NAME=VALUE"),
        (&["cargo-runner", ""], "the program's path is empty"),
        (&["run", "--memory", "1.5G"], "write 1536M"),
        (&["run", "--memory", "-1G"], "`-1G` is negative"),
        (&["run", "--memory", "1 bytes"], "sizes are not in bytes"),
        (&["run", "--disk", "a,cow-size=0.5G"], "write 512M"),
        (&["run", "--cpus", "-1x"], "-1x vCPUs are not possible: write a whole number from 1 to 64"),
        (&["run", "--cpu-quota", "-5%"], "write percent of one CPU"),
        (&["host-emulate", "--memory", "-1G", "--", "true"], "`-1G` is negative"),
        (&["run", "--timout", "5s"], "a similar argument exists: '--timeout'"),
        (&["rum"], "a similar subcommand exists: 'run'"),
    ] {
        let run = finish(coracle().args(args));
        assert_eq!(run.code(), 125, "{args:?}: {run:?}");
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn commas_of_a_path_are_written_twice() {
    let path = file("a,b,,c.img", &[0; 1 << 20]);
    let given = path.to_str().unwrap().replace(',', ",,");
    let kernel = payload("poweroff");
    let with = |disk: &str| run(&kernel, &["--disk", disk]);
    if common::kvm_or_skip() {
        with(&format!("path={given},ro")).expect(0, "powered off");
        with(&given).expect(0, "powered off");
    }
    with(path.to_str().unwrap()).expect(125, "a comma in the path is written `,,`");
}

#[test]
fn answer_that_cannot_be_written_is_an_error_and_a_reader_that_has_gone_is_not() {
    for args in [
        &["config", "schema"][..],
        &["config", "schema", "--suite"],
        &["doctor"],
        &["doctor", "--kind"],
        &["--version"],
        &["run", "--help"],
    ] {
        let run = |stdout: Stdio| {
            let mut command = coracle();
            command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
            common::collect(command.spawn().unwrap())
        };
        let expected = run(Stdio::null());
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        run(full.into()).expect(125, "stdout cannot be written: No space left on device");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let gone = run(writer.into());
        assert_eq!((gone.code(), &gone.stderr), (expected.code(), &expected.stderr), "{args:?}");
    }
}

fn fifo(name: &str) -> PathBuf {
    let fifo = scratch().join(name);
    let path = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a valid nul-terminated string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    fifo
}

#[test]
fn kernels_of_the_wrong_kind_say_what_they_are() {
    refused(&run(&file("empty", b""), &[]), &["empty"]);
    refused(&run(&file("text", b"#!/bin/sh\necho no kernel\n"), &[]), &["script"]);
    refused(&run(&elf("elf32", |bytes| bytes[4] = 1), &[]), &["32-bit"]);
    refused(&run(&elf("elf-arm", |bytes| bytes[18] = 183), &[]), &["x86-64"]);
    refused(&run(&elf("short", |bytes| bytes.truncate(30_000)), &[]), &["short"]);
    let mut image = vec![0u8; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    refused(&run(&file("arm64-Image", &image), &[]), &["arm64"]);
    refused(&run(&file("packed.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03not really"), &[]), &["gzip", "gunzip"]);
}

#[test]
fn initrds_that_cannot_be_read_are_refused() {
    let kernel = payload("poweroff");
    refused(&run(&kernel, &["-i", "/no/such/initrd"]), &["/no/such/initrd"]);
    refused(&run(&kernel, &["-i", "/"]), &["directory"]);
    let empty = file("empty-initrd", b"");
    refused(&run(&kernel, &["-i", empty.to_str().unwrap()]), &["empty"]);
}

#[test]
fn roots_that_are_none_are_refused_and_named() {
    let root = |root: &str, more: &[&str]| run(&payload("poweroff"), &[&["--root", root], more].concat());
    refused(&root("/no/such/root", &[]), &["--root /no/such/root: it cannot be opened", "No such file"]);
    let empty = scratch().join("empty-root");
    std::fs::create_dir_all(&empty).unwrap();
    refused(&root(empty.to_str().unwrap(), &[]), &["empty-root: there is nothing in it"]);
    let script = file("root-script", b"#!/bin/sh\n");
    refused(&root(script.to_str().unwrap(), &[]), &["root-script: it is a script, but a directory, a tar"]);
    let mut tar = vec![0; 512];
    tar[..1].copy_from_slice(b"a");
    for at in [100, 108, 116, 124, 136] {
        tar[at..at + 7].copy_from_slice(b"0000007");
    }
    tar[148..156].fill(b' ');
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let cut = file("cut.tar", &tar);
    refused(&root(cut.to_str().unwrap(), &[]), &["cut.tar: it is cut short: it ends at byte 512"]);
    let packed = file("root.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03not really");
    refused(&root(packed.to_str().unwrap(), &[]), &["root.tar.gz: its gzip data cannot be unpacked"]);
    refused(&root("/etc,rw", &[]), &["rw goes with an image of ext4 only, and this is a directory"]);
    refused(&root("/etc", &["-i", script.to_str().unwrap()]), &["--root goes without -i"]);
    refused(&root("/etc", &["-a", "root=/dev/vda"]), &["--root goes without root=/dev/vda"]);
    refused(&root("/etc", &[]), &["--root needs a Linux kernel, and "]);
    let words = run(&payload("poweroff"), &["--root", "/etc,fast"]);
    assert!(words.code() == 125 && words.stderr.contains("`fast` does not go with a root"), "{words:?}");
}

#[test]
fn command_line_that_is_too_long_names_both_lengths() {
    let run = run(&payload("poweroff"), &["-a", &"x".repeat(70_000)]);
    refused(&run, &["command line", "70"]);
}

#[test]
fn values_out_of_range_are_bad_usage() {
    let kernel = payload("poweroff");
    let cases: &[(&[&str], &str)] = &[
        (&["--cpus", "0"], "from 1 to 64"),
        (&["--cpus", "65"], "from 1 to 64"),
        (&["--cpus", "-1"], "from 1 to 64"),
        (&["--memory", "1M"], "from 2M to 1T"),
        (&["--memory", "lots"], "not a size"),
        (&["--memory", "size=3M,hugepages=2M"], "give a multiple of 2M"),
        (&["--memory", "size=1G,hugepages=4K"], "hugepages=2M, hugepages=1G or memfd"),
        (&["--timeout", "soon"], "not a time"),
        (&["--timeout", "0"], "no time"),
        (&["--serial", "tty"], "stdio, pty, file=PATH, socket=PATH or null"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (args, words) in cases {
        let run = run(&kernel, args);
        assert_eq!(run.code(), 125, "{args:?}: {run:?}");
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn options_of_a_command_are_refused_without_one() {
    let run = run(&payload("poweroff"), &["--workdir", "/tmp"]);
    assert_eq!(run.code(), 125, "{run:?}");
    assert!(run.stderr.contains("COMMAND"), "{run:?}");
}

#[test]
fn serial_file_that_cannot_be_made_is_refused() {
    refused(&run(&payload("poweroff"), &["--serial", "file=/no/such/folder/log"]), &["/no/such/folder/log"]);
}

#[test]
fn serial_fifo_without_a_reader_is_refused() {
    let fifo = fifo("serial-fifo");
    refused(&run(&payload("poweroff"), &["--serial", &format!("file={}", fifo.display())]), &["serial-fifo"]);
}

/// Without QEMU in the path, starting the emulated host fails with another error.
#[test]
fn what_an_emulated_host_cannot_have_is_said_by_its_option_before_that_is_started() {
    let kernel = payload("poweroff");
    let disk = file("odd-disk", &[0; 700]);
    let one_disk = file("disk", &[0; 512]);
    let pipe = fifo("emulated-fifo");
    let (disk, pipe) = (disk.to_str().unwrap(), pipe.to_str().unwrap());
    let twice = one_disk.to_str().unwrap();
    let large = file("large-initrd", &vec![0; 4 << 20]);
    let initrd = large.to_str().unwrap();
    let missing = "No such file or directory";
    let cases: &[(&[&str], &[&str])] = &[
        (&["--disk", "/no/such/disk"], &["--disk /no/such/disk: it cannot be opened", missing]),
        (&["--disk", "path=/no/such/disk,cow"], &["--disk /no/such/disk: it cannot be opened", missing]),
        (&["--disk", "/tmp"], &["--disk /tmp: a disk has to be"]),
        (&["--disk", disk], &["odd-disk: a disk has at least one sector", "700 bytes"]),
        (&["--disk", pipe], &["emulated-fifo: a disk has to be"]),
        (&["--disk", twice, "--disk", twice], &["--disk ", "another disk of this one, has it open"]),
        (&["-i", "/no/such/initrd"], &["-i \"/no/such/initrd\"", missing]),
        (&["-i", "/dev/null"], &["-i \"/dev/null\" is a character device"]),
        (&["--cpu", "/no/such/cpu.json"], &["the CPU template /no/such/cpu.json", missing]),
        (&["--modules", "/no/such/modules"], &["--modules /no/such/modules: ", missing]),
        (&["--config", "/no/such/config"], &["/no/such/config: the config file", missing]),
        (&["--net", "tap=tap0"], &["--net tap=tap0: an emulated host cannot reach"]),
        (
            &["--net", "socket=/no/such/socket"],
            &["--net socket=/no/such/socket: an emulated host cannot reach"],
        ),
        (
            &["--vsock", "uds=/no/such/folder/s"],
            &["--vsock cid=3,uds=/no/such/folder/s: an emulated host cannot reach"],
        ),
        (&["--serial", "socket=/no/such/s"], &["--serial socket=/no/such/s: an emulated host cannot reach"]),
        (&["--cpu-affinity", "0-99"], &["--cpu-affinity 0-99: the emulated host has no CPU "]),
        (&["--cpu-affinity", "5=0"], &["--cpu-affinity 5=0: there is no vCPU 5"]),
        (&["--memory", "2M", "-i", initrd], &["--memory 2M: this kernel with 4M of initrd needs at least "]),
        (&["--serial", "file=/no/such/s"], &["--serial file=/no/such/s: it cannot be written", missing]),
    ];
    let emulated = |kernel: &Path, args: &[&str]| {
        let mut command = coracle();
        command.args(["run", "--accel", "emulate"]).arg(kernel).args(args);
        finish(
            command
                .env("PATH", "/nonexistent")
                .env_remove(coracle_agent::protocol::emulated_host::environment::MARK),
        )
    };
    for (args, words) in cases {
        refused(&emulated(&kernel, args), words);
    }
    refused(&emulated(Path::new("/no/such/kernel"), &[]), &["kernel \"/no/such/kernel\"", missing]);
    let good = emulated(&kernel, &["--disk", twice]);
    assert_eq!(good.code(), 115, "what is left to miss is QEMU: {good:?}");
}

/// The place of the guest depends on the host, and is told only when nothing is left to refuse.
#[test]
fn refused_run_does_not_mention_an_emulated_host() {
    for args in [["--net", "tap=no-such-tap"], ["--serial", "file=/no/such/s"], ["--disk", "/no/such/disk"]] {
        let mut command = coracle();
        command
            .env_remove(coracle_agent::protocol::emulated_host::environment::MARK)
            .env("PATH", "/nonexistent");
        let run = finish(command.arg("run").args(args).args(["--", "true"]));
        assert!(!run.stderr.contains("running on an emulated host"), "{run:?}");
        refused(&run, &[&format!("{}:", args.join(" "))]);
    }
}

#[test]
fn help_and_version_are_answers() {
    let help = finish(coracle().args(["run", "--help"]));
    assert_eq!(help.code(), 0);
    assert!(help.text().contains("console=ttyS0"), "the default command line is not in the help");
    assert_eq!(finish(coracle().arg("--version")).code(), 0);
    assert_eq!(finish(&mut coracle()).code(), 125);
}

#[test]
fn address_without_a_card_is_refused_before_an_emulated_host_starts() {
    let run = finish(coracle().args(["run", "--accel", "emulate", "--ip", "dhcp", "--", "true"]));
    refused(&run, &["--ip: this machine has no network card; add --net"]);
    let run = finish(coracle().args(["run", "--net", "tap=t0", "--ip", "10.0.0.2", "--", "true"]));
    assert_eq!(run.code(), 125, "{run:?}");
    assert!(run.stderr.contains("neither dhcp nor an IPv4 address such as 10.0.0.2/24"), "{run:?}");
}

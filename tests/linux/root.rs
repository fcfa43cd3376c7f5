//! Tests of roots made from directories, tars and images: what a guest finds in them, and that their source
//! is not modified.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::agent::ExecStatus;
use coracle::config::{AgentConfig, AgentPlace, RootConfig, RootForm};
use coracle::guest_data::{self, GuestData};
use coracle::{Grace, Vm};

use super::common::{self, Finished, coracle, finish, scratch};
use super::virtio::{busybox, host, packages};
use super::{data, no_linux};

/// The first program of every root here: it prints what it finds, writes, and powers off.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
echo \"root $(stat -c '%a:%u:%g' /) $(grep ' / ' /proc/mounts | tail -n 1)\"
echo \"note $(stat -c '%a:%u:%g:%h:%Y' /etc/note) $(cat /etc/note)\"
echo \"link $(readlink /link)\"
echo \"device $(stat -c '%F:%t:%T:%a' /devices/zero 2>&1) $(head -c 3 /devices/zero 2>/dev/null | od -An -tx1)\"
echo \"big $(sha256sum /big)\"
if [ -e /bin/getfattr ]; then getfattr -d -m - --absolute-names /etc/note; fi
echo written > /etc/new && rm /etc/note && echo now $(cat /etc/new) $(ls /etc)
echo \"own $(ls -a / | grep coracle)\"
sync
mount -o remount,ro /
poweroff -f
";

/// Creates a directory with a root, owned by whoever runs the tests.
pub(super) fn folder(name: &str) -> Option<PathBuf> {
    let Some(busybox) = busybox() else {
        common::skip("the packages of the default guest are not there");
        return None;
    };
    let tree = scratch().join(name);
    // Each machine counts its processes from 1, and the scratch directory is named after a process id.
    let _ = fs::remove_dir_all(&tree);
    for part in ["bin", "sbin", "etc", "proc", "dev", "sys"] {
        fs::create_dir_all(tree.join(part)).unwrap();
    }
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("sbin/init"), INIT).unwrap();
    fs::write(tree.join("etc/note"), "a note").unwrap();
    fs::hard_link(tree.join("etc/note"), tree.join("etc/other")).unwrap();
    symlink("../outside", tree.join("link")).unwrap();
    fs::write(tree.join("big"), big()).unwrap();
    for (file, mode) in [("sbin/init", 0o755), ("etc/note", 0o640), ("", 0o711)] {
        fs::set_permissions(tree.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    Some(tree)
}

fn big() -> Vec<u8> {
    (0..5_000_001_u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn boot(kernel: GuestData, root: &str) -> Finished {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(kernel));
    let run = finish(command.args(["-a", "quiet", "--root", root]));
    run.expect(0, "the guest powered off");
    run
}

/// Returns the tuned kernel, if it has been built.
fn tuned() -> Option<GuestData> {
    guest_data::find(GuestData::TunedVmlinux).ok().map(|_| GuestData::TunedVmlinux)
}

/// Returns what the guest printed after `word`.
#[track_caller]
fn said(run: &Finished, word: &str) -> String {
    let text = run.text();
    let mut lines = text.lines().map(str::trim);
    lines
        .find_map(|line| line.strip_prefix(word))
        .unwrap_or_else(|| panic!("{word:?}: {run:?}"))
        .trim()
        .to_owned()
}

/// Checks that the guest found the content of [`folder`], and could write.
#[track_caller]
fn expect_root(run: &Finished, tree: &Path, owner: &str) {
    let sum = host("sha256sum", &[tree.join("big").to_str().unwrap()]);
    assert_eq!(said(run, "big "), sum.replace(tree.join("big").to_str().unwrap(), "/big").trim());
    let note = said(run, "note ");
    assert!(note.starts_with(&format!("640:{owner}:2:")) && note.ends_with(" a note"), "{note}");
    assert_eq!(said(run, "link "), "../outside");
    assert_eq!(said(run, "now "), "written new other");
    assert!(said(run, "root ").starts_with(&format!("711:{owner} ")), "{run:?}");
    // The source is unchanged.
    assert_eq!(fs::read(tree.join("etc/note")).unwrap(), b"a note");
    assert!(!tree.join("etc/new").exists());
}

fn words(path: &Path, words: &str) -> String {
    format!("path={}{words}", path.display())
}

/// For root, the ids are the caller's own, 0; otherwise they become 0.
#[test]
fn small_folder_is_the_initramfs() {
    needs_linux!();
    let Some(tree) = folder("small") else { return };
    let run = boot(GuestData::GuestVmlinuz, tree.to_str().unwrap());
    expect_root(&run, &tree, "0:0");
    assert!(said(&run, "root ").contains("rootfs / rootfs"), "{run:?}");
    assert_eq!(said(&run, "own"), "", "nothing of the loader's is left");
}

/// The program alone, for a user who has nothing of Coracle's but a kernel.
#[test]
fn command_runs_in_a_root_without_any_file_of_the_default_guest() {
    needs_linux!();
    let doctor = finish(coracle().arg("doctor"));
    if !doctor.text().lines().any(|line| line.contains("guest agent") && line.contains("in this program")) {
        return common::skip("this coracle has no agent in it");
    }
    let Some(kernel) = tuned() else { return common::skip("the tuned kernel has not been built") };
    let Some(tree) = folder("alone") else { return };
    let empty = scratch().join("empty");
    fs::create_dir_all(&empty).unwrap();
    let mut command = coracle();
    for folder in ["CORACLE_DATA", "XDG_CACHE_HOME", "HOME"] {
        command.env(folder, &empty);
    }
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(kernel)).arg("--root").arg(&tree);
    let run = finish(command.args(["--", "/bin/busybox", "sh", "-c", "echo alone; exit 7"]));
    assert_eq!((run.code(), run.text().trim()), (7, "alone"), "{run:?}");
}

#[test]
fn folder_on_a_disk_is_written_to_in_memory_by_the_stock_and_the_tuned_kernel() {
    needs_linux!();
    let Some(tree) = folder("on-disk") else { return };
    for kernel in [GuestData::GuestVmlinuz].into_iter().chain(tuned()) {
        let run = boot(kernel, &words(&tree, ",as=disk"));
        expect_root(&run, &tree, "0:0");
        assert!(said(&run, "root ").contains("overlay / overlay"), "{run:?}");
    }
}

#[test]
fn tar_keeps_owners_devices_and_attributes_without_privilege() {
    needs_linux!();
    let Some(tree) = folder("tarred") else { return };
    add_program(&tree, "/usr/bin/getfattr");
    let plain = scratch().join("root.tar");
    let mut bytes = device("devices/zero", 1, 5);
    let args = [
        "-C",
        tree.to_str().unwrap(),
        "-cf",
        plain.to_str().unwrap(),
        "--owner=7",
        "--group=70000",
        "--format=posix",
        "--pax-option=SCHILY.xattr.user.note:=a value,SCHILY.xattr.security.note:=kept",
        ".",
    ];
    host("tar", &args);
    bytes.extend(fs::read(&plain).unwrap());
    fs::write(&plain, &bytes).unwrap();
    host("gzip", &["-kf", plain.to_str().unwrap()]);
    let packed = plain.with_extension("tar.gz");
    let tuned = tuned().map(|kernel| (kernel, &packed));
    for (kernel, tar) in [(GuestData::GuestVmlinuz, &plain)].into_iter().chain(tuned) {
        let run = boot(kernel, tar.to_str().unwrap());
        expect_root(&run, &tree, "7:70000");
        assert!(said(&run, "root ").contains("overlay / overlay"), "{run:?}");
        assert_eq!(said(&run, "device "), "character special file:1:5:666  00 00 00");
        assert!(run.text().contains("user.note=\"a value\""), "{run:?}");
        // A tuned kernel that was built some time ago may lack CONFIG_EROFS_FS_SECURITY.
        let is_kept = run.text().contains("security.note=\"kept\"");
        assert!(is_kept || kernel != GuestData::GuestVmlinuz, "{run:?}");
    }
    assert!(fs::read(&plain).unwrap() == bytes);
}

#[test]
fn images_are_used_as_they_are_and_written_to_where_that_is_wanted() {
    needs_linux!();
    let Some(tree) = folder("imaged") else { return };
    let (from, image) = (tree.to_str().unwrap(), |name: &str| scratch().join(name));
    let ext4 = image("root.ext4");
    let erofs = image("root.erofs");
    let squashfs = image("root.squashfs");
    host("mkfs.ext4", &["-q", "-E", "root_owner=0:0", "-d", from, ext4.to_str().unwrap(), "24M"]);
    host("mkfs.erofs", &["--all-root", erofs.to_str().unwrap(), from]);
    host(
        "mksquashfs",
        &[from, squashfs.to_str().unwrap(), "-noappend", "-all-root", "-quiet", "-no-progress"],
    );
    let before = fs::read(&ext4).unwrap();
    for (image, kind) in [(&ext4, "ext4"), (&erofs, "overlay"), (&squashfs, "overlay")] {
        let limit = if kind == "ext4" { ",cow-size=64M" } else { "" };
        let run = boot(GuestData::GuestVmlinuz, &words(image, limit));
        assert!(said(&run, "root ").contains(&format!(" / {kind} ")), "{run:?}");
        assert_eq!(said(&run, "now "), "written new other");
    }
    assert!(fs::read(&ext4).unwrap() == before);
    boot(GuestData::GuestVmlinuz, &words(&ext4, ",rw"));
    host("fsck.ext4", &["-fn", ext4.to_str().unwrap()]);
    assert_eq!(host("debugfs", &["-R", "cat /etc/new", ext4.to_str().unwrap()]), "written\n");
}

#[test]
fn disk_that_root_names_boots_with_the_default_kernel_too() {
    needs_linux!();
    let Some(tree) = folder("on-its-disk") else { return };
    let image = scratch().join("own.ext4");
    let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
    host("mkfs.ext4", &["-q", "-E", "root_owner=0:0", "-d", from, to, "24M"]);
    let run = |words: &[&str]| {
        let mut command = coracle();
        command.args(["run", "--accel", "kvm", "--timeout", "200s", "-a", "root=/dev/vda rw", "--disk"]);
        finish(command.arg(format!("path={to},cow,cow-size=64M")).args(words))
    };
    let init = run(&[]);
    init.expect(0, "the guest powered off");
    assert!(said(&init, "root ").contains(" / ext4 rw"), "{init:?}");
    let outcome = scratch().join("own.json");
    let command = run(&["--outcome", outcome.to_str().unwrap(), "--", "/bin/busybox", "cat", "/etc/note"]);
    command.expect(0, "");
    assert_eq!(command.text(), "a note");
    let outcome = super::outcome(&outcome);
    assert!(outcome["times_ms"]["kernel"].as_f64().is_some_and(|time| time > 0.0), "{outcome}");
}

/// Debian's kernel for any machine, from which the emulated host's is made, has ext4 as a module, which needs
/// a checksum through a soft dependency only. The unpacked package has no `modules.dep`.
#[test]
fn root_on_a_file_system_that_is_a_module_is_found_and_mounted() {
    needs_linux!();
    let boot =
        packages("linux-image-", "boot").into_iter().flat_map(|boot| fs::read_dir(boot).unwrap().flatten());
    let is_full = |name: &str| name.starts_with("vmlinuz-") && !name.contains("cloud");
    let kernel =
        boot.map(|entry| entry.path()).find(|path| is_full(path.file_name().unwrap().to_str().unwrap()));
    let Some(kernel) = kernel else {
        return common::skip("the package of the emulated host's kernel is not there");
    };
    let Some(tree) = folder("on-a-module") else { return };
    let image = scratch().join("module.ext4");
    let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let id = "01234567-89ab-cdef-0123-456789abcdef";
    let options = ["-q", "-O", "metadata_csum", "-L", "there", "-U", id, "-E", "root_owner=0:0", "-d"];
    host("mkfs.ext4", &[&options[..], &[from, to, "24M"]].concat());
    let boot = |root: &str| {
        let mut command = coracle();
        command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(&kernel);
        command.args([
            "-a",
            &format!("quiet rw root={root}"),
            "--disk",
            &format!("path={to},cow,cow-size=64M"),
        ]);
        finish(&mut command)
    };
    for root in ["/dev/vda", &format!("UUID={id}"), "LABEL=there"] {
        let run = boot(root);
        run.expect(0, "the guest powered off");
        assert!(said(&run, "root ").contains(" / ext4 rw"), "{run:?}");
    }
    let run = boot("LABEL=elsewhere");
    let listed =
        format!("root=LABEL=elsewhere: there is no such device; there are: vda (ext4 UUID={id} LABEL=there)");
    run.expect(110, &format!("kernel panicked: {listed}"));
}

#[test]
fn agent_runs_commands_in_a_root_in_place_of_its_init() {
    needs_linux!();
    let Some(tree) = folder("agent") else { return };
    for form in [RootForm::Initramfs, RootForm::Disk] {
        let root = RootConfig { form, ..RootConfig::new(&tree) };
        let mut agent = AgentConfig::new(AgentPlace::FirstProcess);
        agent.ready_limit = Duration::from_secs(100);
        let vm = Vm::builder().kernel(data(GuestData::GuestVmlinux)).append("quiet").root(root).agent(agent);
        let vm = vm.start().unwrap();
        let output = vm.exec(["/bin/busybox", "cat", "/etc/note"]).timeout(Duration::from_secs(100)).output();
        let output = output.unwrap();
        assert_eq!((output.status, output.stdout.as_slice()), (ExecStatus::Code(0), &b"a note"[..]));
        vm.stop(Grace(Duration::from_secs(20)));
    }
}

#[test]
fn root_without_an_init_says_so() {
    needs_linux!();
    let tree = scratch().join("no-init");
    fs::create_dir_all(tree.join("etc")).unwrap();
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(GuestData::GuestVmlinuz));
    let run = finish(command.args(["-a", "quiet", "--root"]).arg(&tree));
    run.expect(110, "kernel panicked: there is no init program on the root; init= names one");
}

/// A program of the host with its libraries; busybox does not have all of them.
pub(super) fn add_program(tree: &Path, program: &str) {
    let libraries = host("ldd", &[program]);
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries {
        let inside = tree.join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(library, inside).unwrap();
    }
    let name = Path::new(program).file_name().unwrap();
    fs::copy(program, tree.join("bin").join(name)).unwrap();
}

/// A tar member that is a character device, which only root could add with a tar program.
fn device(name: &str, major: u32, minor: u32) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000666");
    put(108, "0000000");
    put(116, "0000000");
    put(124, "00000000000");
    put(136, "00000000000");
    put(148, "        ");
    put(156, "3");
    put(257, "ustar\x0000");
    put(329, &format!("{major:07o}"));
    put(337, &format!("{minor:07o}"));
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

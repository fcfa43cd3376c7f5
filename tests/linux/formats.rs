//! Tests of stock kernels with each entry point, several initrds, and the module loader.

use std::path::{Path, PathBuf};

use coracle::guest_data::GuestData;
use coracle_image::initramfs::{Archive, ModuleTree};

use super::common::{self, file, finish};
use super::{data, linux, no_linux};

/// Returns the directory of the default guest's kernel modules, one level above that of its release.
fn modules() -> PathBuf {
    data(GuestData::GuestVmlinuz).with_file_name("modules")
}

/// Creates an initrd with a shell script as `path`, for use after the default guest's, whose busybox runs the
/// script.
fn script(name: &str, path: &str, lines: &str, add: impl FnOnce(&mut Archive)) -> String {
    let mut archive = Archive::default();
    let text = format!("#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n{lines}\n");
    archive.file(path, 0o755, text.into_bytes());
    add(&mut archive);
    file(name, &archive.finish().unwrap()).to_str().unwrap().to_owned()
}

#[test]
fn vmlinuz_unpacks_itself_to_a_random_address_where_that_is_not_switched_off() {
    needs_linux!();
    // The kernel prints at the end of its panic whether it was relocated; the panic device would end it
    // before that.
    for (args, words) in
        [(["-a", "nokaslr"].as_slice(), "Kernel Offset: disabled"), (&["--kaslr"], "Kernel Offset: 0x")]
    {
        let mut command = linux(GuestData::GuestVmlinuz, "panic");
        let run = finish(command.args(["-a", "module_blacklist=pvpanic,pvpanic_mmio"]).args(args));
        run.expect(110, "kernel panicked");
        assert!(run.text().contains(words), "{args:?}: {}", run.text());
    }
}

#[test]
fn vmlinuz_is_entered_by_its_pvh_note_on_request() {
    needs_linux!();
    let mut command = linux(GuestData::GuestVmlinuz, "poweroff");
    finish(command.args(["--protocol", "pvh"])).expect(0, "the guest powered off");
}

#[test]
fn second_initrd_overrides_and_loader_gives_way_to_its_init() {
    needs_linux!();
    let lines = "mount -t proc proc /proc\necho \"first: $0 $$\"\ncat /proc/modules\npoweroff -f";
    let second = script("override.cpio", "/init", lines, |_| ());
    let mut command = linux(GuestData::GuestVmlinuz, "report");
    command.args(["-i", &second, "-a", "rdinit=/coracle/init", "--modules"]).arg(modules());
    let run = finish(&mut command);
    run.expect(0, "the guest powered off");
    let text = run.text();
    assert!(text.contains("first: /init 1"), "{text}");
    assert!(text.contains("virtio_mmio "), "{text}");
    assert!(!text.contains("coracle guest"), "the first archive's init has run: {text}");
}

#[test]
fn loader_without_an_initrd_says_what_is_missing() {
    needs_linux!();
    let mut command = common::coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s", "-a", "quiet"]);
    command.arg(data(GuestData::GuestVmlinuz)).arg("--modules").arg(modules());
    let run = finish(&mut command);
    run.expect(
        110,
        "kernel panicked: the modules are loaded, but there is no initrd with an /init and no root=",
    );
}

#[test]
fn loader_mounts_the_root_and_becomes_its_init() {
    needs_linux!();
    // A root in a RAM disk, created on the spot. The initrd has no /init, so that the kernel mounts the root.
    let lines = r#"mkdir -p /dev /mnt
mount -t devtmpfs dev /dev
insmod /brd.ko rd_nr=1 rd_size=16384
mke2fs -F /dev/ram0 >/dev/null
mount -t ext4 /dev/ram0 /mnt
mkdir -p /mnt/bin /mnt/sbin /mnt/proc /mnt/dev
cp /bin/busybox /mnt/bin
cp /real-init /mnt/sbin/app
umount /mnt
rm /init
exec /coracle/init word"#;
    let real = "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
                echo \"rooted: $0 $1 $$\"\n/bin/busybox cat /proc/mounts /proc/modules\n\
                ls -d /coracle\n/bin/busybox poweroff -f\n";
    let tree = modules().join(release());
    let second = script("root.cpio", "/start", lines, |archive| {
        archive.file("/real-init", 0o755, real.into());
        for module in ModuleTree::open(&tree).unwrap().closure(&["brd"]).unwrap() {
            let name = Path::new(&module.path).file_name().unwrap().to_str().unwrap().to_owned();
            archive.file(&name, 0o644, module.object);
        }
    });
    let mut command = linux(GuestData::GuestVmlinuz, "report");
    let words = "rdinit=/start root=/dev/ram0 rootfstype=erofs,ext4 rootflags=noatime rw init=/sbin/app";
    command.args(["-i", &second, "-a", words, "--modules"]).arg(modules());
    let run = finish(&mut command);
    let text = run.text();
    assert!(text.contains("rooted: /sbin/app word 1"), "{text}");
    assert!(text.contains("/dev/root / ext") || text.contains("/dev/ram0 / ext"), "{text}");
    assert!(text.contains("rw,noatime") && text.contains("virtio_mmio "), "{text}");
    run.expect(0, "the guest powered off");
}

fn release() -> String {
    let image = coracle::KernelImage::open(&data(GuestData::GuestVmlinuz)).unwrap();
    image.release().unwrap().to_owned()
}

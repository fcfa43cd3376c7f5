//! Tests of the diagnosis of guests that do not come up, with guests that any KVM runs.

mod common;

use std::fs;

use common::{coracle, finish, kvm_or_skip, scratch};
use coracle_payload::Payload;

#[test]
fn options_beside_a_silent_linux_explain_it() {
    if !kvm_or_skip() {
        return;
    }
    let folder = scratch().join("with-config");
    fs::create_dir_all(&folder).unwrap();
    let kernel = folder.join("vmlinuz");
    // An image with Linux's header that never prints anything.
    fs::write(&kernel, Payload::named("spin").unwrap().bzimage(b"BZh91AY")).unwrap();
    fs::write(folder.join("config"), "CONFIG_PRINTK=y\nCONFIG_TTY=y\nCONFIG_SERIAL_8250=m\n").unwrap();
    let mut command = coracle();
    let run = finish(command.args(["run", "--accel", "kvm", "--timeout", "200ms"]).arg(&kernel));
    run.expect(124, "hint: the kernel cannot print to console=ttyS0: CONFIG_SERIAL_8250 is not built in");
    run.expect(124, "with-config/config");
    fs::remove_file(folder.join("config")).unwrap();
    assert!(!finish(&mut command).stderr.contains("SERIAL_8250"));
}

#[test]
fn bzimage_that_calls_itself_something_else_gets_no_advice_for_linux() {
    if !kvm_or_skip() {
        return;
    }
    let linux = Payload::named("spin").unwrap().bzimage(b"BZh91AY");
    let mut other = linux.clone();
    // The text to which `kernel_version` points, 0x200 bytes before it.
    let text = usize::from(u16::from_le_bytes([linux[0x20e], linux[0x20f]])) + 0x200;
    other[text..text + 12].copy_from_slice(b"Tester v1.0\0");
    let advice = |name: &str, kernel: &[u8]| {
        let mut command = coracle();
        command.args(["run", "--accel", "kvm", "--timeout", "200ms", "-a", "quiet root=/dev/nvme0"]);
        finish(command.arg(common::file(name, kernel))).stderr.contains("hint: ")
    };
    assert!(advice("linux.img", &linux), "a silent Linux gets advice");
    assert!(!advice("other.img", &other));
}

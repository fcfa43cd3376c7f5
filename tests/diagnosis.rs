//! What is said about a guest that does not come up, with guests that any KVM runs.

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
    // A Linux by its header, which never gets as far as its first word.
    fs::write(&kernel, Payload::named("spin").unwrap().bzimage(b"BZh91AY")).unwrap();
    fs::write(folder.join("config"), "CONFIG_PRINTK=y\nCONFIG_TTY=y\nCONFIG_SERIAL_8250=m\n").unwrap();
    let mut command = coracle();
    let run = finish(command.args(["run", "--accel", "kvm", "--timeout", "200ms"]).arg(&kernel));
    run.expect(124, "hint: the kernel cannot print to console=ttyS0: CONFIG_SERIAL_8250 is not built in");
    run.expect(124, "with-config/config");
    fs::remove_file(folder.join("config")).unwrap();
    assert!(!finish(&mut command).stderr.contains("SERIAL_8250"));
}

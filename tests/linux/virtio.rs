//! Stock kernels with virtio devices, whose drivers are modules.

use super::{common, no_linux, run};

#[test]
fn default_guest_finds_its_devices_by_acpi() {
    needs_linux!();
    let run = run("report", &["--rng"]);
    run.expect(0, "the guest powered off");
    assert!(run.text().contains("virtio   virtio0 (virtio_rng)"), "{}", run.text());
}

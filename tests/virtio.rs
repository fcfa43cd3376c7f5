//! Virtio devices driven by bare payloads on `/dev/kvm` of any kind: doorbells and interrupts through KVM.

mod common;

use common::{finish, kvm_or_skip, run_payload};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn entropy_comes_with_an_interrupt_in_every_life_of_the_device() {
    needs_kvm!();
    finish(run_payload("virtio-rng").args(["--rng", "--timeout", "20s"])).expect(0, "code 0");
}

#[test]
fn machine_without_devices_has_no_register_window() {
    needs_kvm!();
    finish(run_payload("virtio-rng").args(["--timeout", "20s"])).expect(1, "code 1");
}

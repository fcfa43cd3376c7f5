//! Exits of whole boots, by kind: what the machine and its default settings save must not come back.

use coracle::guest_data::{self, GuestData};

use super::common::{self, finish, scratch};
use super::{linux, no_linux, outcome};

/// The bounds are what a boot to the first process and power-off caused when they were set, and 5 %.
#[test]
fn boot_causes_no_more_exits_than_it_did() {
    if let Some(why) = no_linux() {
        common::skip(&why);
        return;
    }
    for (kernel, name) in [(GuestData::GuestVmlinux, "stock"), (GuestData::TunedVmlinux, "tuned")] {
        // The stock kernel is there wherever Linux can be booted.
        if name == "tuned" && guest_data::find(kernel).is_err() {
            common::skip("there is no tuned kernel: `cargo xtask guest --tuned` makes it");
            continue;
        }
        let path = scratch().join(format!("exits-{name}.json"));
        let mut command = linux(kernel, "poweroff");
        finish(command.arg("--outcome").arg(&path)).expect(0, "the guest powered off");
        let exits = &outcome(&path)["exits"];
        for (kind, most) in BOUNDS {
            let count = exits[kind].as_u64().unwrap();
            println!("{name}: {kind} {count} of {most}");
            // A boot cannot do without any: 0 would be a count that nobody keeps.
            assert!((1..=most).contains(&count), "{name}: {kind} {count} of {most} in {exits}");
        }
    }
}

const BOUNDS: [(&str, u64); 4] = [("port_in", 36), ("port_out", 88), ("mmio_read", 73), ("mmio_write", 187)];

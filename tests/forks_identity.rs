//! The generation id of forks and of restored machines, in guests without an operating system.

mod common;

use std::time::Duration;

use common::forks::{Piped, builder};
use coracle::config::AcpiMode;
use coracle::{Template, Vm};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

/// The bit of the event register for a new generation id.
const NEW_GENERATION: u8 = 2;

fn id(piped: &mut Piped) -> u128 {
    let mut bytes = [0; 16];
    piped.output.read_exact(&mut bytes).unwrap();
    u128::from_le_bytes(bytes)
}

/// Returns the id that the guest reads after the interrupt that tells of it.
fn new_id(piped: &mut Piped) -> u128 {
    piped.expect(&[NEW_GENERATION]);
    id(piped)
}

fn ends(piped: &mut Piped) {
    piped.send(b"q");
    assert_eq!(piped.rest(), b"", "one interrupt each");
    piped.exits(0);
}

fn all_differ(ids: &[u128]) {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), ids.len(), "{ids:x?}");
    assert!(!ids.contains(&0), "{ids:x?}");
}

#[test]
fn each_fork_and_each_restored_machine_is_told_of_an_id_of_its_own() {
    needs_kvm!();
    let mut first = Piped::start(builder("generation"));
    let mut ids = vec![id(&mut first)];
    let folder = common::fresh_path("generation");
    first.vm.snapshot_to(&folder).unwrap();
    let template = first.freeze();
    let mut forks = Piped::forks(&template, 3);
    ids.extend(forks.iter_mut().map(new_id));
    // A fork of a fork.
    let second = forks.remove(0).freeze();
    let mut seconds = Piped::forks(&second, 2);
    ids.extend(seconds.iter_mut().map(new_id));
    for _ in 0..2 {
        let restored = Vm::restore(&folder).timeout(Duration::from_secs(60)).console_piped().start().unwrap();
        let mut restored = Piped::of(restored);
        ids.push(new_id(&mut restored));
        ends(&mut restored);
    }
    all_differ(&ids);
    forks.iter_mut().chain(&mut seconds).for_each(ends);
}

#[test]
fn machines_without_acpi_have_no_id() {
    needs_kvm!();
    let without = builder("generation").configure(|config| config.acpi = AcpiMode::Off);
    let mut first = Piped::start(without);
    assert_eq!(id(&mut first), 0);
    let template: Template = first.freeze();
    for mut fork in Piped::forks(&template, 2) {
        std::thread::sleep(Duration::from_millis(20));
        ends(&mut fork);
    }
}

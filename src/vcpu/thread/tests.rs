//! Tests of a vCPU's thread with a real vCPU.

use std::sync::Mutex;

use coracle_devices::bus::{Bus, BusBuilder, BusDevice, BusRange};

use super::*;
use crate::kvm::testing::{CODE, Machine, Ring, TestCpuid, kvm_or_skip};

const LIMIT: Duration = Duration::from_secs(60);

/// Counts its reads, and gives their number.
#[derive(Default)]
struct Counter(Mutex<u64>);

impl BusDevice for Counter {
    fn read(&self, _: u64, data: &mut [u8]) {
        let mut reads = self.0.lock().unwrap();
        *reads += 1;
        data.fill(*reads as u8);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

/// `in al, 0x12; inc rcx; jmp -7`.
const READ_FOREVER: &[u8] = &[0xe4, 0x12, 0x48, 0xff, 0xc1, 0xeb, 0xf9];
const AFTER_READ: u64 = CODE + 2;

/// Whenever a vCPU is parked, each read that it has made is in its registers, and its state can be saved and
/// restored.
#[test]
fn parked_vcpu_has_completed_its_last_access_and_can_be_saved() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, READ_FOREVER, Ring::Zero);
    let format = machine.format();
    let counter = Arc::new(Counter::default());
    let mut ports = BusBuilder::new();
    ports.insert(BusRange::new(0x12, 1), counter.clone()).unwrap();
    let mmio: Bus = BusBuilder::new().build();
    let buses = Arc::new(Buses { ports: ports.build(), mmio });
    let gate = Arc::new(Gate::new());
    let vcpu = machine.vcpus.remove(0);
    let handle = VcpuThread { vcpu, buses, gate: gate.clone() }.spawn().unwrap();
    let mut last = 0;
    for round in 0..50 {
        gate.open();
        thread::sleep(Duration::from_millis(round % 7));
        gate.pause();
        handle.kick();
        assert!(gate.wait_paused(1, LIMIT));
        let mut answer = None;
        assert!(gate.ask_parked(1, || answer = Some(handle.ask_state(format))));
        let saved = answer.unwrap().recv_timeout(LIMIT).unwrap().unwrap();
        let state = &saved.state;
        let reads = *counter.0.lock().unwrap();
        let not_counted = u64::from(state.registers.rip == AFTER_READ);
        assert_eq!(state.registers.rcx + not_counted, reads, "at {:#x}", state.registers.rip - CODE);
        if not_counted == 1 {
            assert_eq!(state.registers.rax as u8, reads as u8);
        }
        assert!(reads >= last);
        last = reads;
        let copy = Machine::new(1, TestCpuid::Guest);
        crate::kvm::restore_vcpus(&copy.vcpus, std::slice::from_ref(&saved), format, 0).unwrap();
        assert_eq!(copy.vcpus[0].save(format).unwrap().registers, state.registers);
    }
    assert!(last > 0, "the guest runs between the pauses");
    gate.stop();
    handle.kick();
    machine.vcpus.extend(handle.join());
}

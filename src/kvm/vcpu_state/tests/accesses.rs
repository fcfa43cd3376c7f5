//! A vCPU that is stopped at any place goes on exactly there: in its code, and in the middle of an access.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// No count is lost or doubled: the counts in the register and in memory stay equal over ten machines, each
/// of which is stopped at an arbitrary instruction.
#[test]
fn count_goes_on_where_it_was() {
    if !kvm_or_skip() {
        return;
    }
    let mut machine = Machine::with_code(1, count(), Ring::Three);
    let mut last = 0;
    for round in 0..10 {
        // On a busy machine a vCPU may be kicked before it has executed an instruction.
        for attempt in 1.. {
            let end = machine.run_for(0, Duration::from_millis(10 + round), until(END));
            assert_eq!(end, RunEnd::Kick);
            if machine.read_u64(DATA) > last {
                break;
            }
            assert!(attempt < 1000, "the guest runs in each machine");
        }
        let (register, memory) = (machine.vcpus[0].registers().unwrap().rcx, machine.read_u64(DATA));
        assert!(register == memory || register == memory + 1, "{register} and {memory}");
        last = memory;
        let next = machine.fork();
        // The other one goes on as well.
        machine.write(DATA + 8, &[1]);
        finish(&mut machine);
        assert_eq!(machine.vcpus[0].registers().unwrap().rcx, machine.read_u64(DATA));
        assert_eq!(next.read_u64(DATA), memory, "the machines have memory of their own");
        machine = next;
    }
    machine.write(DATA + 8, &[1]);
    finish(&mut machine);
    let registers = machine.vcpus[0].registers().unwrap();
    assert_eq!(registers.rcx, machine.read_u64(DATA));
    assert!(registers.rcx >= last);
}

/// A device that gives and takes items one after the other.
#[derive(Default)]
struct Tape {
    /// The number of bytes that were read.
    read: usize,
    written: Vec<u8>,
    /// The number of exits to let pass before the next stop.
    let_pass: usize,
    has_ended: bool,
}

impl Tape {
    /// The byte that the device gives at this place.
    fn byte(at: usize) -> u8 {
        (at * 7 + at / 256) as u8
    }

    /// Handles an exit, and returns whether to stop.
    fn handle(&mut self, exit: VcpuExit<'_>) -> bool {
        match exit {
            VcpuExit::PortIn { port: DATA_PORT, data, .. } | VcpuExit::MmioRead { data, .. } => {
                for byte in data {
                    *byte = Tape::byte(self.read);
                    self.read += 1;
                }
            }
            VcpuExit::PortOut { port: DATA_PORT, data, .. } | VcpuExit::MmioWrite { data, .. } => {
                self.written.extend_from_slice(data);
            }
            VcpuExit::PortOut { port: END, .. } => {
                self.has_ended = true;
                return true;
            }
            _ => panic!("an exit that the code does not make"),
        }
        self.let_pass = self.let_pass.saturating_sub(1);
        self.let_pass == 0
    }
}

/// Runs the machine and goes over to a copy after every `step`th access. Returns the last machine, the tape,
/// the number of copies, and the number of accesses that only completed an instruction.
fn run_in_copies(mut machine: Machine, step: usize) -> (Machine, Tape, usize, usize) {
    let tape = Arc::new(Mutex::new(Tape::default()));
    let (mut copies, mut further) = (0, 0);
    loop {
        tape.lock().unwrap().let_pass = step;
        let device = tape.clone();
        machine.run(0, move |exit| device.lock().unwrap().handle(exit));
        if tape.lock().unwrap().has_ended {
            break;
        }
        let error = machine.vcpus[0].save(machine.format()).unwrap_err();
        assert!(matches!(error, StateError::AccessPending { vcpu: 0 }), "{error}");
        further += machine.complete(0, |exit| {
            tape.lock().unwrap().handle(exit);
        });
        machine = machine.fork();
        copies += 1;
        assert!(copies < 1000, "the guest makes no progress");
    }
    let tape = std::mem::take(&mut *tape.lock().unwrap());
    (machine, tape, copies, further)
}

#[test]
fn each_port_access_happens_once() {
    if !kvm_or_skip() {
        return;
    }
    for (ring, step) in [(Ring::Three, 1), (Ring::Zero, 1), (Ring::Three, 3)] {
        let (machine, tape, copies, _) = run_in_copies(Machine::with_code(1, ports(), ring), step);
        let bytes: Vec<u8> = (0..40).map(Tape::byte).collect();
        assert_eq!(machine.read_u64(DATA), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        assert_eq!((tape.read, copies), (40, 80 / step));
        assert_eq!(tape.written, bytes);
    }
}

#[test]
fn string_input_goes_on_in_the_middle() {
    if !kvm_or_skip() {
        return;
    }
    for ring in [Ring::Three, Ring::Zero] {
        let (machine, tape, copies, _) = run_in_copies(Machine::with_code(1, string_in(), ring), 1);
        assert!(copies >= 2, "the instruction takes several exits: {copies}");
        assert_eq!(tape.read, 5000);
        assert_eq!(machine.read(DATA, 5000), (0..5000).map(Tape::byte).collect::<Vec<u8>>());
        assert_eq!(machine.read(DATA + 5000, 8), [0; 8]);
    }
}

#[test]
fn string_output_goes_on_in_the_middle() {
    if !kvm_or_skip() {
        return;
    }
    for ring in [Ring::Three, Ring::Zero] {
        let machine = Machine::with_code(1, string_out(), ring);
        let bytes: Vec<u8> = (0..60).map(|at| at as u8 ^ 0xa5).collect();
        machine.write(DATA, &bytes);
        let (machine, tape, copies, _) = run_in_copies(machine, 1);
        assert!(copies >= 2, "the instruction takes several exits: {copies}");
        assert_eq!(tape.written, bytes);
        assert_eq!((machine.read_u64(MORE_DATA), machine.read_u64(MORE_DATA + 8)), (0, DATA + 60));
    }
}

/// Wide accesses take several exits, and so does a string instruction that reads a device: all of them are
/// part of one instruction, which is completed.
#[test]
fn memory_accesses_of_a_device_are_completed() {
    if !kvm_or_skip() {
        return;
    }
    for ring in [Ring::Three, Ring::Zero] {
        let machine = Machine::with_code(1, mmio(), ring);
        let vector: Vec<u8> = (0..16).map(|at| at + 0x30).collect();
        machine.write(MORE_DATA, &vector);
        let (machine, tape, copies, further) = run_in_copies(machine, 1);
        assert!(copies >= 4, "one for each instruction: {copies}");
        assert!(further >= 2, "the wide ones have two halves: {further}");
        let mut given: VecDeque<u8> = (0..44).map(Tape::byte).collect();
        let mut next = |count| given.drain(..count).collect::<Vec<u8>>();
        assert_eq!(machine.read(DATA, 8), next(8));
        assert_eq!(machine.read(DATA + 0x10, 16), next(16));
        assert_eq!(machine.read(DATA + 0x40, 20), next(20));
        assert_eq!(tape.read, 44);
        let number = 0x1122_3344_5566_7788_u64.to_le_bytes();
        assert_eq!(tape.written, [&number[..], &vector].concat());
    }
}

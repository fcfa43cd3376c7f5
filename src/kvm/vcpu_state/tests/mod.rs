//! Tests with real vCPUs: code that is stopped in one machine goes on in another.

mod accesses;
mod equality;
mod interrupts;
mod refusals;
mod registers;
mod startup;
mod time;

use std::arch::global_asm;

use super::*;
use crate::kvm::VcpuExit;
use crate::kvm::testing::{CODE, DATA, MORE_DATA, Machine, Ring, RunEnd, TestCpuid, kvm_or_skip, skip};

global_asm!(include_str!("code.s"));

macro_rules! code {
    ($($name:ident $start:ident $end:ident)*) => {
        unsafe extern "C" { $(static $start: u8; static $end: u8;)* }
        $(fn $name() -> &'static [u8] { between(&raw const $start, &raw const $end) })*
    };
}

code! {
    count vcpu_state_count vcpu_state_count_end
    ports vcpu_state_ports vcpu_state_ports_end
    string_in vcpu_state_string_in vcpu_state_string_in_end
    string_out vcpu_state_string_out vcpu_state_string_out_end
    mmio vcpu_state_mmio vcpu_state_mmio_end
    sse vcpu_state_sse vcpu_state_sse_end
    avx vcpu_state_avx vcpu_state_avx_end
    debug vcpu_state_debug vcpu_state_debug_end
    handler vcpu_state_handler vcpu_state_handler_end
    fault vcpu_state_fault vcpu_state_fault_end
    one_shot vcpu_state_one_shot vcpu_state_one_shot_end
    deadline vcpu_state_deadline vcpu_state_deadline_end
    pending vcpu_state_pending vcpu_state_pending_end
    pass vcpu_state_pass vcpu_state_pass_end
    tsc vcpu_state_tsc vcpu_state_tsc_end
    nested vcpu_state_nested vcpu_state_nested_end
    start_others vcpu_state_start_others vcpu_state_start_others_end
    real_mode vcpu_state_real_mode vcpu_state_real_mode_end
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels are in one section of this program, `end` after `start`, and code is never written.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The port of a place at which the test may stop.
const STOP: u16 = 0x10;
/// The port of the end.
const END: u16 = 0x11;
/// The port of data.
const DATA_PORT: u16 = 0x12;

/// Returns a device that ends a run at a write to `port`.
fn until(port: u16) -> impl FnMut(VcpuExit<'_>) -> bool + Send + 'static {
    move |exit| match exit {
        VcpuExit::PortOut { port: written, .. } => {
            assert!(matches!(written, STOP | END), "port {written:#x}");
            written == port
        }
        _ => panic!("an exit that the code does not make"),
    }
}

/// Runs the first vCPU to the end of its code, and completes the write with which it ends.
fn finish(machine: &mut Machine) {
    machine.run(0, until(END));
    assert_eq!(machine.complete(0, |_| ()), 0);
}

/// Runs the first vCPU to its stop, and completes the write that it stopped with.
fn stop(machine: &mut Machine) {
    machine.run(0, until(STOP));
    assert_eq!(machine.complete(0, |_| ()), 0);
}

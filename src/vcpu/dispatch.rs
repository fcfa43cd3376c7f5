//! The result of an exit: an access on a bus, or the end of the virtual machine. A vCPU's thread calls this.

use coracle_devices::bus::Bus;

use super::counts::ExitCounters;
use crate::kvm::{VcpuExit, VcpuFault};

/// The devices of a virtual machine, by I/O port and by guest physical address.
pub(crate) struct Buses {
    /// The 65,536 I/O ports.
    pub ports: Bus,
    /// The guest physical addresses without memory.
    pub mmio: Bus,
}

/// The next step of the thread after an exit.
pub(super) enum Next {
    /// Enters the guest again, if the gate allows it.
    Enter,
    /// Reports a triple fault.
    Crash,
    /// Reports an error of KVM.
    Fault(VcpuFault),
}

impl Buses {
    pub(super) fn handle(&self, exit: VcpuExit<'_>, counters: &ExitCounters) -> Next {
        match exit {
            VcpuExit::PortOut { port, unit, data } => {
                counters.port_out.add_one();
                for item in data.chunks(unit.max(1)) {
                    self.ports.write(u64::from(port), item);
                }
            }
            VcpuExit::PortIn { port, unit, data } => {
                counters.port_in.add_one();
                for item in data.chunks_mut(unit.max(1)) {
                    self.ports.read(u64::from(port), item);
                }
            }
            VcpuExit::MmioRead { address, data } => {
                counters.mmio_read.add_one();
                self.mmio.read(address, data);
            }
            VcpuExit::MmioWrite { address, data } => {
                counters.mmio_write.add_one();
                self.mmio.write(address, data);
            }
            VcpuExit::Interrupted => counters.interrupted.add_one(),
            VcpuExit::Shutdown => {
                counters.fatal.add_one();
                return Next::Crash;
            }
            VcpuExit::Fault(fault) => {
                counters.fatal.add_one();
                return Next::Fault(fault);
            }
        }
        Next::Enter
    }
}

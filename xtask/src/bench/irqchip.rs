//! Why Coracle emulates the I/O APIC: the life of a virtual machine whose interrupt controllers are all in
//! KVM is dominated by closing it.

use std::time::Instant;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};

use super::statistics::Samples;

#[derive(Debug, Clone, Copy)]
enum Irqchip {
    Split,
    Full,
    FullWithPit,
}

impl Irqchip {
    const ALL: [(Irqchip, &str); 3] = [
        (Irqchip::Split, "split, I/O APIC in userspace"),
        (Irqchip::Full, "all in KVM"),
        (Irqchip::FullWithPit, "all in KVM, and its PIT"),
    ];

    fn create(self, vm: &VmFd) -> Result<()> {
        match self {
            Irqchip::Split => {
                let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
                cap.args[0] = 24;
                vm.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")
            }
            Irqchip::Full => vm.create_irq_chip().context("KVM_CREATE_IRQCHIP"),
            Irqchip::FullWithPit => {
                vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
                vm.create_pit2(kvm_pit_config::default()).context("KVM_CREATE_PIT2")
            }
        }
    }
}

/// Creates and closes virtual machines with one vCPU, the kinds in turn.
pub(super) fn run(runs: u32) -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    let mut samples: [(Samples, Samples); 3] = Default::default();
    for _ in 0..runs {
        for ((irqchip, _), (create, close)) in Irqchip::ALL.into_iter().zip(&mut samples) {
            let start = Instant::now();
            let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
            irqchip.create(&vm)?;
            let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
            create.push(start.elapsed());
            let start = Instant::now();
            drop(vcpu);
            drop(vm);
            close.push(start.elapsed());
        }
    }
    println!("{:30} {:>12} {:>12} {:>12}", "interrupt controllers", "create ms", "close ms", "close p95");
    for ((_, name), (create, close)) in Irqchip::ALL.into_iter().zip(&samples) {
        let (create, median, p95) = (create.median_ms(), close.median_ms(), close.percentile_ms(95));
        println!("{name:30} {create:12.3} {median:12.3} {p95:12.3}");
    }
    Ok(())
}

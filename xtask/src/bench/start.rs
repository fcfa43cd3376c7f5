//! How soon a bare guest prints, what that costs, and how much memory a waiting virtual machine holds, under
//! Coracle and under QEMU's microvm with the same ELF file, in turn, on the same KVM.

use std::fs::{self, File};

use anyhow::{Context, Result};

use super::life::{Lives, Waiting, write_payload};
use super::vmm::{Guest, Kind, Vmm};
use crate::static_build;
use crate::workspace::Workspace;

/// Measures and prints the table.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    // Pages of a file that has not been written back count as dirty memory of whoever maps them.
    File::open(&coracle)?.sync_all().context("cannot write the binary to disk")?;
    let folder = workspace.target.join("payloads");
    let speaks_and_ends = Guest::new(&write_payload(&folder, "hello-exit")?, GUEST_MIB)?;
    let speaks_and_waits = Guest::new(&write_payload(&folder, "hello-halt")?, GUEST_MIB)?;
    let vmms: Vec<Vmm> =
        [Kind::Coracle, Kind::QemuMicrovm].into_iter().filter_map(|kind| Vmm::find(kind, &coracle)).collect();
    if vmms.len() == 1 {
        eprintln!("qemu-system-x86_64 is not installed: Coracle is measured alone");
    }

    let mut lives: Vec<Lives> = vmms.iter().map(|_| Lives::default()).collect();
    for run in 0..runs {
        for (vmm, lives) in vmms.iter().zip(&mut lives) {
            // QEMU takes some thirty times as long, and a tenth of the runs gives a good median.
            if vmm.kind == Kind::Coracle || run % 10 == 0 {
                lives.measure(&mut vmm.command(&speaks_and_ends))?;
            }
        }
    }
    println!(
        "One vCPU, {GUEST_MIB} MiB; medians of {runs} runs (QEMU: a tenth); memory without guest RAM, while waiting\n\n\
         {:14} {:>10} {:>8} {:>11} {:>8} {:>9} {:>14}",
        "", "first byte", "p95", "whole life", "CPU", "Pss", "private dirty"
    );
    for (vmm, lives) in vmms.iter().zip(&lives) {
        let held = Waiting::start(&mut vmm.command(&speaks_and_waits))?.held(GUEST_MIB)?;
        println!(
            "{:14} {:7.2} ms {:5.2} ms {:8.2} ms {:5.2} ms {:6} KiB {:10} KiB",
            vmm.kind,
            lives.first_byte.median_ms(),
            lives.first_byte.percentile_ms(95),
            lives.whole.median_ms(),
            lives.cpu.median_ms(),
            held.pss_kib,
            held.private_dirty_kib,
        );
    }
    if let [ours, theirs] = lives.as_slice() {
        let ratio = theirs.first_byte.median_ms() / ours.first_byte.median_ms();
        println!("\nQEMU microvm takes {ratio:.1} times as long to the first byte.");
    }
    let size = fs::metadata(&coracle).context("the binary")?.len();
    println!("Coracle's static binary: {:.2} MB", size as f64 / 1e6);
    Ok(())
}

const GUEST_MIB: u64 = 128;

//! Machines per second: bare guests that one process builds, runs, stops and closes, several at once,
//! compared with the same number of empty machines made by KVM's calls alone.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coracle::config::SerialConfig;
use coracle::outcome::Ending;
use coracle::{Grace, Vm};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::Kvm;

use super::process_time::own_cpu_time;
use super::statistics::Samples;

/// Measures and prints the table: the median of `rounds`.
pub(super) fn measure(payload: &Path, rounds: u32) -> Result<()> {
    let cpuid = Kvm::new()
        .and_then(|kvm| kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))
        .context("the host's CPUID")?;
    let (mut bare, mut ours) = (Measured::default(), Measured::default());
    // One extra round, which is not counted, warms the caches.
    for round in 0..=rounds {
        let costs = [at_once(|| bare_machine(&cpuid))?, at_once(|| machine(payload))?];
        for (measured, cost) in [&mut bare, &mut ours].into_iter().zip(costs).filter(|_| round > 0) {
            measured.time.push(cost.time);
            measured.cpu.push(cost.cpu);
        }
    }
    println!(
        "\nMachines from one process, {AT_ONCE} at once on {} CPUs, {GUEST_MIB} MiB each; median of {rounds} rounds of \
         {MACHINES}\n\n{:36} {:>9} {:>7} {:>14}",
        thread::available_parallelism()?,
        "",
        "a second",
        "ratio",
        "CPU time each"
    );
    for (name, measured) in [("a loop of KVM's calls", &bare), ("built, run, stopped and closed", &ours)] {
        let cpu_ms = measured.cpu.median_ms() / f64::from(MACHINES);
        println!(
            "{name:36} {:9.0} {:7.2} {cpu_ms:11.2} ms",
            measured.speed(),
            measured.speed() / bare.speed()
        );
    }
    Ok(())
}

/// The rounds of one kind.
#[derive(Default)]
struct Measured {
    time: Samples,
    cpu: Samples,
}

impl Measured {
    fn speed(&self) -> f64 {
        f64::from(MACHINES) * 1e3 / self.time.median_ms()
    }
}

/// The cost of a round.
struct Cost {
    time: Duration,
    /// The CPU time of all threads of the process.
    cpu: Duration,
}

/// Returns the cost of [`MACHINES`] machines, [`AT_ONCE`] at a time.
fn at_once(one: impl Fn() -> Result<()> + Sync) -> Result<Cost> {
    let (start, cpu) = (Instant::now(), own_cpu_time());
    thread::scope(|scope| {
        let share = || (0..MACHINES / AT_ONCE).try_for_each(|_| one());
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(share)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(Cost { time: start.elapsed(), cpu: own_cpu_time().saturating_sub(cpu) })
}

fn machine(payload: &Path) -> Result<()> {
    let builder = Vm::builder().kernel(payload).memory_mib(GUEST_MIB);
    let vm = builder.configure(|config| config.serial = SerialConfig::Null).start()?;
    let outcome = vm.stop(Grace::NONE);
    ensure!(outcome.ending == Ending::Stopped, "{}", outcome.reason());
    Ok(())
}

/// Creates the least that any machine needs of KVM: memory, local APICs, a vCPU with its CPUID, and one
/// entry.
fn bare_machine(cpuid: &CpuId) -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    let ram = Ram::new()?;
    let region = kvm_userspace_memory_region {
        memory_size: RAM_BYTES as u64,
        userspace_addr: ram.0 as u64,
        ..Default::default()
    };
    // SAFETY: the mapping outlives the virtual machine, which is closed before it.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = 24;
    vm.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")?;
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    vcpu.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
    vcpu.set_kvm_immediate_exit(1);
    ensure!(vcpu.run().is_err(), "the guest has run");
    drop((vcpu, vm));
    drop(ram);
    Ok(())
}

/// Memory for a guest.
struct Ram(*mut libc::c_void);

impl Ram {
    fn new() -> Result<Ram> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), RAM_BYTES, access, kind, -1, 0) };
        ensure!(address != libc::MAP_FAILED, "no memory: {}", std::io::Error::last_os_error());
        Ok(Ram(address))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and nobody uses it any more.
        unsafe { libc::munmap(self.0, RAM_BYTES) };
    }
}

const GUEST_MIB: u64 = 16;
const RAM_BYTES: usize = 16 << 20;
const AT_ONCE: u32 = 8;
/// The number of machines in a round.
const MACHINES: u32 = 400;

//! The reason why a guest did not come up: how far it came, where it stood, its last output, and advice.
//!
//! The builder leaves a `Subject` with the running machine. The ordered stop (`vm::stop`) examines it
//! when the vCPUs have left the guest for good. Nothing here runs while a guest does, and nothing changes its
//! state. Registers, RAM and console text are the guest's, so they are read with limits and shown without
//! control sequences of terminals.

mod console;
mod hints;
#[doc(hidden)]
pub mod inputs;
mod instruction;
mod kconfig;
mod phase;
mod state;
mod symbols;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_agent::boot_mark::INIT_ERROR;
use coracle_arch::x86_64::image::{BootProtocol, ImageFormat, KernelImage};
use coracle_arch::x86_64::initrd::{InitrdFile, combined_len};
use coracle_arch::x86_64::load::minimum_memory_mib;
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use hints::{Hint, RootFileSystem};
pub use instruction::Code;
pub use kconfig::ConfigSource;
pub(crate) use kconfig::config_beside;
pub(crate) use phase::{BootMark, Signs, Watch, Watched};
pub use phase::{Milestone, Sign};
pub use symbols::Function;

use crate::config::{ConsoleDevice, VmConfig};
use crate::ending::{Ending, EndingKind, Phase};
use crate::host::KvmKind;
use crate::kvm::{Activity, CodePlace, Vcpu, VcpuFault};
use hints::Facts;
use kconfig::KernelConfig;
use symbols::SymbolFile;

/// The facts about a guest that ended abnormally, beside its ending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The positions of the vCPUs. If one died, it is the only one; if the guest was stopped, all started
    /// vCPUs are listed.
    pub vcpus: Vec<VcpuPlace>,
    /// Known causes that would explain the ending, the likeliest first.
    pub hints: Vec<Hint>,
    /// The last lines of the console, without control sequences of terminals. The line of a panic comes first
    /// if it is older.
    pub console: Vec<String>,
    /// The line with which the kernel panicked, if it printed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic: Option<String>,
    /// The reason why Coracle's own first process (the guest agent's program) could not go on, if it reported
    /// one and the kernel panicked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_error: Option<String>,
}

impl Diagnosis {
    /// Returns the reason of the kernel's panic. If that is only the end of its first process, returns the
    /// reason that this process reported.
    pub fn panic_reason(&self) -> Option<&str> {
        if self.init_error.is_some() {
            return self.init_error.as_deref();
        }
        reason_in(self.panic.as_deref()?)
    }
}

fn reason_in(line: &str) -> Option<&str> {
    let (_, reason) = line.split_once(PANIC)?;
    Some(reason.trim_start_matches(':').trim()).filter(|reason| !reason.is_empty())
}

/// Returns the reason that a panicked kernel printed on its serial port or its virtio console.
pub(crate) fn panic_reason(
    ending: &Ending,
    console: &ConsoleBuffer,
    virtio_console: Option<&ConsoleBuffer>,
) -> Option<String> {
    ending.panic_evidence()?;
    let line = console::line(&heard(console, virtio_console).panic_line())?;
    reason_in(&line).map(str::to_owned)
}

/// Returns the console that has the kernel's panic, or else the serial port, on which it prints first.
fn heard<'a>(console: &'a ConsoleBuffer, virtio_console: Option<&'a ConsoleBuffer>) -> &'a ConsoleBuffer {
    let panicked = |console: &&ConsoleBuffer| !console.panic_line().is_empty();
    let spoke = |console: &&ConsoleBuffer| console.pushed_bytes() > 0;
    let consoles = || std::iter::once(console).chain(virtio_console);
    consoles().find(panicked).or_else(|| consoles().find(spoke)).unwrap_or(console)
}

/// The position of a vCPU when its guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VcpuPlace {
    /// The index of the vCPU.
    pub vcpu: u32,
    /// The instruction pointer.
    pub rip: u64,
    /// The privilege level, 0 to 3.
    pub ring: u8,
    /// Whether it waited for an interrupt (`hlt`).
    pub halted: bool,
    /// Whether interrupts were enabled.
    pub interrupts: bool,
    /// The content of memory at the instruction pointer.
    pub code: Code,
    /// The kernel's function at that address, if the kernel's file has symbols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<Function>,
}

/// The files and devices of a boot, kept beside the running machine in case it does not come up.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The path of the kernel's file, if it was loaded by this process.
    kernel: Option<PathBuf>,
    /// The file's symbols. Only an ELF file can have any.
    symbols: Option<SymbolFile>,
    is_linux: bool,
    is_entry_guessed: bool,
    /// The ranges of guest RAM in which the unpacked kernel may lie.
    ranges: Vec<Range<u64>>,
    cmdline: String,
    initrds: Vec<PathBuf>,
    disks: usize,
    disk_paths: Vec<PathBuf>,
    has_root: bool,
    is_default_guest: bool,
    has_virtio_console: bool,
    memory_mib: u64,
    least_mib: u64,
    /// Whether the guest goes on from another machine's state.
    is_restored: bool,
    /// The signs that its devices see.
    signs: Arc<Signs>,
}

/// The remains of a guest that has ended.
pub(crate) struct Remains<'a> {
    /// The guest's ending.
    pub ending: &'a Ending,
    /// The vCPUs whose threads have ended.
    pub vcpus: &'a [Vcpu],
    /// Its memory.
    pub ram: &'a GuestMemoryMmap,
    /// Its serial port.
    pub console: &'a ConsoleBuffer,
    /// Its virtio console, if it has one.
    pub virtio_console: Option<&'a ConsoleBuffer>,
    /// The time at which the guest first ran; `None` if it never did.
    pub started: Option<Instant>,
}

/// The result of an examination.
pub(crate) struct Findings {
    /// How far the guest came.
    pub phase: Phase,
    /// The signs of progress in order. Signs that only the end shows come last.
    pub progress: Vec<Milestone>,
    /// The diagnosis of an abnormal ending.
    pub diagnosis: Option<Diagnosis>,
}

impl Subject {
    /// Makes the subject for a machine that was loaded with `image`, `initrds` and the whole command line,
    /// and whose devices leave their signs in `signs`. `disks` includes the disk of its root.
    pub(crate) fn new(
        config: &VmConfig,
        cmdline: String,
        disks: usize,
        image: &KernelImage,
        initrds: &[InitrdFile],
        signs: Arc<Signs>,
    ) -> Subject {
        let range = |start: u64, len: u64| start..start.saturating_add(len);
        let (symbols, ranges) = match image.format() {
            ImageFormat::Elf => {
                let segments = image.segments().iter();
                let ranges = segments.map(|segment| range(segment.address, segment.file_len)).collect();
                (SymbolFile::of(image.file()), ranges)
            }
            ImageFormat::BzImage => {
                // It unpacks itself to an address of its own choice.
                let start = image.segments().first().map_or(0, |segment| segment.address);
                let end = config.memory.bytes().min(start.saturating_add(KERNEL_REACH));
                (None, std::iter::once(start..end).collect())
            }
        };
        Subject {
            kernel: Some(image.path().to_owned()),
            symbols,
            is_linux: image.is_linux() && !image.names_other_program(),
            is_entry_guessed: !image.is_linux() && image.protocol() == BootProtocol::Linux64,
            ranges,
            cmdline,
            initrds: config.initrds.clone(),
            disks,
            disk_paths: config.disks.iter().map(|disk| disk.path.clone()).collect(),
            has_root: config.root.is_some(),
            is_default_guest: config.kernel.is_none() && config.root.is_none(),
            has_virtio_console: config.console == ConsoleDevice::Virtio,
            memory_mib: config.memory.size().mib(),
            least_mib: minimum_memory_mib(image, combined_len(initrds).unwrap_or(u64::MAX)),
            is_restored: false,
            signs,
        }
    }

    /// Returns the same subject for a machine that goes on from this one's state, and whose devices leave
    /// their signs in `signs`.
    pub(crate) fn of_fork(&self, signs: Arc<Signs>) -> Subject {
        Subject { signs, is_restored: true, ..self.clone() }
    }

    /// Examines the remains.
    pub(crate) fn examine(&self, remains: &Remains<'_>) -> Findings {
        let standing: Vec<Standing<'_>> = remains.vcpus.iter().filter_map(Standing::of).collect();
        let heard = heard(remains.console, remains.virtio_console);
        let console = console::last_lines(&heard.tail());
        let panic = console::line(&heard.panic_line());
        let panic = panic.filter(|_| remains.ending.panic_evidence().is_some());
        let init_error = panic.as_ref().filter(|panic| panic.contains(INIT_ENDED));
        let init_error = init_error.and_then(|_| console::after_mark(&heard.tail(), INIT_ERROR));
        let console = panic.iter().fold(console, |lines, panic| console::with_line(lines, panic));
        let progress = self.progress(remains, &standing, &console);
        let reached = progress.iter().map(|milestone| milestone.sign.phase(self.is_linux)).max();
        let least = match remains.started {
            _ if self.is_restored => Phase::Restored,
            Some(_) => Phase::Entered,
            None => Phase::Loaded,
        };
        let phase = reached.unwrap_or(least).max(least);
        let diagnosis = is_abnormal(remains.ending).then(|| {
            let vcpus = self.places(remains, &standing);
            // The report of the first process explains more than its exit code.
            let explained = panic.as_deref().filter(|_| init_error.is_none());
            let hints = self.hints(remains, phase, &vcpus, &console, explained);
            Diagnosis { vcpus, hints, console, panic, init_error }
        });
        Findings { phase, progress, diagnosis }
    }

    fn progress(
        &self,
        remains: &Remains<'_>,
        standing: &[Standing<'_>],
        console: &[String],
    ) -> Vec<Milestone> {
        let mut progress: Vec<Milestone> = self.signs.milestones(remains.started).collect();
        let printed = [
            (Sign::ConsoleByte, remains.console.first_byte_at()),
            (Sign::Banner, remains.console.banner_at()),
        ];
        progress.extend(printed.into_iter().filter_map(|(sign, seen)| {
            seen.map(|seen| Milestone { sign, at: phase::since(remains.started, seen) })
        }));
        let process = |place: &CodePlace| is_user_code(place) || holds_process(remains.ram, place.page_table);
        let after_init = |line: &String| AFTER_INIT.iter().any(|words| line.contains(words));
        let shown_at_the_end = [
            (Sign::SecondVcpu, standing.iter().any(|standing| standing.vcpu.index() > 0)),
            (Sign::UserMode, self.is_linux && standing.iter().any(|standing| process(&standing.place))),
            (Sign::LastWords, self.is_linux && console.iter().any(after_init)),
        ];
        let shown = shown_at_the_end.into_iter().filter(|(_, is_there)| *is_there);
        progress.extend(shown.map(|(sign, _)| Milestone { sign, at: None }));
        progress.sort_by_key(|milestone| milestone.at.unwrap_or(Duration::MAX));
        progress
    }

    /// Returns the positions of the vCPUs that the ending concerns.
    fn places(&self, remains: &Remains<'_>, standing: &[Standing<'_>]) -> Vec<VcpuPlace> {
        let wanted = standing.iter().filter(|standing| remains.ending.concerns(standing.vcpu.index()));
        let wanted: Vec<&Standing<'_>> = wanted.collect();
        let addresses: Vec<u64> = wanted.iter().map(|standing| standing.place.linear).collect();
        let functions = self.symbols.as_ref().map(|file| file.functions_at(&addresses)).unwrap_or_default();
        let functions = functions.into_iter().chain(std::iter::repeat(None));
        let place = |(standing, function): (&Standing<'_>, Option<Function>)| VcpuPlace {
            vcpu: standing.vcpu.index(),
            rip: standing.place.rip,
            ring: standing.place.ring,
            halted: standing.activity == Activity::Halted,
            interrupts: standing.place.interrupts,
            code: standing.code(remains),
            function: function.filter(|_| standing.place.ring == 0),
        };
        wanted.into_iter().zip(functions).map(place).collect()
    }

    fn hints(
        &self,
        remains: &Remains<'_>,
        phase: Phase,
        vcpus: &[VcpuPlace],
        console: &[String],
        panic: Option<&str>,
    ) -> Vec<Hint> {
        let linux_before_init = self.is_linux && phase < Phase::Init;
        let kernel = self.kernel.as_ref().filter(|_| linux_before_init);
        let options = kernel.and_then(|kernel| KernelConfig::find(remains.ram, &self.ranges, kernel));
        // Probing the kind of KVM takes some milliseconds, so it is done only if it matters.
        let may_be_interpreted = linux_before_init || remains.ending.fault().is_some();
        let interpreted = may_be_interpreted && matches!(KvmKind::probe(), KvmKind::Software { .. });
        let tail = heard(remains.console, remains.virtio_console).tail();
        let unpacking = hints::UNPACKING.iter().find_map(|mark| console::after_mark(&tail, mark));
        let facts = Facts {
            ending: remains.ending,
            phase,
            is_linux: self.is_linux,
            is_entry_guessed: self.is_entry_guessed,
            cmdline: &self.cmdline,
            initrds: &self.initrds,
            disks: self.disks,
            disk_paths: &self.disk_paths,
            has_root: self.has_root,
            is_default_guest: self.is_default_guest,
            has_virtio_console: self.has_virtio_console,
            memory_mib: self.memory_mib,
            least_mib: self.least_mib,
            console_bytes: remains.console.pushed_bytes()
                + remains.virtio_console.map_or(0, ConsoleBuffer::pushed_bytes),
            console,
            panic,
            unpacking: unpacking.as_deref(),
            options: options.as_ref(),
            interpreted,
            code: vcpus.first().filter(|_| remains.ending.vcpu().is_some()).map(|place| &place.code),
        };
        facts.hints()
    }
}

/// A vCPU that was started, and its state.
struct Standing<'a> {
    vcpu: &'a Vcpu,
    place: CodePlace,
    activity: Activity,
}

impl Standing<'_> {
    /// Returns `None` for a vCPU that was never started, or whose state KVM does not return.
    fn of(vcpu: &Vcpu) -> Option<Standing<'_>> {
        let activity = vcpu.activity().filter(|activity| *activity != Activity::NotStarted)?;
        Some(Standing { vcpu, place: vcpu.code_place()?, activity })
    }

    fn code(&self, remains: &Remains<'_>) -> Code {
        let fetched = match remains.ending.fault() {
            Some(VcpuFault::Internal { instruction, .. }) => &instruction[..],
            _ => &[],
        };
        let CodePlace { linear, bits, .. } = self.place;
        Code::read(remains.ram, linear, bits, fetched, |linear| self.vcpu.translate(linear))
    }
}

/// Returns whether an ending needs an explanation.
fn is_abnormal(ending: &Ending) -> bool {
    match ending.kind() {
        EndingKind::Panicked | EndingKind::GaveUp | EndingKind::Died | EndingKind::TimedOut => true,
        EndingKind::Finished | EndingKind::Asked | EndingKind::HostFailed | EndingKind::Command => false,
    }
}

/// Returns whether a vCPU ran a process's code: in user mode, in the lower half of the address space. A
/// kernel that runs in user mode, for a KVM that interprets kernel mode, is in the upper half like all
/// kernels.
fn is_user_code(place: &CodePlace) -> bool {
    place.ring == 3 && place.linear < UPPER_HALF
}

/// Returns whether the page tables at `root` belong to a process. Linux lets user mode into the lower half of
/// the address space there, and never in its own tables. An idle Linux keeps the last process's tables.
fn holds_process(ram: &GuestMemoryMmap, root: Option<u64>) -> bool {
    let mut lower_half = [0; ENTRIES / 2 * 8];
    let read = root.is_some_and(|root| ram.read_slice(&mut lower_half, GuestAddress(root)).is_ok());
    let (entries, _) = lower_half.as_chunks::<8>();
    read && entries.iter().any(|entry| u64::from_le_bytes(*entry) & PRESENT_FOR_USER == PRESENT_FOR_USER)
}

/// The end of the search for a kernel that chooses its address: all RAM of a usual machine, and a fraction of
/// a second's work.
const KERNEL_REACH: u64 = 1 << 30;
/// Texts that Linux prints after its init has run: when it ends, and when it asks for a restart.
const AFTER_INIT: &[&str] = &[INIT_ENDED, "reboot: Restarting system"];
/// The text of that line when the first process has ended (`do_exit` in kernel/exit.c).
const INIT_ENDED: &str = "Attempted to kill init!";
/// The start of the line of a panic (`panic` in kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
/// The start of the kernel's half of the address space (Linux, Documentation/arch/x86/x86_64/mm.rst).
const UPPER_HALF: u64 = 1 << 63;
/// Entries of the root of the page tables (Intel SDM vol. 3, 4.5.4).
const ENTRIES: usize = 512;
/// The bits P and U/S of an entry (Intel SDM vol. 3, table 4-15).
const PRESENT_FOR_USER: u64 = 0b101;

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(entries: &[(u64, u64)]) -> GuestMemoryMmap {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        for (index, entry) in entries {
            ram.write_obj(*entry, GuestAddress(0x1000 + index * 8)).unwrap();
        }
        ram
    }

    #[test]
    fn tables_that_let_user_mode_into_the_lower_half_are_a_process() {
        assert!(holds_process(&tables(&[(170, 0x2000 | 0b111)]), Some(0x1000)));
        assert!(!holds_process(&tables(&[(0, 0x2000 | 0b011)]), Some(0x1000)), "early code maps itself");
        assert!(!holds_process(&tables(&[(0, 0b110)]), Some(0x1000)), "not present");
        assert!(!holds_process(&tables(&[(511, 0x2000 | 0b111)]), Some(0x1000)), "the kernel's half");
    }

    #[test]
    fn kernel_that_runs_in_user_mode_is_not_a_process() {
        let at = |ring, linear| {
            let (rip, page_table) = (linear, None);
            is_user_code(&CodePlace { rip, linear, bits: 64, ring, interrupts: true, page_table })
        };
        assert!(at(3, 0x40_1000) && at(3, 0x7fff_ffff_f000));
        assert!(!at(0, 0x40_1000) && !at(3, 0xffff_ffff_8100_0000) && !at(0, 0xffff_ffff_8100_0000));
    }

    #[test]
    fn tables_outside_ram_are_nobodys() {
        let ram = tables(&[(0, 0b111)]);
        for root in [None, Some(0x4000), Some(0x3ff8), Some(0x000f_ffff_ffff_f000)] {
            assert!(!holds_process(&ram, root), "{root:?}");
        }
    }
}

//! Advice about a guest that did not come up: one rule per known cause.
//!
//! A rule looks at the facts alone and knows no other rule. It gives a hint if its cause would explain the
//! ending, and none if a fact is unknown.

use std::path::PathBuf;

use coracle_arch::field::{ACCEL, APPEND, DISKS, INITRDS, MEMORY, ROOT};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::instruction::Code;
use super::kconfig::{ConfigSource, KernelConfig, Setting};
use crate::ending::{Ending, EndingKind, Phase, signal_name};
use crate::kvm::VcpuFault;

mod console;
mod root;
mod root_file_system;

pub(super) use root::UNPACKING;
pub use root_file_system::RootFileSystem;

/// A known cause and its cure. `Display` prints one sentence of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// KVM interprets kernel code on this host, and lacks an instruction or the speed for this guest.
    InterpretedKernel {
        /// Whether it lacks an instruction.
        instruction: bool,
    },
    /// The guest jumped to an address without code.
    NoCode,
    /// The image is not Linux, and nothing in it states its boot protocol.
    ForeignProtocol,
    /// The machine has little more memory than the kernel takes.
    LittleMemory {
        /// The machine's memory in MiB.
        given: u64,
        /// The smallest memory in MiB that is accepted for this kernel.
        least: u64,
        /// Whether the kernel reported that memory ran out.
        said: bool,
    },
    /// The command line names no console.
    NoConsole,
    /// The command line names only consoles that this machine lacks.
    ForeignConsole {
        /// The last of them.
        console: String,
    },
    /// The kernel has no driver for the console.
    ConsoleDriverMissing {
        /// The option that is off or a module.
        option: &'static str,
        /// The source of that knowledge.
        source: ConfigSource,
    },
    /// The kernel may have printed something before its console worked.
    EarlyConsole,
    /// The command line keeps the kernel from printing what it does.
    Quiet,
    /// There is neither an initrd nor a root device.
    NoRoot,
    /// The root device is of a kind that this machine lacks.
    RootDevice {
        /// The device, as the command line names it.
        root: String,
        /// The number of disks in the machine.
        disks: usize,
    },
    /// The kernel has no driver for the root device.
    RootDriverMissing {
        /// The device, as the command line names it.
        root: String,
        /// The option that is off.
        option: &'static str,
        /// The source of that knowledge.
        source: ConfigSource,
    },
    /// The kernel could not mount the root device, and may lack its file system.
    RootFileSystem {
        /// The name of the disk in the command line.
        root: String,
        /// The content of the disk.
        holds: RootFileSystem,
    },
    /// The kernel cannot use the initrd.
    InitrdUnsupported {
        /// The option that is off.
        option: &'static str,
        /// The source of that knowledge.
        source: ConfigSource,
    },
    /// The kernel has not unpacked all of the initrd. The cause is neither a lack of memory nor a missing
    /// option.
    InitrdDamaged {
        /// The reason that the kernel gave.
        reason: String,
    },
    /// The kernel found nothing to run in the initrd.
    NoInit {
        /// The program that it looked for.
        init: String,
        /// Whether it looked in the initrd, not on the root device.
        in_initrd: bool,
    },
    /// The guest's init has ended.
    InitEnded {
        /// The status in the form of `wait` (Linux, include/uapi/linux/wait.h): the signal that killed it in
        /// bits 0 to 6, or else its code in bits 8 to 15.
        status: u32,
    },
}

impl Hint {
    /// Returns the hint's name in the JSON object.
    pub fn name(&self) -> &'static str {
        match self {
            Hint::InterpretedKernel { .. } => "interpreted-kernel",
            Hint::NoCode => "no-code",
            Hint::ForeignProtocol => "foreign-protocol",
            Hint::LittleMemory { .. } => "little-memory",
            Hint::NoConsole => "no-console",
            Hint::ForeignConsole { .. } => "foreign-console",
            Hint::ConsoleDriverMissing { .. } => "console-driver-missing",
            Hint::EarlyConsole => "early-console",
            Hint::Quiet => "quiet",
            Hint::NoRoot => "no-root",
            Hint::RootDevice { .. } => "root-device",
            Hint::RootDriverMissing { .. } => "root-driver-missing",
            Hint::RootFileSystem { .. } => "root-file-system",
            Hint::InitrdUnsupported { .. } => "initrd-unsupported",
            Hint::InitrdDamaged { .. } => "initrd-damaged",
            Hint::NoInit { .. } => "no-init",
            Hint::InitEnded { .. } => "init-ended",
        }
    }
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hint::InterpretedKernel { instruction: true } => write!(
                f,
                "this host's KVM interprets kernel code and lacks this instruction; a host with VT-x or AMD-V runs \
                 it, and so does `{ACCEL} emulate`"
            ),
            Hint::InterpretedKernel { instruction: false } => write!(
                f,
                "this host's KVM interprets kernel code, which is too slow for a stock Linux and lacks instructions \
                 that it needs; use `{ACCEL} emulate`, or a host with VT-x or AMD-V"
            ),
            Hint::NoCode => write!(
                f,
                "the guest jumped to an address that holds none of its code: a damaged image, one that was linked \
                 for another address, or a wild pointer"
            ),
            Hint::ForeignProtocol => write!(
                f,
                "this image is not Linux and has no PVH note, so it was entered at its ELF entry in 64-bit mode; a \
                 kernel for Multiboot or PVH needs the note XEN_ELFNOTE_PHYS32_ENTRY"
            ),
            Hint::LittleMemory { given, least, said: true } => {
                write!(
                    f,
                    "memory ran out: it has {given}M, and the minimum is {least}M; try {MEMORY} {}M",
                    given * 2
                )
            }
            Hint::LittleMemory { given, least, said: false } => write!(
                f,
                "memory may be too small: it has {given}M, little more than the minimum of {least}M; try \
                 {MEMORY} {}M",
                given * 2
            ),
            Hint::NoConsole => write!(
                f,
                "the command line has no console=, so the kernel prints nothing here; add console=ttyS0"
            ),
            Hint::ForeignConsole { console } => write!(
                f,
                "the command line sends the console to {console}, which this machine lacks; its console is \
                 console=ttyS0"
            ),
            Hint::ConsoleDriverMissing { option, source } => write!(
                f,
                "the kernel cannot print to console=ttyS0: {option} is not built in, according to {source}"
            ),
            Hint::EarlyConsole => write!(
                f,
                "nothing was printed before the end; `{APPEND} earlyprintk=ttyS0` shows what the kernel says \
                 before its console works"
            ),
            Hint::Quiet => {
                write!(
                    f,
                    "`quiet` on the command line hides what the kernel does; leave it out, or add \
                     `{APPEND} loglevel=7`, to see how far it gets"
                )
            }
            Hint::NoRoot => write!(
                f,
                "there is no initrd and no root=, so the kernel has no init to run; give it one with {INITRDS} FILE or \
                 {ROOT}"
            ),
            Hint::RootDevice { root, disks } => root_device(f, root, *disks),
            Hint::RootDriverMissing { root, option, source } => {
                write!(f, "the kernel has no driver for root={root}: {option} is off, according to {source}")
            }
            Hint::RootFileSystem { root, holds } => not_mounted(f, root, holds),
            Hint::InitrdUnsupported { option, source } => {
                write!(f, "the kernel cannot unpack the initrd: {option} is off, according to {source}")
            }
            Hint::InitrdDamaged { reason } => write!(
                f,
                "the kernel stopped unpacking the initrd ({reason}): it is cut short or damaged, or what follows \
                 an archive in it is not one; check it with `gzip -t`, `xz -t` or `zstd -t`, and copy or make it again"
            ),
            Hint::NoInit { init, in_initrd } => no_init(f, init, *in_initrd),
            Hint::InitEnded { status } => init_ended(f, *status),
        }
    }
}

/// Prints why the kernel does not know its `root=`, on a machine with this many disks.
fn root_device(f: &mut std::fmt::Formatter<'_>, root: &str, disks: usize) -> std::fmt::Result {
    if disks == 0 {
        return write!(
            f,
            "root={root} is not a device of this machine, which has no disk; give it one with {DISKS} FILE, or an \
             initrd with {INITRDS} FILE"
        );
    }
    write!(f, "root={root} is not a device of this machine, whose first disk is /dev/vda, of {disks} in all")
}

/// Prints why the kernel did not start this init.
fn no_init(f: &mut std::fmt::Formatter<'_>, init: &str, in_initrd: bool) -> std::fmt::Result {
    let place = if in_initrd { "initrd" } else { "root" };
    write!(
        f,
        "the kernel found no {init} that it could run: the {place} lacks it, or it is not an executable for x86-64, or \
         it needs a library or an interpreter that the {place} lacks"
    )
}

fn not_mounted(f: &mut std::fmt::Formatter<'_>, root: &str, holds: &RootFileSystem) -> std::fmt::Result {
    let RootFileSystem { name, option, .. } = holds;
    write!(
        f,
        "the kernel could not mount root={root}, which holds {name}: name a kernel that has {option}, built in \
         or as a module, as those of distributions do"
    )
}

/// Prints the meaning of an init's status.
fn init_ended(f: &mut std::fmt::Formatter<'_>, status: u32) -> std::fmt::Result {
    let signal = i32::try_from(status & 0x7f).unwrap_or(0);
    if signal != 0 {
        return write!(f, "the guest's init was killed by signal {}", signal_name(signal));
    }
    let code = status >> 8 & 0xff;
    write!(f, "the guest's init ended with code {code}")?;
    match code {
        0 => write!(f, ": an init that has done its work has to power off, not to end"),
        126 => write!(f, ", which from shells means that a program cannot be executed"),
        127 => write!(f, ", which from shells and loaders means that a program or a library was not found"),
        _ => Ok(()),
    }
}

impl Serialize for Hint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Hint", 2)?;
        object.serialize_field("hint", self.name())?;
        object.serialize_field("text", &self.to_string())?;
        object.end()
    }
}

/// The facts that the rules use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) ending: &'a Ending,
    pub(super) phase: Phase,
    pub(super) is_linux: bool,
    /// Whether the image is entered at its ELF entry by a protocol that nothing in it names.
    pub(super) is_entry_guessed: bool,
    pub(super) cmdline: &'a str,
    pub(super) initrds: &'a [PathBuf],
    /// The number of disks in the machine.
    pub(super) disks: usize,
    /// The files of those of the configuration: `/dev/vda` and on, where there is no root besides.
    pub(super) disk_paths: &'a [PathBuf],
    /// Whether the machine was given a root.
    pub(super) has_root: bool,
    /// Whether it boots the default guest, which has an initrd of its own.
    pub(super) is_default_guest: bool,
    pub(super) has_virtio_console: bool,
    /// The RAM in MiB, and the smallest size that is accepted for the image.
    pub(super) memory_mib: u64,
    pub(super) least_mib: u64,
    pub(super) console_bytes: u64,
    /// The last lines of the console.
    pub(super) console: &'a [String],
    /// The line with which the kernel panicked.
    pub(super) panic: Option<&'a str>,
    /// The message with which the kernel stopped unpacking its initrd.
    pub(super) unpacking: Option<&'a str>,
    /// The kernel's options, if they are known.
    pub(super) options: Option<&'a KernelConfig>,
    /// Whether this host's KVM interprets the kernel mode of guests.
    pub(super) interpreted: bool,
    /// The code at the instruction pointer of the vCPU that died.
    pub(super) code: Option<&'a Code>,
}

impl Facts<'_> {
    /// Returns the hints of all rules, the likeliest cause first.
    pub(super) fn hints(&self) -> Vec<Hint> {
        RULES.iter().filter_map(|rule| rule(self)).collect()
    }

    /// Returns whether this is a Linux kernel that has not reached its init.
    fn linux_before_init(&self) -> bool {
        self.is_linux && self.phase < Phase::Init
    }

    /// Returns whether it ended like a kernel that gives up, or that waits for something that never comes,
    /// and not by a crash.
    fn gave_up(&self) -> bool {
        match self.ending.kind() {
            EndingKind::Panicked | EndingKind::GaveUp | EndingKind::TimedOut => true,
            EndingKind::Died
            | EndingKind::Finished
            | EndingKind::Asked
            | EndingKind::HostFailed
            | EndingKind::Command => false,
        }
    }

    fn console_has(&self, words: &str) -> bool {
        self.console.iter().any(|line| line.contains(words))
    }

    /// Returns whether the command line has this parameter without a value.
    fn has_word(&self, wanted: &str) -> bool {
        self.words().any(|word| word == wanted)
    }

    /// Returns the kernel's part of the command line.
    fn words(&self) -> impl Iterator<Item = &str> {
        self.cmdline.split_ascii_whitespace().take_while(|word| *word != "--")
    }

    /// Returns the values of a parameter of the command line, in order.
    fn parameters(&self, name: &str) -> impl Iterator<Item = &str> {
        self.words().filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Returns how it is known that an option is off, or only a module; `None` otherwise.
    fn is_not(&self, setting: Setting, option: &str) -> Option<ConfigSource> {
        let options = self.options?;
        let lacks = match setting {
            Setting::BuiltIn => options.setting(option) != Setting::BuiltIn,
            Setting::Module => options.setting(option) == Setting::Off,
            Setting::Off => options.setting(option) != Setting::Off,
        };
        lacks.then(|| options.source().clone())
    }
}

type Rule = fn(&Facts<'_>) -> Option<Hint>;

/// All rules, the likeliest cause first.
const RULES: &[Rule] = &[
    interpreted_kernel,
    no_code,
    foreign_protocol,
    console::no_console,
    console::foreign_console,
    console::driver_missing,
    root::no_root,
    root::initrd_damaged,
    root::no_init,
    root::init_ended,
    root::device,
    root::driver_missing,
    root::file_system,
    root::initrd_unsupported,
    little_memory,
    console::early_console,
    console::quiet,
];

fn interpreted_kernel(facts: &Facts<'_>) -> Option<Hint> {
    let is_internal = matches!(facts.ending.fault(), Some(VcpuFault::Internal { .. }));
    let instruction = is_internal && matches!(facts.code, Some(Code::Instruction { .. }));
    let applies = instruction || facts.linux_before_init();
    (facts.interpreted && applies).then_some(Hint::InterpretedKernel { instruction })
}

fn no_code(facts: &Facts<'_>) -> Option<Hint> {
    let crashed = facts.ending.kind() == EndingKind::Died;
    let nothing = matches!(facts.code, Some(Code::OutsideRam { .. } | Code::Unmapped));
    (crashed && nothing).then_some(Hint::NoCode)
}

fn foreign_protocol(facts: &Facts<'_>) -> Option<Hint> {
    let crashed = facts.ending.kind() == EndingKind::Died;
    (crashed && facts.is_entry_guessed && facts.console_bytes == 0).then_some(Hint::ForeignProtocol)
}

/// The kernel reports it, or it died silently in a machine that is nearly too small for it.
fn little_memory(facts: &Facts<'_>) -> Option<Hint> {
    let said = OUT_OF_MEMORY.iter().any(|words| facts.console_has(words));
    let tight = facts.memory_mib < facts.least_mib.saturating_mul(5) / 4;
    let suspected = tight && facts.console_bytes == 0 && !facts.interpreted;
    (facts.linux_before_init() && (said || suspected)).then_some(Hint::LittleMemory {
        given: facts.memory_mib,
        least: facts.least_mib,
        said,
    })
}

/// The text that Linux prints when memory runs out before its init.
const OUT_OF_MEMORY: &[&str] =
    &["Out of memory", "out of memory", "deadlocked on memory", "unpacking failed: write error"];

#[cfg(test)]
mod tests;

use std::time::Duration;

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::ending::{PanicEvidence, TimeLimit};

const PANICKED: Ending = Ending::Panicked { evidence: PanicEvidence::Reset };
const TIMED_OUT: Ending = Ending::TimedOut { kind: TimeLimit::Wall, limit: Duration::from_secs(1) };
const CRASHED: Ending = Ending::Crashed { vcpu: 0, registers: None };

/// A Linux kernel with a console and without an initrd that died before its init.
fn facts() -> Facts<'static> {
    Facts {
        ending: &TIMED_OUT,
        phase: Phase::Entered,
        is_linux: true,
        is_entry_guessed: false,
        cmdline: "console=ttyS0 panic=-1",
        initrds: &[],
        disks: 0,
        disk_paths: &[],
        has_root: false,
        is_default_guest: false,
        has_virtio_console: false,
        memory_mib: 256,
        least_mib: 96,
        console_bytes: 0,
        console: &[],
        panic: None,
        unpacking: None,
        options: None,
        interpreted: false,
        code: None,
    }
}

fn names(facts: &Facts<'_>) -> Vec<&'static str> {
    facts.hints().iter().map(Hint::name).collect()
}

fn said(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn fault() -> Ending {
    let fault = VcpuFault::Internal { suberror: 1, instruction: vec![0xcc] };
    Ending::CannotRun { vcpu: 0, fault, registers: None }
}

fn int3() -> Code {
    Code::Instruction { bytes: vec![0xcc], text: "int3".into() }
}

#[test]
fn instruction_that_an_interpreting_kvm_lacks_names_the_way_out() {
    let (ending, code) = (fault(), int3());
    let facts = Facts { ending: &ending, code: Some(&code), interpreted: true, ..facts() };
    assert_eq!(facts.hints().first(), Some(&Hint::InterpretedKernel { instruction: true }));
    assert!(Hint::InterpretedKernel { instruction: true }.to_string().contains("accel emulate"));
    let payload = Facts { is_linux: false, is_entry_guessed: true, ..facts };
    assert_eq!(names(&payload), ["interpreted-kernel", "foreign-protocol"]);
    let hardware = Facts { interpreted: false, is_entry_guessed: false, ..payload };
    assert_eq!(names(&hardware), [""; 0]);
}

#[test]
fn linux_that_starves_on_an_interpreting_kvm_is_told_so_and_not_to_use_an_early_console() {
    assert_eq!(names(&Facts { interpreted: true, ..facts() }), ["interpreted-kernel"]);
    assert_eq!(names(&Facts { interpreted: true, phase: Phase::Init, ..facts() }), [""; 0]);
    assert_eq!(names(&Facts { interpreted: true, is_linux: false, ..facts() }), [""; 0]);
}

#[test]
fn jump_to_nowhere_is_no_code() {
    let ending = fault();
    for code in [Code::OutsideRam { physical: 0xd000_0000 }, Code::Unmapped] {
        let facts =
            Facts { ending: &ending, code: Some(&code), interpreted: true, is_linux: false, ..facts() };
        assert_eq!(facts.hints().first(), Some(&Hint::NoCode), "no instruction, so none that is lacking");
    }
    let code = int3();
    assert!(!names(&Facts { ending: &ending, code: Some(&code), ..facts() }).contains(&"no-code"));
}

#[test]
fn foreign_image_without_a_note_is_told_how_it_was_entered() {
    let foreign = Facts { ending: &CRASHED, is_linux: false, is_entry_guessed: true, ..facts() };
    assert_eq!(names(&foreign), ["foreign-protocol"]);
    assert_eq!(names(&Facts { is_entry_guessed: false, ..foreign }), [""; 0]);
    let talks = Facts { console_bytes: 5, ..foreign };
    assert_eq!(names(&talks), [""; 0]);
}

#[test]
fn command_line_without_a_console_is_named() {
    let initrds = [PathBuf::from("/none")];
    let silent = |cmdline| Facts { cmdline, initrds: &initrds, ..facts() };
    assert_eq!(names(&silent("panic=-1")), ["no-console"]);
    assert_eq!(
        names(&silent("panic=-1 -- console=ttyS0")),
        ["no-console"],
        "words of init are not the kernel's"
    );
    assert_eq!(names(&silent("netconsole=ttyS0")), ["no-console"]);
    assert_eq!(names(&silent("earlyprintk=ttyS0")), [""; 0]);
    assert_eq!(names(&Facts { console_bytes: 1, ..silent("panic=-1") }), [""; 0]);
    assert_eq!(names(&Facts { phase: Phase::Init, ..silent("panic=-1") }), [""; 0]);
}

#[test]
fn console_that_the_machine_lacks_is_named() {
    let initrds = [PathBuf::from("/none")];
    let silent = |cmdline| Facts { cmdline, initrds: &initrds, ..facts() };
    let hints = silent("console=tty0 console=hvc0,115200").hints();
    assert_eq!(hints, [Hint::ForeignConsole { console: "hvc0".into() }]);
    assert_eq!(names(&silent("console=tty0 console=ttyS0,115200")), ["early-console"]);
    let virtio = Facts { has_virtio_console: true, ..silent("console=tty0 console=hvc0") };
    assert_eq!(names(&virtio), [""; 0], "this machine has it");
}

#[test]
fn kernel_without_a_console_driver_names_the_option() {
    let initrds = [PathBuf::from("/none")];
    let all = "CONFIG_PRINTK=y\nCONFIG_TTY=y\nCONFIG_SERIAL_8250=y\nCONFIG_BLK_DEV_INITRD=y\n";
    let with = |rest: &str| KernelConfig::of_text(&format!("{all}{rest}"));
    let lacking = with("# CONFIG_SERIAL_8250_CONSOLE is not set\n");
    let silent = Facts { options: Some(&lacking), initrds: &initrds, ..facts() };
    let option = "CONFIG_SERIAL_8250_CONSOLE";
    assert_eq!(silent.hints(), [Hint::ConsoleDriverMissing { option, source: ConfigSource::Kernel }]);
    let complete = with("CONFIG_SERIAL_8250_CONSOLE=y\n");
    let complete = Facts { options: Some(&complete), initrds: &initrds, ..facts() };
    assert_eq!(names(&complete), ["early-console"]);
}

#[test]
fn kernel_without_initrd_and_root_is_told_so_unless_it_brings_one() {
    let lines = said(&["VFS: Cannot open root device \"(null)\"", "Unable to mount root fs"]);
    let panicked = Facts { ending: &PANICKED, console: &lines, console_bytes: 99, ..facts() };
    assert_eq!(names(&panicked), ["no-root"]);
    let built_in = KernelConfig::of_text("CONFIG_INITRAMFS_SOURCE=\"/some/list\"\n");
    assert_eq!(names(&Facts { options: Some(&built_in), ..panicked }), [""; 0]);
    let crashed = Facts { ending: &CRASHED, console_bytes: 99, ..facts() };
    assert_eq!(names(&crashed), [""; 0], "no crash comes of it");
    assert_eq!(names(&Facts { has_root: true, ..panicked }), [""; 0], "it was given one");
    assert_eq!(names(&Facts { is_default_guest: true, ..panicked }), ["no-init"], "it has one of its own");
}

#[test]
fn root_device_that_cannot_be_is_named() {
    let with = |cmdline| Facts { ending: &PANICKED, cmdline, console_bytes: 99, ..facts() };
    for root in ["/dev/sda1", "/dev/nvme0n1p2", "sda", "/dev/vda"] {
        let line = format!("root={root}");
        let hints = Facts { cmdline: &line, ..with("") }.hints();
        assert_eq!(hints, [Hint::RootDevice { root: root.into(), disks: 0 }]);
    }
    for (root, is_there) in
        [("/dev/vda", true), ("/dev/vdb3", true), ("/dev/vdc", false), ("/dev/sda", false)]
    {
        let line = format!("root={root}");
        let hints = Facts { cmdline: &line, disks: 2, ..with("") }.hints();
        let expected = Hint::RootDevice { root: root.into(), disks: 2 };
        assert_eq!(hints, if is_there { vec![] } else { vec![expected] }, "{root}");
    }
    assert_eq!(names(&with("root=/dev/ram0")), [""; 0]);
    let option = "CONFIG_BLK_DEV_RAM";
    let options = KernelConfig::of_text("CONFIG_BLOCK=y\nCONFIG_BLK_DEV_RAM=m\n");
    let hints = Facts { options: Some(&options), ..with("root=/dev/ram0") }.hints();
    let root = "/dev/ram0".into();
    assert_eq!(hints, [Hint::RootDriverMissing { root, option, source: ConfigSource::Kernel }]);
}

#[test]
fn initrd_that_the_kernel_cannot_unpack_names_the_option() {
    let initrd = TempFile::new().unwrap();
    std::fs::write(initrd.as_path(), b"\x28\xb5\x2f\xfdpacked by zstd").unwrap();
    let initrds = [initrd.as_path().to_owned()];
    let panicked = Facts { ending: &PANICKED, initrds: &initrds, console_bytes: 99, ..facts() };
    let hints = |text| {
        let options = KernelConfig::of_text(text);
        Facts { options: Some(&options), ..panicked }.hints()
    };
    let unsupported = |option| Hint::InitrdUnsupported { option, source: ConfigSource::Kernel };
    assert_eq!(hints("CONFIG_RD_ZSTD=y\n"), [unsupported("CONFIG_BLK_DEV_INITRD")]);
    assert_eq!(hints("CONFIG_BLK_DEV_INITRD=y\n"), [unsupported("CONFIG_RD_ZSTD")]);
    assert_eq!(hints("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\n"), []);
}

#[test]
fn initrd_that_was_not_unpacked_to_its_end_is_told_so_with_the_kernel_s_reason() {
    let initrds = [PathBuf::from("/boot/initrd.gz")];
    let console = said(&["Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"]);
    let cut = |line, cmdline| {
        let facts = Facts { ending: &PANICKED, initrds: &initrds, console: &console, cmdline, ..facts() };
        Facts { unpacking: Some(line), console_bytes: 99, ..facts }.hints()
    };
    for line in ["read error", "read error); looks like an initrd"] {
        let hints = cut(line, "console=ttyS0");
        assert_eq!(hints, [Hint::InitrdDamaged { reason: "read error".into() }]);
        assert!(hints[0].to_string().contains("(read error): it is cut short or damaged"));
        // An old file system in memory is not an archive, and boots.
        assert!(!cut(line, "root=/dev/ram0").contains(&hints[0]));
    }
    // An option that is off, and memory, have rules of their own.
    for line in ["compression method lz4 not configured", "write error"] {
        let hints = cut(line, "console=ttyS0");
        assert!(!hints.iter().any(|hint| hint.name() == "initrd-damaged"), "{line}");
    }
    // A guest that ended in order has nothing to explain.
    let ended = Facts { ending: &Ending::PoweredOff, unpacking: Some("x"), ..facts() };
    assert!(!names(&ended).contains(&"initrd-damaged"));
}

#[test]
fn initrd_without_an_init_is_told_so() {
    let initrds = [PathBuf::from("/none")];
    let lines = said(&["Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"]);
    let panicked =
        Facts { ending: &PANICKED, initrds: &initrds, console: &lines, console_bytes: 99, ..facts() };
    assert_eq!(panicked.hints(), [Hint::NoInit { init: "/init".into(), in_initrd: true }]);
    let named = Facts { cmdline: "rdinit=/bin/none", ..panicked };
    assert_eq!(named.hints(), [Hint::NoInit { init: "/bin/none".into(), in_initrd: true }]);
    let lines = said(&["Kernel panic - not syncing: No working init found."]);
    let of_root = Facts { has_root: true, cmdline: "root=/dev/vda", disks: 1, console: &lines, ..panicked };
    let hints = of_root.hints();
    assert_eq!(hints, [Hint::NoInit { init: "/sbin/init".into(), in_initrd: false }]);
    assert!(!hints[0].to_string().contains("initrd"), "{}", hints[0]);
}

#[test]
fn kernel_without_the_file_system_of_its_root_is_told_so() {
    let disk = TempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(disk.as_file(), b"_BHRfS_M", 0x1_0040).unwrap();
    let paths = [PathBuf::from("/no/such/disk"), disk.as_path().to_owned()];
    let line = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(254,0)";
    let lines = said(&[line]);
    let panicked = Facts {
        ending: &PANICKED,
        is_default_guest: true,
        cmdline: "root=/dev/vdb rw",
        disks: 2,
        disk_paths: &paths,
        console: &lines,
        console_bytes: 99,
        panic: Some(line),
        ..facts()
    };
    let hints = panicked.hints();
    assert_eq!(names(&panicked), ["root-file-system"]);
    assert!(hints[0].to_string().contains("root=/dev/vdb, which holds btrfs"), "{}", hints[0]);
    let options = |text: &str| KernelConfig::of_text(text);
    let is_named = |facts: Facts<'_>| names(&facts).contains(&"root-file-system");
    let (off, module) = (options("CONFIG_BLOCK=y\n"), options("CONFIG_BTRFS_FS=m\n"));
    assert!(is_named(Facts { options: Some(&off), ..panicked }));
    assert!(is_named(Facts { options: Some(&module), ..panicked }), "the kernel had to mount it itself");
    // Something else is wrong, or nothing is known.
    let built_in = options("CONFIG_BTRFS_FS=y\n");
    assert!(!is_named(Facts { options: Some(&built_in), ..panicked }));
    assert!(!is_named(Facts {
        panic: Some("Kernel panic - not syncing: No working init found"),
        ..panicked
    }));
    for cmdline in ["root=/dev/vda", "root=/dev/vdb1", "root=/dev/vdc", "root=/dev/sdb", "root=LABEL=b", ""] {
        assert!(!is_named(Facts { cmdline, ..panicked }), "{cmdline}");
    }
}

#[test]
fn no_hint_asks_for_a_root_that_was_given() {
    let lines = said(&["VFS: Cannot open root device", "Unable to mount root fs", "No working init found"]);
    let options = KernelConfig::of_text("CONFIG_BLOCK=y\n");
    for cmdline in ["rdinit=/coracle/init", "root=/dev/vda rdinit=/coracle/init", "root=/dev/sda"] {
        for options in [None, Some(&options)] {
            let given = Facts {
                ending: &PANICKED,
                has_root: true,
                cmdline,
                disks: 1,
                console: &lines,
                console_bytes: 99,
                options,
                ..facts()
            };
            for hint in given.hints() {
                let text = hint.to_string();
                assert!(!text.contains(" FILE"), "{cmdline}: {text}");
            }
        }
    }
}

#[test]
fn status_of_an_init_that_ended_is_decoded() {
    let hint = |status: &str| {
        let line = format!("[  1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x{status}");
        let facts =
            Facts { ending: &PANICKED, phase: Phase::Init, panic: Some(&line), console_bytes: 9, ..facts() };
        let hints = facts.hints();
        assert!(hints.len() <= 1, "{hints:?}");
        hints.first().map(Hint::to_string)
    };
    let says = |status: &str, words: &str| {
        assert!(hint(status).is_some_and(|text| text.starts_with(words)), "{status}: {:?}", hint(status));
    };
    says("00007f00", "the guest's init ended with code 127, which from shells and loaders means");
    says("00007e00", "the guest's init ended with code 126, which from shells means");
    says("00000300", "the guest's init ended with code 3");
    says("00000000\r", "the guest's init ended with code 0: an init");
    says("00000009", "the guest's init was killed by signal 9 (SIGKILL)");
    says("0000008b", "the guest's init was killed by signal 11 (SIGSEGV)");
    assert_eq!(hint("nonsense"), None);
    assert_eq!(hint("fffffffffffffffff"), None);
}

#[test]
fn memory_that_ran_out_or_nearly_is_named_with_a_size_that_helps() {
    let initrds = [PathBuf::from("/none")];
    let lines = said(&["Kernel panic - not syncing: System is deadlocked on memory"]);
    let out = Facts { ending: &PANICKED, initrds: &initrds, console: &lines, console_bytes: 99, ..facts() };
    assert_eq!(out.hints(), [Hint::LittleMemory { given: 256, least: 96, said: true }]);
    assert!(out.hints().first().unwrap().to_string().contains("memory 512M"));
    let tight = Facts { ending: &CRASHED, memory_mib: 100, initrds: &initrds, ..facts() };
    assert_eq!(names(&tight), ["little-memory", "early-console"]);
    assert_eq!(names(&Facts { memory_mib: 120, ..tight }), ["early-console"]);
}

#[test]
fn kernel_that_dies_before_its_console_works_is_told_of_the_early_one() {
    let initrds = [PathBuf::from("/none")];
    let silent = Facts { initrds: &initrds, ..facts() };
    assert_eq!(names(&silent), ["early-console"]);
    assert_eq!(names(&Facts { cmdline: "console=ttyS0 earlycon=uart8250,io,0x3f8", ..silent }), [""; 0]);
}

#[test]
fn quiet_kernel_that_does_not_come_up_is_to_speak_first() {
    let initrds = [PathBuf::from("/none")];
    let quiet = Facts { cmdline: "quiet console=ttyS0", initrds: &initrds, ..facts() };
    assert_eq!(names(&quiet), ["quiet"], "and not the early console");
    assert_eq!(names(&Facts { console_bytes: 66, ..quiet }), ["quiet"]);
    assert_eq!(names(&Facts { ending: &PANICKED, console_bytes: 66, ..quiet }), [""; 0]);
    assert_eq!(names(&Facts { phase: Phase::Init, ..quiet }), [""; 0]);
}

#[test]
fn hint_is_a_name_and_a_sentence_in_the_json() {
    let json = serde_json::to_value(Hint::NoRoot).unwrap();
    assert_eq!(json["hint"], "no-root");
    assert!(json["text"].as_str().unwrap().contains("initrds FILE"));
}

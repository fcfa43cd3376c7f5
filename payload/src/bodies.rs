//! The machine code of the payloads, assembled into this crate and read back from between two labels.

use std::arch::global_asm;

use crate::{Payload, Ring};

/// The code that brings up long mode, the tables and the ring, and the offsets of its two entries.
pub(crate) struct StartCode {
    pub code: &'static [u8],
    pub entry64: usize,
    pub entry32: usize,
}

/// The start-up code for a body that runs at `ring`.
pub(crate) fn start_code(ring: Ring) -> StartCode {
    match ring {
        Ring::Zero => {
            let code = between(&raw const payload_start_ring0, &raw const payload_start_ring0_end);
            StartCode { code, entry64: 0, entry32: ENTRY32 }
        }
        Ring::Three => {
            let code = between(&raw const payload_start_ring3, &raw const payload_start_ring3_end);
            StartCode { code, entry64: 0, entry32: ENTRY32 }
        }
    }
}

/// The set-up code of a bzImage that is entered in real mode.
pub(crate) fn real_mode_code() -> &'static [u8] {
    between(&raw const payload_real_mode, &raw const payload_real_mode_end)
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    let length = end.addr() - start.addr();
    // SAFETY: both labels are in one section of this program, `end` after `start`, and code is never written.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// The address at which `src/asm/start.s` puts its 32-bit entry.
const ENTRY32: usize = 0x80;

global_asm!(include_str!("asm/start.s"));
global_asm!(include_str!("asm/endings.s"));
global_asm!(include_str!("asm/console.s"));
global_asm!(include_str!("asm/bus.s"));
global_asm!(include_str!("asm/memory.s"));
global_asm!(include_str!("asm/platform.s"));
global_asm!(include_str!("asm/smp.s"));
global_asm!(include_str!("asm/xsave.s"));
global_asm!(include_str!("asm/forks.s"));
global_asm!(include_str!("asm/branches.s"));
global_asm!(concat!(
    include_str!("asm/virtio.s"),
    include_str!("asm/rng_counter.s"),
    include_str!("asm/bench.s"),
    include_str!("asm/block.s"),
    include_str!("asm/disk.s"),
    include_str!("asm/disk_cell.s"),
    include_str!("asm/backlog.s"),
    include_str!("asm/net.s"),
    include_str!("asm/net_bench.s"),
    include_str!("asm/balloon.s"),
    include_str!("asm/vsock.s"),
    include_str!("asm/continued.s"),
    include_str!("asm/vsock_bench.s"),
    include_str!("asm/vsock_pairs.s"),
    include_str!("asm/virtio_console.s"),
    include_str!("asm/log_flood.s")
));

unsafe extern "C" {
    static payload_start_ring0: u8;
    static payload_start_ring0_end: u8;
    static payload_start_ring3: u8;
    static payload_start_ring3_end: u8;
    static payload_real_mode: u8;
    static payload_real_mode_end: u8;
}

macro_rules! payloads {
    ($($name:literal $ring:ident $start:ident..$end:ident $about:literal;)*) => {
        unsafe extern "C" { $(static $start: u8; static $end: u8;)* }
        pub(crate) static ALL: &[Payload] = &[$(Payload {
            name: $name,
            about: $about,
            ring: Ring::$ring,
            body: || between(&raw const $start, &raw const $end),
        }),*];
    };
}

payloads! {
    "poweroff" Zero payload_poweroff..payload_poweroff_end "powers off by the ACPI sleep register: 0";
    "poweroff-ring3" Three payload_poweroff_ring3..payload_poweroff_ring3_end "the same from ring 3: 0";
    "exit-7" Zero payload_exit_7..payload_exit_7_end "writes 7 to the debug-exit port: 7";
    "boot-mark" Zero payload_boot_mark..payload_boot_mark_end "writes the boot mark of an init, then exits with 0";
    "boot-mark-spin" Zero payload_boot_mark_spin..payload_boot_mark_spin_end "the same, then jumps to itself forever";
    "exit-200" Zero payload_exit_200..payload_exit_200_end
        "writes 200 to the debug-exit port: 100, with the value in the message";
    "reset-acpi" Zero payload_reset_acpi..payload_reset_acpi_end "resets by the ACPI reset register: 112";
    "reset-i8042" Zero payload_reset_i8042..payload_reset_i8042_end "resets by the keyboard controller: 112";
    "triple-fault" Zero payload_triple_fault..payload_triple_fault_end "an undefined instruction without an IDT: 111";
    "int3" Zero payload_int3..payload_int3_end "a breakpoint without an IDT: 111, or 113 where KVM cannot emulate it";
    "spin" Zero payload_spin..payload_spin_end "jumps to itself forever";
    "spin-ring3" Three payload_spin_ring3..payload_spin_ring3_end "the same from ring 3";
    "halt" Zero payload_halt..payload_halt_end "halts with interrupts off forever";
    "jump-to-mmio" Zero payload_jump_to_mmio..payload_jump_to_mmio_end
        "executes from an address without memory: 111 or 113";
    "panic" Zero payload_panic_text..payload_panic_text_end "prints a kernel panic line, then resets: 110";
    "panic-silence" Zero payload_panic_silence..payload_panic_silence_end
        "prints what a kernel panic prints, then spins: 110";
    "panic-words" Zero payload_panic_words..payload_panic_words_end
        "prints the text of a panic and a prompt, then spins forever";
    "panic-restart" Zero payload_panic_restart..payload_panic_restart_end
        "prints the text of a panic, then restarts like a living kernel: 112";
    "pvpanic" Zero payload_pvpanic..payload_pvpanic_end "prints 8 KiB, then reports by pvpanic that it panicked: 110";
    "crash-kernel" Zero payload_crash_kernel..payload_crash_kernel_end
        "reports by pvpanic that a crash kernel takes over, then resets: 110";
    "hundred-lives" Zero payload_hundred_lives..payload_hundred_lives_end
        "resets 99 times, checks that memory and devices have their initial state; exits with 0";
    "hello-reset" Zero payload_hello_reset..payload_hello_reset_end "prints one byte, then resets: 112";
    "button" Zero payload_button..payload_button_end
        "prints one byte, then powers off when the power button is pressed";
    "idle" Zero payload_idle..payload_idle_end "halts with interrupts on forever";
    "hello" Zero payload_hello..payload_hello_end "prints `hello`, then powers off: 0";
    "print-initrd" Zero payload_print_initrd..payload_print_initrd_end
        "prints its initrd, where some bytes wait, spin or end with 7; then powers off: 0";
    "hello-exit" Zero payload_hello_exit..payload_hello_exit_end
        "prints one byte, then writes 0 to the debug-exit port: 0";
    "serial-20000" Zero payload_serial_20000..payload_serial_20000_end
        "prints 20,000 bytes, then writes 0 to the debug-exit port: 0";
    "hello-halt" Zero payload_hello_halt..payload_hello_halt_end "prints one byte, then halts forever";
    "flood" Zero payload_flood..payload_flood_end "prints forever";
    "bug-at-last" Zero payload_bug_at_last..payload_bug_at_last_end
        "prints 212,419 bytes whose last line is a `BUG:`, then powers off: 0";
    "echo" Zero payload_echo..payload_echo_end "sends back what it reads from the serial port; powers off after a `q`";
    "counter" Zero payload_counter..payload_counter_end
        "counts, and prints the count for each byte of the serial port; exits with 0 after a `q`";
    "ports" Zero payload_ports..payload_ports_end
        "reads and writes every harmless port by 1, 2 and 4 bytes, then exits with 0";
    "widths" Zero payload_widths..payload_widths_end
        "unaligned and odd-sized accesses to ports and MMIO holes, then exits with 0";
    "rep-io" Zero payload_rep_io..payload_rep_io_end
        "rep outsb to the serial port and rep insb, insw, insd from a port without a device; then exits with 0";
    "ram-end" Zero payload_last_byte..payload_last_byte_end
        "checks the last byte of 128 MiB of RAM and what follows it; exits with 0";
    "ram-hole" Zero payload_ram_hole..payload_ram_hole_end
        "with 3.5 GiB: checks RAM below 3 GiB, the hole, RAM at 4 GiB; exits with 0";
    "smp" Zero payload_smp..payload_smp_end "starts every other CPU by INIT and SIPI; exits with the number of CPUs";
    "clock" Zero payload_clock..payload_clock_end
        "waits for a pause, then exits with 0 when the TSC has run on and kvm-clock reports it";
    "xsave" Zero payload_xsave..payload_xsave_end
        "checks CPUID leaf 0xd against XCR0; exits with 0, or with 50 when there is no XSAVE";
    "avx" Zero payload_avx..payload_avx_end "keeps sums in the AVX registers of ring 3 over 1,000 exits; exits with 0";
    "fork-mark" Zero payload_fork_mark..payload_fork_mark_end
        "touches 8 MiB and prints a byte, prints another when kvm-clock reports a pause, and halts forever";
    "fork-fpu" Zero payload_fork_fpu..payload_fork_fpu_end
        "keeps values in the AVX and x87 registers of ring 3 until a byte comes; exits with 0";
    "fork-timer" Zero payload_fork_timer..payload_fork_timer_end
        "prints a byte, waits a second for the timer of its local APIC; exits with 0";
    "fork-cpus" Zero payload_fork_cpus..payload_fork_cpus_end
        "four CPUs that run, have halted and are not started; checks them when a byte comes, and exits with 0";
    "fork-print" Zero payload_fork_print..payload_fork_print_end
        "prints 32,000 bytes by one instruction; exits with 0";
    "branch-pages" Three payload_branch_pages..payload_branch_pages_end
        "writes to pages of its memory and prints a hash of them, by commands of the serial port; 0 after a `q`";
    "branch-timer" Zero payload_branch_timer..payload_branch_timer_end
        "prints how often the timer of its local APIC has fired, which it starts once and after a `t`; 0 after a `q`";
    "generation" Zero payload_generation..payload_generation_end
        "prints the generation id, and it and the event register at each interrupt 9; 0 after a byte";
    "virtio-rng" Zero payload_virtio_rng..payload_virtio_rng_end
        "starts an entropy device three times, each time for 128 bytes and an interrupt; exits with 0";
    "rng-counter" Zero payload_rng_counter..payload_rng_counter_end
        "asks an entropy device for bytes forever, and prints their count for a byte of the serial port; 0 after a `q`";
    "virtio-block" Zero payload_virtio_block..payload_virtio_block_end
        "three lives that write a disk of 32 KiB, damage its ring and reset with requests in flight; exits with 0";
    "disk-cell" Zero payload_disk_cell..payload_disk_cell_end
        "keeps a byte of the serial port in a sector of a disk, and prints it for a `?`; exits with 0 on a `q`";
    "restart-disk" Three payload_restart_disk..payload_restart_disk_end
        "starts and resets a disk for ever, with a request in flight, and prints a `.` after every 64 starts";
    "log-flood" Zero payload_log_flood..payload_log_flood_end
        "sets its first virtio device up wrongly forever, in all ways that are worth a log line";
    "backlog-read" Three payload_backlog_read..payload_backlog_read_end
        "offers each disk 256 reads of 32 MiB at once; powers off after a `p`, checks them all after a `w`";
    "backlog-write" Three payload_backlog_write..payload_backlog_write_end
        "offers each disk 256 writes of 32 MiB at once; powers off after a `p`, checks them all after a `w`";
    "backlog-flush" Three payload_backlog_flush..payload_backlog_flush_end
        "offers each disk 256 flushes at once; powers off after a `p`, checks them all after a `w`";
    "backlog-discard" Three payload_backlog_discard..payload_backlog_discard_end
        "offers each disk 256 discards of 1 GiB at once; powers off after a `p`, checks them all after a `w`";
    "backlog-zeroes" Three payload_backlog_zeroes..payload_backlog_zeroes_end
        "offers each disk 256 writes of 1 GiB of zeroes at once; powers off after a `p`, checks them all after a `w`";
    "block-read-1" Three payload_block_read_1..payload_block_read_1_end
        "reads 4 KiB of a disk of 64 MiB 20,000 times, one after the other; exits with 0";
    "block-read-32" Three payload_block_read_32..payload_block_read_32_end
        "reads 4 KiB of a disk of 64 MiB 500,000 times, 32 at a time; exits with 0";
    "block-read-cold" Three payload_block_read_cold..payload_block_read_cold_end
        "reads 4 KiB of a disk of 64 MiB 8,000 times, 32 at a time; exits with 0";
    "block-write-32" Three payload_block_write_32..payload_block_write_32_end
        "writes 4 KiB of a disk of 64 MiB 100,000 times, 32 at a time; exits with 0";
    "block-stream-read" Three payload_block_stream_read..payload_block_stream_read_end
        "reads 1 MiB of a disk of 64 MiB 8,000 times, 8 at a time; exits with 0";
    "block-stream-write" Three payload_block_stream_write..payload_block_stream_write_end
        "writes 1 MiB of a disk of 64 MiB 2,000 times, 8 at a time; exits with 0";
    "block-count-1" Three payload_block_count_1..payload_block_count_1_end
        "reads 4 KiB of a disk of 64 MiB 2,000 times, one after the other, with interrupts; exits with 0";
    "block-count-32" Three payload_block_count_32..payload_block_count_32_end
        "reads 4 KiB of a disk of 64 MiB 8,000 times, 32 at a time, with interrupts; exits with 0";
    "block-count-write-32" Three payload_block_count_write_32..payload_block_count_write_32_end
        "writes 4 KiB of a disk of 64 MiB 8,000 times, 32 at a time, with interrupts; exits with 0";
    "virtio-net" Zero payload_virtio_net..payload_virtio_net_end
        "three lives of a network card that ask for the address of 10.9.0.1 50 times each; exits with 0";
    "net-address" Zero payload_net_address..payload_net_address_end
        "prints the address of a network card, and whether its configuration has changed, at each byte; exits with 0";
    "virtio-net-down" Zero payload_virtio_net_down..payload_virtio_net_down_end
        "starts a network card, prints a byte when its link goes down, and halts forever";
    "virtio-balloon" Zero payload_virtio_balloon..payload_virtio_balloon_end
        "gives 64 MiB back by a balloon in two ways, a letter and a byte of input between the steps; exits with 0";
    "net-send-60" Three payload_net_send_60..payload_net_send_60_end
        "sends 1,000,000 frames of 60 bytes by a network card; exits with 0";
    "net-send-1514" Three payload_net_send_1514..payload_net_send_1514_end
        "sends 1,000,000 frames of 1,514 bytes by a network card; exits with 0";
    "net-send-64k" Three payload_net_send_64k..payload_net_send_64k_end
        "sends 100,000 frames of 65,000 bytes by a network card; exits with 0";
    "net-receive-60" Three payload_net_receive_60..payload_net_receive_60_end
        "receives 500,000 frames of 60 bytes by a network card; exits with 0";
    "net-receive-1514" Three payload_net_receive_1514..payload_net_receive_1514_end
        "receives 500,000 frames of 1,514 bytes by a network card; exits with 0";
    "net-receive-64k" Three payload_net_receive_64k..payload_net_receive_64k_end
        "receives 50,000 frames of 65,000 bytes by a network card; exits with 0";
    "net-count-send" Three payload_net_count_send..payload_net_count_send_end
        "sends 8,000 frames of 1,514 bytes with interrupts, and prints the number of doorbells; exits with 0";
    "net-count-receive" Three payload_net_count_receive..payload_net_count_receive_end
        "receives 8,000 frames with interrupts, and prints the number of doorbells; exits with 0";
    "vsock-send" Three payload_vsock_send..payload_vsock_send_end
        "sends 256 MiB to a program that connects to a port of its socket device; exits with 0";
    "vsock-receive" Three payload_vsock_receive..payload_vsock_receive_end
        "receives 256 MiB from a program that connects to a port of its socket device; exits with 0";
    "vsock-pairs" Zero payload_vsock_pairs..payload_vsock_pairs_end
        "asks for connections to port 80 of the host and resets each, forever";
    "virtio-vsock" Three payload_virtio_vsock..payload_virtio_vsock_end
        "connects to port 52 of the host and sends back what comes, until its end; exits with 0";
    "net-answers" Zero payload_net_answers..payload_net_answers_end
        "asks the host for an address by a network card until a `q`, and prints the count of answers; exits with 0";
    "vsock-again" Three payload_vsock_again..payload_vsock_again_end
        "as virtio-vsock, and connects again when it is refused or hears that its connections are gone";
    "virtio-console" Three payload_virtio_console..payload_virtio_console_end
        "opens a console's port after a while, then sends back what is typed; exits with 0 after a `q`";
    "serial-registers" Zero payload_serial_registers..payload_serial_registers_end
        "20,000 pseudo-random accesses to the registers of COM1; exits with 0";
}

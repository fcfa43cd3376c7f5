//! Tests with bare payloads on `/dev/kvm` of any kind: every ending with its code, and every exit of the run
//! loop.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::Duration;

use common::{
    collect, eventually, file, finish, finish_with_input, kvm_or_skip, payload, run_payload, scratch, signal,
    skip,
};
use coracle::guest_data::{self, GuestData};
use coracle::host::KvmKind;

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn acpi_power_off_from_ring_0_and_ring_3_ends_with_0() {
    needs_kvm!();
    finish(&mut run_payload("poweroff")).expect(0, "the guest powered off");
    finish(&mut run_payload("poweroff-ring3")).expect(0, "the guest powered off");
}

#[test]
fn workload_code_passes_below_100_and_folds_above() {
    needs_kvm!();
    finish(&mut run_payload("exit-7")).expect(7, "code 7");
    finish(&mut run_payload("exit-200")).expect(100, "code 200");
}

#[test]
fn resets_end_with_112_and_name_their_device() {
    needs_kvm!();
    finish(&mut run_payload("reset-acpi")).expect(112, "reset (ACPI)");
    finish(&mut run_payload("reset-i8042")).expect(112, "reset (keyboard controller)");
}

#[test]
fn panic_line_and_reset_end_with_110() {
    needs_kvm!();
    let run = finish(&mut run_payload("panic"));
    run.expect(110, "the guest's kernel panicked: a payload that panics (");
    assert!(run.text().contains("Kernel panic - not syncing: a payload that panics"));
}

#[test]
fn triple_fault_ends_with_111() {
    needs_kvm!();
    let run = finish(&mut run_payload("triple-fault"));
    run.expect(111, "triple fault on vCPU 0");
    // AMD CPUs lose the registers in a triple fault.
    if run.stderr.contains("(rip ") {
        run.expect(111, "vCPU 0 was at the instruction `ud2`, rip 0x10a008");
    } else {
        run.expect(111, "where it died is unknown: the registers are lost");
    }
}

#[test]
fn breakpoint_without_idt_ends_with_111_or_says_why_kvm_cannot() {
    needs_kvm!();
    let run = finish(&mut run_payload("int3"));
    match run.code() {
        111 => run.expect(111, "triple fault"),
        _ => {
            run.expect(113, "instruction bytes cc");
            run.expect(113, "vCPU 0 was at the instruction `int3`, rip 0x10a008, ring 0");
            run.expect(
                113,
                "lacks this instruction; a host with VT-x or AMD-V runs it, and so does `--accel emulate`",
            )
        }
    };
}

#[test]
fn executing_from_an_address_without_memory_is_a_fault_with_registers() {
    needs_kvm!();
    let run = finish(&mut run_payload("jump-to-mmio"));
    assert!(matches!(run.code(), 111 | 113), "{run:?}");
    assert!(run.code() == 111 || run.stderr.contains("rip 0xd0000000"), "{run:?}");
    assert!(run.code() == 111 || run.stderr.contains("address 0xd0000000, where there is no RAM"), "{run:?}");
    assert!(run.code() == 111 || run.stderr.contains("holds none of its code"), "{run:?}");
}

#[test]
fn outcome_and_verbose_tell_where_the_time_went() {
    needs_kvm!();
    let path = scratch().join("times.json");
    let run = finish(run_payload("boot-mark").args(["-v", "--outcome"]).arg(&path));
    run.expect(0, "coracle: time: prepare ");
    let line = run.stderr.lines().find(|line| line.starts_with("coracle: time: ")).unwrap();
    assert!(line.contains(", kernel ") && line.contains(", init ") && !line.contains("command"), "{line}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let times = json["times_ms"].as_object().unwrap();
    let steps: Vec<_> = times.keys().map(String::as_str).collect();
    assert_eq!(steps.len(), 6, "{steps:?}");
    assert!(times["prepare"].as_f64().unwrap() > 0.0, "{json}");
    let parts = times["kernel"].as_f64().unwrap() + times["init"].as_f64().unwrap();
    assert!((parts - json["duration_ms"].as_f64().unwrap()).abs() < 1e-3, "{json}");
    assert!(times["command"].is_null() && times["agent"].is_null(), "{json}");

    finish(run_payload("poweroff").arg("--outcome").arg(&path)).expect(0, "");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(json["times_ms"]["kernel"].is_null(), "it wrote no boot mark: {json}");
}

#[test]
fn endless_loops_and_halts_end_with_124_at_their_time_limit() {
    needs_kvm!();
    for name in ["spin", "spin-ring3", "halt"] {
        let run = finish(run_payload(name).args(["--timeout", "300ms"]));
        run.expect(124, "timed out after 0.3 s");
        assert!(run.elapsed >= Duration::from_millis(300), "{name}: {:?}", run.elapsed);
    }
}

#[test]
fn guest_that_spins_is_shown_where_it_stands() {
    needs_kvm!();
    let path = scratch().join("spin.json");
    for (name, ring, instruction) in [("spin", 0, "jmp 0x10a000"), ("spin-ring3", 3, "jmp 0x10a000")] {
        let run =
            finish(run_payload(name).args(["--timeout", "300ms", "--cpus", "2", "--outcome"]).arg(&path));
        run.expect(124, "it reached at least its entry; how much further is unknown");
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["phase"], "entered");
        let vcpus = json["diagnosis"]["vcpus"].as_array().unwrap();
        assert_eq!(vcpus.len(), 1, "the second vCPU was never started: {vcpus:?}");
        assert_eq!(vcpus[0]["ring"], ring);
        assert_eq!(vcpus[0]["code"]["text"], instruction);
        assert_eq!(json["diagnosis"]["hints"].as_array().unwrap().len(), 0);
    }
    finish(run_payload("halt").args(["--timeout", "300ms"]))
        .expect(124, "vCPU 0 was halted, with interrupts off");
}

#[test]
fn console_that_nobody_saw_is_shown_when_the_guest_dies() {
    needs_kvm!();
    let path = scratch().join("panic.log");
    let run = finish(run_payload("panic").arg("--serial").arg(format!("file={}", path.display())));
    run.expect(110, "coracle: | [    0.000000] Kernel panic - not syncing: a payload that panics");
    let seen = finish(&mut run_payload("panic"));
    assert!(!seen.stderr.contains("| "), "it was on stdout: {seen:?}");
}

#[test]
fn stock_linux_on_an_interpreting_kvm_is_told_of_the_emulated_host() {
    needs_kvm!();
    if !matches!(KvmKind::probe(), KvmKind::Software { .. }) {
        return skip("this KVM runs Linux");
    }
    let Ok(kernel) = guest_data::find(GuestData::GuestVmlinux) else {
        return skip("the default guest is not made: `cargo xtask guest`");
    };
    let path = scratch().join("interpreted.json");
    let mut command = common::coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "1s", "--outcome"]).arg(&path).arg(kernel);
    finish(&mut command).expect(124, "use `--accel emulate`, or a host with VT-x or AMD-V");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["diagnosis"]["hints"][0]["hint"], "interpreted-kernel");
    assert!(json["diagnosis"]["vcpus"][0]["code"]["text"].is_string(), "{json}");
}

#[test]
fn boot_mark_of_any_guest_is_its_init() {
    needs_kvm!();
    let path = scratch().join("mark.json");
    finish(run_payload("ports").args(["--serial", "null", "--outcome"]).arg(&path)).expect(0, "");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_ne!(json["phase"], "init", "bytes that are not the mark");
    finish(run_payload("boot-mark").arg("--outcome").arg(&path)).expect(0, "");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["phase"], "init");
    assert_eq!(json["progress"][0]["sign"], "init-mark");
    assert!(json["progress"][0]["ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn console_output_is_byte_exact_and_alone_on_stdout() {
    needs_kvm!();
    let run = finish(&mut run_payload("hello"));
    run.expect(0, "powered off");
    assert_eq!(run.text(), "hello\r\n");
    assert_eq!(run.stderr.lines().count(), 1, "{:?}", run.stderr);
}

#[test]
fn string_instructions_keep_every_item() {
    needs_kvm!();
    let run = finish(&mut run_payload("rep-io"));
    run.expect(0, "code 0");
    assert_eq!(run.text(), "repeated output keeps every byte\r\n");
}

#[test]
fn all_ports_and_odd_widths_are_harmless() {
    needs_kvm!();
    finish(run_payload("ports").args(["--serial", "null"])).expect(0, "code 0");
    finish(&mut run_payload("widths")).expect(0, "code 0");
    finish(run_payload("serial-registers").args(["--serial", "null"])).expect(0, "code 0");
}

#[test]
fn ram_ends_where_it_should() {
    needs_kvm!();
    finish(run_payload("ram-end").args(["--memory", "128M"])).expect(0, "code 0");
    finish(run_payload("ram-hole").args(["--memory", "3584M"])).expect(0, "code 0");
}

#[test]
fn outcome_file_has_the_facts() {
    needs_kvm!();
    let path = scratch().join("outcome-facts.json");
    finish(run_payload("hello").arg("--outcome").arg(&path)).expect(0, "");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["ending"], "powered-off");
    assert_eq!(json["code"], 0);
    assert_eq!(json["phase"], "console");
    assert_eq!(json["console_bytes"], 7);
    // Seven characters, and the write to the sleep register.
    assert_eq!(json["exits"]["port_out"], 8);
    assert_eq!(json["exits"]["mmio_read"], 0);
    assert!(json["duration_ms"].as_f64().unwrap() > 0.0);

    finish(run_payload("exit-200").arg("--outcome").arg(&path)).expect(100, "");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["workload_code"], 200);
    assert_eq!(json["phase"], "entered");
}

#[test]
fn outcome_file_tells_why_a_guest_was_not_run() {
    let path = scratch().join("outcome-not-run.json");
    let mut command = common::coracle();
    command.args(["run", "--accel", "kvm", "/no/such/kernel", "--outcome"]).arg(&path);
    finish(&mut command).expect(125, "/no/such/kernel");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["ending"], "not-run");
    assert_eq!(json["code"], 125);
}

#[test]
fn outcome_file_that_cannot_be_written_is_said() {
    needs_kvm!();
    finish(run_payload("poweroff").args(["--outcome", "/no/such/folder/x"])).expect(125, "/no/such/folder/x");
}

#[test]
fn serial_file_takes_the_console_and_stdout_stays_empty() {
    needs_kvm!();
    let path = scratch().join("serial.log");
    let run = finish(run_payload("hello").arg("--serial").arg(format!("file={}", path.display())));
    run.expect(0, "");
    assert_eq!(run.text(), "");
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello\r\n");
}

#[test]
fn input_of_100_kb_reaches_the_guest_without_a_loss() {
    needs_kvm!();
    // Every byte except `q`, which ends the payload.
    let input: Vec<u8> =
        (0..100_000u32).map(|n| (n % 251) as u8).map(|b| if b == b'q' { b'Q' } else { b }).collect();
    let run = finish_with_input(&mut run_payload("echo"), &[&input[..], b"q"].concat());
    run.expect(0, "powered off");
    assert_eq!(run.stdout.len(), input.len() + 1);
    assert!(run.stdout.starts_with(&input));
}

#[test]
fn stopped_reader_neither_blocks_the_guest_nor_grows_memory() {
    needs_kvm!();
    let mut command = run_payload("flood");
    command.args(["--memory", "16M"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    // SAFETY: the pipe is open. The smallest pipe fills up soonest.
    unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    let status = || fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let rss_kib = || -> u64 {
        let status = status();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let cpu_ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let times = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        times.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    eventually("the guest runs", || cpu_ticks() > 10);
    let before = rss_kib();
    let ticks = cpu_ticks();
    eventually("the guest runs on", || cpu_ticks() > ticks + 150);
    assert!(rss_kib() < before + 1024, "{before} KiB before, {} KiB after", rss_kib());
    signal(&child, libc::SIGQUIT);
    let run = collect(child);
    run.expect(131, "bytes of console output were lost");
    drop(stdout);
}

#[test]
fn closed_and_full_stdout_do_not_end_the_guest() {
    needs_kvm!();
    let mut command = run_payload("flood");
    command.args(["--timeout", "300ms"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    collect(child).expect(124, "were lost");

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = run_payload("flood");
    command.args(["--timeout", "300ms"]).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
    collect(command.spawn().unwrap()).expect(124, "were lost");
}

#[test]
fn payload_needs_no_more_than_its_own_memory() {
    needs_kvm!();
    finish(run_payload("poweroff").args(["--memory", "2M"])).expect(0, "");
}

#[test]
fn many_vcpus_wait_for_their_start_and_stop() {
    needs_kvm!();
    finish(run_payload("poweroff").args(["--cpus", "64"])).expect(0, "");
}

#[test]
fn initrd_larger_than_ram_is_refused_with_the_least_size() {
    needs_kvm!();
    let initrd = file("large.cpio", &vec![b'0'; 8 << 20]);
    let mut command = run_payload("poweroff");
    command.args(["--memory", "4M", "-i"]).arg(&initrd);
    finish(&mut command).expect(125, "--memory 4M: this kernel");
}

#[test]
fn image_that_is_not_linux_runs_on_whatever_kvm_there_is() {
    needs_kvm!();
    let mut command = common::coracle();
    command.arg("run").arg(payload("hello"));
    let run = finish(&mut command);
    run.expect(0, "powered off");
    assert!(!run.stderr.contains("emulated"), "{}", run.stderr);
}

//! Tests of commands and files in Linux guests, through the agent.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle::agent::{
    AgentError, AgentPlaceInGuest, ExecError, ExecInput, ExecStatus, FileKind, NetworkSettings, WindowSize,
};
use coracle::config::{
    AgentConfig, AgentPlace, AgentTransport, ConsoleDevice, DiskConfig, ResetPolicy, VmConfig,
    default_cmdline_with,
};
use coracle::guest_data::{self, GuestData};
use coracle::outcome::Ending;
use coracle::{Grace, Vm, VmBuilder};

use super::common::network::{in_own_network, passt, serve_page, socket_for_everyone, tap};
use super::{common, data, no_linux, virtio};

/// Far longer than anything takes on an emulated host.
const LIMIT: Duration = Duration::from_secs(250);
const GRACE: Grace = Grace(Duration::from_secs(20));

fn guest(kernel: GuestData) -> VmConfig {
    VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet"]),
        agent: Some(AgentConfig::default()),
        timeout: Some(LIMIT),
        ..VmConfig::new(data(kernel))
    }
}

/// The kernel that boots fastest.
fn quick_guest() -> VmConfig {
    guest(quick_kernel())
}

fn quick_kernel() -> GuestData {
    let tuned = guest_data::find(GuestData::TunedVmlinux).is_ok();
    if tuned { GuestData::TunedVmlinux } else { GuestData::GuestVmlinux }
}

fn sh(vm: &Vm, script: &str) -> coracle::agent::Exec {
    vm.exec(["sh", "-c", script]).timeout(LIMIT)
}

fn run_a_command_and_power_off(config: VmConfig) {
    let vm = VmBuilder::new(config).start().unwrap();
    let output = sh(&vm, "cat; echo err >&2; exit 7").stdin("in").output().unwrap();
    assert_eq!(output.status, ExecStatus::Code(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"in"[..], &b"err\n"[..]));
    vm.write_file("/tmp/file", "content").unwrap();
    assert_eq!(vm.read_file("/tmp/file").unwrap(), b"content");
    assert_eq!(vm.stop(GRACE).ending, Ending::PoweredOff);
    let gone = vm.exec(["true"]).output();
    assert!(matches!(gone, Err(ExecError::Agent { error: AgentError::MachineEnded { .. }, .. })), "{gone:?}");
}

#[test]
fn stock_guest_runs_a_command_by_vsock_and_powers_off() {
    needs_linux!();
    run_a_command_and_power_off(guest(GuestData::GuestVmlinux));
}

#[test]
fn stock_guest_runs_a_command_by_serial_line_and_powers_off() {
    needs_linux!();
    let mut config = guest(GuestData::GuestVmlinux);
    config.agent = Some(AgentConfig { transport: AgentTransport::Serial, ..AgentConfig::default() });
    run_a_command_and_power_off(config);
}

fn by_console_port(kernel: GuestData) -> VmConfig {
    let agent = AgentConfig { transport: AgentTransport::Console, ..AgentConfig::default() };
    VmConfig { agent: Some(agent), ..guest(kernel) }
}

#[test]
fn stock_guest_runs_a_command_by_console_port_and_powers_off() {
    needs_linux!();
    run_a_command_and_power_off(by_console_port(GuestData::GuestVmlinux));
}

/// Beside the console, on a kernel that has the driver built in, if there is one.
#[test]
fn console_port_carries_more_than_it_holds_and_a_new_session_after_a_reset() {
    needs_linux!();
    let config = VmConfig {
        console: ConsoleDevice::Virtio,
        on_reset: ResetPolicy::Reboot,
        ..by_console_port(quick_kernel())
    };
    let vm = VmBuilder::new(config).start().unwrap();
    vm.wait_ready(LIMIT).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    vm.write_file("/tmp/bytes", &bytes).unwrap();
    assert!(vm.read_file("/tmp/bytes").unwrap() == bytes);

    // A stream that nobody reads does not hold up another.
    let flood = sh(&vm, "exec cat /dev/zero").spawn().unwrap();
    assert_eq!(sh(&vm, "echo quick").output().unwrap().stdout, b"quick\n");
    let reset = sh(&vm, "echo b > /proc/sysrq-trigger; sleep 100").output();
    assert!(matches!(reset, Err(ExecError::Agent { error: AgentError::Lost, .. })), "{reset:?}");
    drop(flood);
    assert_eq!(sh(&vm, "echo again; ls /tmp").output().unwrap().stdout, b"again\n");
    assert_eq!(vm.stop(GRACE).ending, Ending::PoweredOff);
}

#[test]
fn guest_runs_what_a_shell_runs() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let info = vm.wait_ready(LIMIT).unwrap();
    assert_eq!(info.place, AgentPlaceInGuest::FirstProcess);
    for code in [0, 1, 99, 255] {
        assert_eq!(sh(&vm, &format!("exit {code}")).status().unwrap(), ExecStatus::Code(code));
    }
    assert_eq!(sh(&vm, "kill -9 $$").status().unwrap(), ExecStatus::Signal(9));
    assert!(matches!(vm.exec(["/no/such"]).output(), Err(ExecError::NotFound { .. })));
    assert_eq!(sh(&vm, "id -u; id -g").user("7:8").output().unwrap().stdout, b"7\n8\n");

    // A slow reader, and streams that are fast.
    let mut flood = sh(&vm, "head -c 10000000 /dev/zero").spawn().unwrap();
    assert_eq!(sh(&vm, "echo quick").output().unwrap().stdout, b"quick\n");
    let mut count = 0;
    let mut stdout = flood.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    while let Ok(read @ 1..) = stdout.read(&mut buffer) {
        count += read;
    }
    assert_eq!((count, flood.wait().unwrap()), (10_000_000, ExecStatus::Code(0)));

    // A command without input, and one on a terminal that is resized.
    let output = sh(&vm, "head -c 1; exit 5").stdin(vec![b'x'; 1_000_000]).output().unwrap();
    assert_eq!((output.status, output.stdout.as_slice()), (ExecStatus::Code(5), &b"x"[..]));
    let size = WindowSize { rows: 30, columns: 100 };
    let mut terminal =
        sh(&vm, "stty size; read x; stty size").tty(size).stdin(ExecInput::Piped).spawn().unwrap();
    let mut first = [0; 8];
    terminal.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"30 100\r\n");
    terminal.resize(WindowSize { rows: 40, columns: 120 });
    terminal.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let output = terminal.wait_with_output().unwrap();
    assert!(output.stdout.ends_with(b"40 120\r\n"), "{output:?}");

    // A time-out also ends children in other sessions.
    let script = "setsid sleep 600 & echo $! > /tmp/pid; sleep 600; true";
    let error = vm.exec(["sh", "-c", script]).timeout(Duration::from_secs(1)).output().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
    if info.kills_groups {
        common::eventually("the child is dead", || {
            !sh(&vm, "kill -0 $(cat /tmp/pid) 2>/dev/null").status().unwrap().success()
        });
    }

    // An unprivileged process cannot use a port from which the host accepts an agent.
    let other = sh(&vm, "/init vsock:1024 & sleep 1; kill $!").user("7:8").output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("Permission denied"), "{other:?}");

    let listed = vm.list_dir("/dev").unwrap();
    let null = listed.iter().find(|entry| entry.name == "null").unwrap();
    assert_eq!((null.kind, null.mode), (FileKind::CharacterDevice, 0o666));
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    vm.handle().set_clock(time).unwrap();
    assert!(sh(&vm, "date -u +%Y-%m").output().unwrap().stdout.starts_with(b"2001-09"));
    assert_eq!(vm.stop(GRACE).ending, Ending::PoweredOff);
}

#[test]
fn commands_keep_to_their_limits() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    assert!(vm.wait_ready(LIMIT).unwrap().kills_groups);
    let many = sh(&vm, "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait; echo done");
    let output = many.max_processes(4).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't fork"), "{output:?}");
    let large = vm.exec(["tail", "/dev/zero"]).timeout(LIMIT).max_memory(16 << 20);
    assert_eq!(large.status().unwrap(), ExecStatus::Signal(9));
    // The group's own counter shows how long the kernel has throttled it, on any host.
    let busy = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; mkdir /tmp/c; mount -t cgroup2 c /tmp/c; \
                cat /tmp/c$(sed s/0::// /proc/self/cgroup)/cpu.stat";
    let stat = String::from_utf8(sh(&vm, busy).cpu_quota_percent(10).output().unwrap().stdout).unwrap();
    let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
    assert_ne!(throttled, "0", "{stat}");
    // Everything that a command starts ends with it, and the limits of one command are not those of the next.
    let pid = sh(&vm, "setsid sleep 600 >/dev/null 2>&1 & echo $!").kill_tree(true).output().unwrap().stdout;
    let pid = String::from_utf8(pid).unwrap();
    common::eventually("what was started is dead", || {
        !sh(&vm, &format!("kill -0 {pid}")).status().unwrap().success()
    });
    let free = sh(
        &vm,
        "for i in 1 2 3 4 5 6 7 8; do sleep 0 & done; wait; cat /tmp/c$(sed s/0::// /proc/self/cgroup)/pids.max",
    );
    let output = free.output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"max\n"[..], &b""[..]));
}

#[test]
fn two_hundred_commands_run_in_a_guest_at_once() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    vm.wait_ready(LIMIT).unwrap();
    common::run_200_at_once(|number| {
        sh(&vm, &format!("read x; echo $x {number}; exit {number}")).stdin("in\n")
    });
}

#[test]
fn files_cross_with_equal_hashes() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let block: Vec<u8> = (0..100_003_u32).map(|number| (number ^ (number >> 9)) as u8).collect();
    for len in [0, 1, 64 << 20] {
        let mut content = block.repeat(len / block.len() + 1);
        content.truncate(len);
        vm.write_file("/tmp/file", &content).unwrap();
        let size = sh(&vm, "wc -c < /tmp/file").output().unwrap().stdout;
        assert_eq!(String::from_utf8(size).unwrap().trim(), len.to_string());
        let mut back = Vec::new();
        vm.handle().agent().unwrap().read_file_to("/tmp/file", u64::MAX, &mut back).unwrap();
        assert!(back == content, "{len} bytes have changed on their way");
    }
}

#[test]
fn guest_that_panics_ends_what_runs() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let mut running =
        sh(&vm, "echo 1 > /proc/sys/kernel/sysrq; echo up; read x; echo c > /proc/sysrq-trigger")
            .stdin(ExecInput::Piped)
            .spawn()
            .unwrap();
    let mut up = [0; 3];
    running.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let error = running.wait().unwrap_err();
    assert!(matches!(error, ExecError::Agent { error: AgentError::MachineEnded { .. }, .. }), "{error}");
    assert!(matches!(vm.wait().ending, Ending::Panicked { .. }));
}

#[test]
fn command_that_ends_its_machine_gives_what_it_wrote_and_why() {
    needs_linux!();
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let script =
        "echo 1 > /proc/sys/kernel/sysrq; echo out; echo err >&2; sleep 1; echo c > /proc/sysrq-trigger";
    let error = sh(&vm, script).output().unwrap_err();
    let ExecError::Agent { error: AgentError::MachineEnded { ending, panic }, written } = &error else {
        panic!("{error}")
    };
    assert!(matches!(**ending, Ending::Panicked { .. }), "{error}");
    assert!(panic.as_ref().is_some_and(|reason| reason.contains("sysrq")), "{error}");
    assert!(error.to_string().contains("sysrq triggered crash"), "{error}");
    assert_eq!((written.stdout.as_slice(), written.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let error = sh(&vm, "echo out; poweroff -f; exec sleep 1000").output().unwrap_err();
    let ExecError::Agent { error: AgentError::MachineEnded { ending, .. }, written } = &error else {
        panic!("{error}")
    };
    assert_eq!((&**ending, written.stdout.as_slice()), (&Ending::PoweredOff, &b"out\n"[..]));

    // The agent ends first, and the machine a moment later.
    let vm = VmBuilder::new(quick_guest()).start().unwrap();
    let mut running = sh(&vm, "echo up; trap '' TERM HUP; while :; do sleep 1; done").spawn().unwrap();
    running.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    vm.agent().unwrap().power_off().unwrap();
    let error = running.wait().unwrap_err();
    let ExecError::Agent { error: AgentError::MachineEnded { ending, .. }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(**ending, Ending::PoweredOff);
}

/// A system on a disk whose init only waits.
fn system(name: &str, place: AgentPlace) -> Option<VmConfig> {
    let init =
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\nwhile :; do /bin/busybox sleep 1; done\n";
    let disk = virtio::image_with_init(&format!("{name}.img"), name, init)?;
    let disk: DiskConfig = format!("path={}", disk.display()).parse().unwrap();
    Some(VmConfig {
        cmdline: default_cmdline_with(["quiet root=/dev/vda rw"]),
        agent: Some(AgentConfig::new(place)),
        disks: vec![disk],
        timeout: Some(LIMIT),
        ..VmConfig::new(data(GuestData::GuestVmlinuz))
    })
}

#[test]
fn agent_beside_the_init_of_a_disk_sees_its_system() {
    needs_linux!();
    let Some(config) = system("beside", AgentPlace::BesideInit) else { return };
    let vm = VmBuilder::new(config).start().unwrap();
    assert_eq!(vm.wait_ready(LIMIT).unwrap().place, AgentPlaceInGuest::BesideInit);
    common::eventually("the agent has followed the init", || {
        vm.list_dir("/sbin").is_ok_and(|entries| entries.iter().any(|entry| entry.name == "init"))
    });
    common::eventually("the system's init is process 1", || {
        let cat = vm.exec(["/bin/busybox", "cat", "/proc/1/cmdline"]).timeout(LIMIT).output().unwrap();
        String::from_utf8_lossy(&cat.stdout).contains("/sbin/init")
    });
    vm.write_file("/kept", "by the agent").unwrap();
    assert_eq!(vm.stop(GRACE).ending, Ending::PoweredOff);
}

#[test]
fn agent_is_the_first_process_of_a_disk() {
    needs_linux!();
    let Some(config) = system("first", AgentPlace::FirstProcess) else { return };
    let vm = VmBuilder::new(config).start().unwrap();
    assert_eq!(vm.wait_ready(LIMIT).unwrap().place, AgentPlaceInGuest::FirstProcess);
    let output = vm.exec(["/bin/busybox", "cat", "/proc/1/cmdline"]).timeout(LIMIT).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("busybox"), "{output:?}");
    assert!(vm.list_dir("/sbin").unwrap().iter().any(|entry| entry.name == "init"));
    assert_eq!(vm.stop(GRACE).ending, Ending::PoweredOff);
}

#[test]
fn smallest_program_that_embeds_prints_what_its_command_has_written() {
    needs_linux!();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debug/examples/embed-minimal");
    if !program.is_file() {
        return common::skip(&format!("{} is missing: `cargo xtask test` makes it", program.display()));
    }
    let run = common::finish(&mut Command::new(program));
    run.expect(0, "");
    let text = run.text();
    assert!(text.starts_with("hello from Linux 6.") && text.ends_with("\nthe guest powered off\n"), "{text}");
}

#[test]
fn network_of_the_first_card_comes_up_by_dhcp_whatever_it_is_called() {
    needs_linux!();
    in_own_network(|| {
        let socket = socket_for_everyone("passt-agent");
        let Some(_passt) = passt(&socket) else { return };
        let server = serve_page(8000);
        let mut config = quick_guest();
        config.nets.push(format!("socket={}", socket.display()).parse().unwrap());
        tap("tap0");
        config.nets.push("tap=tap0".parse().unwrap());
        let vm = VmBuilder::new(config).start().unwrap();
        vm.wait_ready(LIMIT).unwrap();
        // The second card now has the name of the first, and the file is like that of systemd-resolved.
        let prepare =
            "ip link set eth0 name zz0 && ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf";
        assert_eq!(sh(&vm, prepare).output().unwrap().status, ExecStatus::Code(0));
        let settings = NetworkSettings { dns: vec![[10, 9, 0, 9].into()], ..NetworkSettings::default() };
        let info = vm.network_up(settings).unwrap();
        assert_eq!((info.interface.to_str(), info.address), (Some("zz0"), [10, 9, 0, 2].into()));
        assert_eq!(vm.read_file("/etc/resolv.conf").unwrap(), b"nameserver 10.9.0.9\n");
        assert_eq!((info.prefix, info.gateway), (24, Some([10, 9, 0, 1].into())));
        let page =
            vm.exec(["wget", "-q", "-O", "-", "http://10.9.0.1:8000/"]).timeout(LIMIT).output().unwrap();
        assert_eq!(page.stdout, b"page\n", "{page:?}");
        server.join().unwrap();
        let none = NetworkSettings { interface: Some("eth7".into()), ..NetworkSettings::default() };
        assert!(matches!(vm.network_up(none), Err(AgentError::Refused { .. })));
        let _ = std::fs::remove_dir_all(socket.parent().unwrap());
    });
}

//! Tests of Linux guests that go on from files while every device is in use: disks, network, sockets,
//! console, commands and their terminals, and the clocks.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle::agent::{ExecInput, Process, WindowSize};
use coracle::config::default_cmdline_with;
use coracle::config::{AgentConfig, ConsoleDevice, DiskConfig, NetConfig, VmConfig, VsockConfig};
use coracle::guest_data::{self, GuestData};
use coracle::{Fork, GuestTime, Restore, Template, Vm, VmBuilder};
use sha2::{Digest, Sha256};

use super::common::forks::Piped;
use super::common::network::{in_own_network, ip, ip_batch, tap};
use super::forks::{LIMIT, counting, each_is_another, say, sh};
use super::net::{bytes, serve_bytes};
use super::{common, data, no_linux};

/// The ends on the host of a machine's devices.
struct Ends {
    /// The file of a disk that the guest writes to itself, `vda`.
    own: PathBuf,
    /// The file below a copy-on-write disk, `vdb`.
    below: PathBuf,
    tap: String,
    socket: PathBuf,
    /// Accepts the guest's connections to [`PORT`].
    listener: UnixListener,
}

impl Ends {
    /// Makes the ends of a machine of this name, with a tap that reaches the host's address.
    fn new(name: &str, disk: &[u8]) -> Ends {
        let tap_name = format!("tap-{name}");
        tap(&tap_name);
        let socket = own_path(&format!("{name}.socket"));
        let listener = UnixListener::bind(format!("{}_{PORT}", socket.display())).unwrap();
        let [own, below] = ["own", "below"].map(|kind| {
            let path = own_path(&format!("{name}.{kind}"));
            fs::write(&path, disk).unwrap();
            path
        });
        Ends { own, below, tap: tap_name, socket, listener }
    }

    /// Makes the ends of a machine that goes on from one with these ends.
    fn after(former: &Ends, name: &str) -> Ends {
        let ends = Ends::new(name, &fs::read(&former.own).unwrap());
        fs::copy(&former.below, &ends.below).unwrap();
        ends
    }

    fn disks(&self) -> [DiskConfig; 2] {
        [
            format!("path={},id=own", self.own.display()),
            format!("path={},id=below,{COW}", self.below.display()),
        ]
        .map(|text| text.parse().unwrap())
    }

    fn net(&self) -> NetConfig {
        format!("tap={}", self.tap).parse().unwrap()
    }

    fn vsock(&self) -> VsockConfig {
        VsockConfig { cid: 42, uds: Some(self.socket.clone()), id: None }
    }

    /// Names all of them for a machine that goes on.
    fn named(&self, fork: Fork) -> Fork {
        let [own, below] = self.disks();
        fork.disk("own", own).disk("below", below).net("net0", self.net()).vsock(self.vsock()).timeout(LIMIT)
    }

    fn restore(&self, folder: &Path) -> Restore {
        Vm::restore(folder).with(|fork| self.named(fork).console_piped())
    }

    /// Puts the tap on the bridge, from which it takes the host's address.
    fn join(&self) {
        ip(&format!("link set {} master br0", self.tap));
    }
}

/// Returns a path in a directory of this machine's own: sockets, locks and holes do not work on every shared
/// one.
fn own_path(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("coracle-snapshots-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// A guest whose devices are all in use.
struct Busy {
    piped: Piped,
    counting: Process,
    terminal: Process,
    /// The connection of a process of the guest to [`PORT`].
    connection: UnixStream,
    /// The checksum of `vda`, of which the guest still has blocks to write.
    checksum: String,
}

impl Busy {
    fn start(kernel: GuestData, ends: &Ends) -> Busy {
        let vm = VmBuilder::new(VmConfig {
            initrds: vec![data(GuestData::GuestInitramfs)],
            cmdline: default_cmdline_with(["quiet"]),
            agent: Some(AgentConfig::default()),
            console: ConsoleDevice::Virtio,
            disks: ends.disks().into(),
            nets: vec![ends.net()],
            vsock: Some(ends.vsock()),
            rng: true,
            balloon: true,
            timeout: Some(LIMIT),
            ..VmConfig::new(data(kernel))
        });
        let mut piped = Piped::of(vm.console_piped().start().unwrap());
        let vm = &piped.vm;
        vm.wait_ready(LIMIT).unwrap();
        sh(vm, "mkdir -p /etc; echo 0123456789abcdef0123456789abcdef > /etc/machine-id");
        ends.join();
        sh(vm, "ip addr add 10.9.0.1/24 dev eth0; ip link set eth0 up; ping -c 1 10.9.0.254");
        aside(vm, "echo $$ > /tmp/second; exec coracle-agent vsock:2000");
        let (connection, _) = ends.listener.accept().unwrap();
        let counting = counting(vm);
        let script = "stty size; while read word; do echo got $word; stty size; done";
        let terminal = vm.exec(["sh", "-c", script]).tty(WindowSize { rows: 30, columns: 100 });
        let mut terminal = terminal.stdin(ExecInput::Piped).spawn().unwrap();
        until(terminal.stdout.as_mut().unwrap(), "30 100\r\n");
        sh(vm, "echo before > /dev/hvc0");
        until(&mut piped.output, "before");
        let vm = &piped.vm;
        aside(vm, WRITER);
        sh(vm, "while [ ! -s /tmp/written ]; do sleep 0.1; done");
        // The blocks are in the guest's memory when the machine is saved.
        sh(vm, "dd if=/dev/urandom of=/dev/vda bs=64k seek=3 count=16 2> /dev/null");
        let checksum = sh(vm, "sha256sum < /dev/vda; dmesg -c > /dev/null");
        Busy { piped, counting, terminal, connection, checksum }
    }
}

/// Starts a script that outlives its command.
fn aside(vm: &Vm, script: &str) {
    sh(vm, &format!("setsid sh -c '{script}' > /dev/null 2>&1 < /dev/null &"));
}

/// Writes each number to a block of its own, flushes that, and notes the number.
const WRITER: &str = "
    echo $$ > /tmp/writer
    i=0
    while :; do
        i=$((i+1))
        echo $i | dd of=/dev/vdb bs=4k seek=$i conv=notrunc,fsync
        echo $i > /tmp/new
        mv /tmp/new /tmp/written
        sleep 0.1
    done";

/// Lets the writer go on for a while, and ends it.
const GOES_ON: &str = "
    n=$(cat /tmp/written)
    while [ $(cat /tmp/written) -lt $((n+3)) ]; do sleep 0.1; done
    kill $(cat /tmp/writer)
    sleep 0.5";

/// Prints the last blocks that do not have what the writer wrote, before the machine was saved or after. The
/// guest has forgotten its own copies.
const WRONG_BLOCKS: &str = "
    sync
    echo 3 > /proc/sys/vm/drop_caches
    n=$(cat /tmp/written)
    i=$((n > 20 ? n - 20 : 0))
    while [ $i -lt $n ]; do
        i=$((i+1))
        [ $(dd if=/dev/vdb bs=4k skip=$i count=1 2> /dev/null | head -n 1) = $i ] || echo $i
    done";

/// Reads until these words have come.
#[track_caller]
fn until(reader: &mut (impl Read + ?Sized), words: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(words) {
        let mut byte = [0];
        assert_eq!(
            reader.read(&mut byte).unwrap(),
            1,
            "{words:?} is not in {}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend(byte);
    }
}

/// Checks that a guest that was [`Busy`] goes on with other ends.
fn goes_on(restored: &mut Piped, ends: &Ends, checksum: &str) {
    let vm = &restored.vm;
    ends.join();
    sh(vm, "ping -c 1 10.9.0.254");
    let server = serve_bytes("10.9.0.254:8000");
    sh(vm, "wget -q -O /tmp/bytes http://10.9.0.254:8000/ && nc 10.9.0.254 8000 < /tmp/bytes; rm /tmp/bytes");
    assert!(server.join().unwrap() == bytes(), "1 MB came through");

    // Its connection is gone, and it has made a new one.
    ends.listener.accept().unwrap();

    let processes = vm.processes().unwrap();
    let [counting, terminal] = processes.as_slice() else { panic!("{processes:?}") };
    assert!(!counting.has_terminal && terminal.has_terminal, "{processes:?}");
    say(&mut vm.attach(counting).unwrap(), "two", "two 2\n");
    let mut terminal = vm.attach(terminal).unwrap();
    typed(&mut terminal, "one", "got one\r\n30 100\r\n");
    terminal.resize(WindowSize { rows: 40, columns: 120 });
    typed(&mut terminal, "two", "got two\r\n40 120\r\n");

    sh(vm, GOES_ON);
    assert_eq!(sh(vm, WRONG_BLOCKS), "");
    assert_eq!(sh(vm, "sha256sum < /dev/vda"), checksum);
    let file = Sha256::digest(fs::read(&ends.own).unwrap());
    let file: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(checksum.starts_with(&file), "{checksum} is not {file}");

    sh(vm, "echo after > /dev/hvc0");
    until(&mut restored.output, "after");
    let vm = &restored.vm;
    let reader = vm.exec(["sh", "-c", "read line < /dev/hvc0; echo $line"]).spawn().unwrap();
    restored.input.write_all(b"typed\n").unwrap();
    assert_eq!(reader.wait_with_output().unwrap().stdout, b"typed\n");
    assert_ne!(sh(vm, "cat /etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
    assert_eq!(sh(vm, COMPLAINTS), "");
}

/// Checks that a guest that was [`Busy`] has run on while its snapshot was made.
fn has_run_on(busy: &mut Busy) {
    say(&mut busy.counting, "two", "two 2\n");
    typed(&mut busy.terminal, "one", "got one\r\n30 100\r\n");
    busy.connection.set_nonblocking(true).unwrap();
    let end = busy.connection.read(&mut [0; 64]);
    assert!(!matches!(end, Ok(0)), "its connection is still there: {end:?}");
    assert_eq!(sh(&busy.piped.vm, "sha256sum < /dev/vda"), busy.checksum);
}

/// Types a line at a terminal, and waits for these words.
fn typed(terminal: &mut Process, line: &str, words: &str) {
    terminal.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    until(terminal.stdout.as_mut().unwrap(), words);
}

/// A snapshot of a guest in which a timer runs and no CPU is ever idle, and the guest's clocks at that time.
struct Clocks {
    folder: PathBuf,
    /// Before the first look at the guest's clock, and after the snapshot.
    taken: [Instant; 2],
    uptime: f64,
}

impl Clocks {
    fn take(vm: &Vm) -> Clocks {
        // The watchdog ignores a CPU that was idle.
        aside(vm, "while :; do :; done");
        aside(vm, &format!("sleep {TIMER}; echo fired >> /tmp/fired"));
        let before = Instant::now();
        let uptime = uptime(vm);
        let folder = own_path("clocks");
        vm.snapshot_to(&folder).unwrap();
        Clocks { folder, taken: [before, Instant::now()], uptime }
    }

    /// Checks the clocks of a machine that goes on after [`GAP`]: its uptime, its date, and the timer.
    fn go_on(&self, ends: &Ends, time: GuestTime) {
        thread::sleep((self.taken[1] + GAP).saturating_duration_since(Instant::now()));
        let begun = Instant::now();
        let restored = ends.restore(&self.folder).time(time).start().unwrap();
        let passed = uptime(&restored) - self.uptime;
        let at_most = self.taken[0].elapsed().as_secs_f64();
        let date = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let asked = date(SystemTime::now());
        let told: u64 = sh(&restored, "date +%s").trim().parse().unwrap();
        assert!((asked - 1..=date(SystemTime::now()) + 1).contains(&told), "{told}, asked at {asked}");
        let fired = || sh(&restored, "cat /tmp/fired 2> /dev/null; true");
        if time == GuestTime::Elapsed {
            let gap = begun.duration_since(self.taken[1]).as_secs_f64();
            assert!((gap..at_most + 0.1).contains(&passed), "{passed} s passed, {gap} to {at_most}");
            common::eventually("the timer fires", || !fired().is_empty());
        } else {
            let gap = begun.duration_since(self.taken[1]).as_secs_f64();
            assert!(
                (0.0..at_most - gap + 0.1).contains(&passed),
                "{passed} s passed, at most {at_most} - {gap}"
            );
            assert!(passed > TIMER - 5.0 || fired().is_empty(), "{passed} s have passed");
        }
        // Time for the watchdog, which looks every 4 s.
        sh(&restored, "sleep 5");
        assert_eq!(sh(&restored, COMPLAINTS), "");
        assert!(fired().lines().count() == usize::from(time == GuestTime::Elapsed) || passed > TIMER - 10.0);
    }
}

fn uptime(vm: &Vm) -> f64 {
    sh(vm, "cut -d' ' -f1 /proc/uptime").trim().parse().unwrap()
}

/// Makes 16 forks of a machine that goes on from files. Each writes over the disk of that one, and has a card
/// and a socket of its own.
fn forks(template: &Template, former: &Ends) -> Vec<Vm> {
    let taps = (0..16).map(|index| format!("tuntap add tap-f{index} mode tap\nlink set tap-f{index} up\n"));
    ip_batch(&taps.collect::<String>());
    let disk = format!("path={},{COW}", former.own.display());
    let named = |index: usize, fork: Fork| {
        let uds = Some(own_path(&format!("f{index}.socket")));
        fork.hostname(format!("w{index}"))
            .env("OWN", "it's")
            .disk("own", disk.parse().unwrap())
            .net("net0", NetConfig::tap(format!("tap-f{index}")))
            .vsock(VsockConfig { cid: 100 + index as u32, uds, id: None })
            .timeout(LIMIT)
    };
    template.fork(16, named).unwrap()
}

#[test]
fn guests_go_on_from_files_with_every_device_in_use_and_in_16_forks() {
    needs_linux!();
    in_own_network(|| {
        // An address that does not follow the taps'.
        ip("link add br0 address 02:00:00:00:00:fe type bridge");
        ip("addr add 10.9.0.254/24 dev br0");
        ip("link set br0 up");
        let disk: Vec<u8> = bytes().into_iter().cycle().take(2 << 20).collect();

        let first = Ends::new("stock", &disk);
        let (busy, second, folder) = saved(GuestData::GuestVmlinux, &first, "stock");
        let clocks = Clocks::take(&busy.piped.vm);
        let clock_ends = Ends::after(&first, "clocks");
        let checksum = busy.checksum.clone();
        drop(busy);
        let mut restored = Piped::of(second.restore(&folder).start().unwrap());
        goes_on(&mut restored, &second, &checksum);
        // Nobody would answer those of the forks.
        sh(&restored.vm, "kill $(cat /tmp/second)");
        let template = restored.vm.freeze().unwrap();
        drop(restored);
        let forks = forks(&template, &second);
        each_is_another(&forks);
        let written = "dd if=/dev/urandom of=/dev/vda bs=64k count=4 conv=fsync 2> /dev/null";
        sh(&forks[0], written);
        assert_eq!(sh(&forks[15], "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/vda"), checksum);
        drop((forks, template));

        let tuned = guest_data::find(GuestData::TunedVmlinux);
        match tuned {
            Ok(_) => {
                let first = Ends::new("tuned", &disk);
                let (busy, second, folder) = saved(GuestData::TunedVmlinux, &first, "tuned");
                let checksum = busy.checksum.clone();
                drop(busy);
                goes_on(&mut Piped::of(second.restore(&folder).start().unwrap()), &second, &checksum);
            }
            Err(error) => common::skip(&error.to_string()),
        }
        for time in [GuestTime::Stands, GuestTime::Elapsed] {
            clocks.go_on(&clock_ends, time);
        }
        let _ = fs::remove_dir_all(own_path("x").parent().unwrap());
    });
}

/// Starts a guest, saves it, and returns the ends for one that goes on, with copies of the disks.
fn saved(kernel: GuestData, first: &Ends, name: &str) -> (Busy, Ends, PathBuf) {
    let mut busy = Busy::start(kernel, first);
    let folder = own_path(name);
    busy.piped.vm.snapshot_to(&folder).unwrap();
    let second = Ends::after(first, &format!("{name}-2"));
    has_run_on(&mut busy);
    (busy, second, folder)
}

/// The port of the host to which a process of the guest connects.
const PORT: u32 = 2000;
/// Directories in memory need a limit.
const COW: &str = "cow,cow-size=2M";
/// The time after which machines go on.
const GAP: Duration = Duration::from_secs(60);
/// The seconds of a timer that is due during the gap.
const TIMER: f64 = 50.0;
/// Prints what the kernel has complained about since the machine was saved. On a busy host, it finds the TSC
/// unstable, but it does not use that.
const COMPLAINTS: &str = "
    grep -vx kvm-clock /sys/devices/system/clocksource/clocksource0/current_clocksource
    dmesg | grep -iE 'lockup|stall|BUG:|WARNING:|blocked for'
    true";

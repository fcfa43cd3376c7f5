//! Tests of time in a guest that was paused.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, SystemTime};

use coracle::config::{MemorySize, VmConfig, default_cmdline_with};
use coracle::guest_data::GuestData;
use coracle::outcome::Ending;
use coracle::{ConsoleStreams, VmBuilder};

use super::common;
use super::{Transcript, data, no_linux};

/// The guest's clocks, and the host's at about the same time.
#[derive(Debug)]
struct Clocks {
    uptime: f64,
    /// The guest's date, in seconds.
    date: f64,
    /// The host's date when the guest was asked, and when it had answered.
    host: (f64, f64),
    source: String,
}

impl Clocks {
    /// Returns whether the date is the host's, within a second that each of them leaves out.
    fn date_is_right(&self) -> bool {
        (self.host.0 - 2.0..self.host.1 + 2.0).contains(&self.date)
    }
}

/// Asks the shell at the other end. The quotes prevent the echo of the command from being taken for the
/// answer.
fn read_clocks(shell: &mut UnixStream, seen: &mut Transcript) -> Clocks {
    let host = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let asked = host();
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    writeln!(shell, "echo clo''cks: $(cat /proc/uptime {source}; date +%s) end").unwrap();
    seen.until(shell, "clocks: ");
    let line = seen.until(shell, " end");
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words[index].parse::<f64>().unwrap();
    Clocks { uptime: number(0), source: words[2].to_owned(), date: number(3), host: (asked, host()) }
}

#[test]
fn pause_is_seen_by_every_clock_and_is_no_lock_up() {
    needs_linux!();
    let (mut shell, theirs) = UnixStream::pair().unwrap();
    shell.set_nonblocking(true).unwrap();
    // Debian's full kernel: its cloud kernel has no lock-up watchdog.
    let mut config = VmConfig::new(data(GuestData::HostVmlinux));
    config.memory = MemorySize::from_mib(512).unwrap().into();
    config.initrds = vec![data(GuestData::GuestInitramfs)];
    // The watchdog's limit is then two seconds.
    config.cmdline = default_cmdline_with(["quiet", "watchdog_thresh=1", "coracle.init=shell"]);
    let streams = ConsoleStreams {
        input: Some(theirs.try_clone().unwrap().into()),
        output: Some(theirs.try_clone().unwrap().into()),
    };
    let vm = VmBuilder::new(config).console_streams(streams).start().unwrap();
    let mut seen = Transcript::default();
    seen.until(&mut shell, "# ");
    // The watchdog ignores a CPU that was idle.
    writeln!(shell, "while :; do :; done &").unwrap();
    // If the host takes the CPU away for two seconds, the watchdog reports a lock-up, too; a busy host
    // occasionally does that.
    common::unless_spoilt(|| {
        writeln!(shell, "dmesg -c >/dev/null").unwrap();
        let before = read_clocks(&mut shell, &mut seen);
        assert!(vm.handle().pause());
        thread::sleep(PAUSE);
        vm.handle().resume();
        let after = read_clocks(&mut shell, &mut seen);
        // Time for the watchdog to report.
        let complaints = "dmesg | grep -i 'lockup\\|unstable\\|stall'";
        writeln!(shell, "sleep 2; echo com''plaints: $({complaints}) end").unwrap();
        seen.until(&mut shell, "complaints: ");
        let complaints = seen.until(&mut shell, "end");
        let passed = after.uptime - before.uptime;
        assert!(passed >= PAUSE.as_secs_f64() - 0.1, "{passed} s passed: {before:?}, {after:?}");
        assert!(before.date_is_right() && after.date_is_right(), "{before:?}, {after:?}");
        assert_eq!((before.source.as_str(), after.source.as_str()), ("kvm-clock", "kvm-clock"));
        if complaints.is_empty() { Ok(()) } else { Err(complaints) }
    });
    writeln!(shell, "poweroff -f").unwrap();
    assert_eq!(vm.wait().ending, Ending::PoweredOff);
}

const PAUSE: Duration = Duration::from_secs(5);

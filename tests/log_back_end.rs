//! Tests of a program whose `log` back end blocks for ever, with guests that cause endless log lines: the
//! limits and the stop of a machine still work. This is a separate process, because it has a single back end.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{kvm_or_skip, payload, scratch};
use coracle::config::{DiskConfig, VmConfig};
use coracle::outcome::{Ending, Outcome, TimeLimit};
use coracle::{Grace, VmBuilder};
use log::{LevelFilter, Log, Metadata, Record};

/// Counts lines, and blocks for ever once it is told to.
struct BackEnd;

static LINES: AtomicU32 = AtomicU32::new(0);
static LEFT_OUT: AtomicU32 = AtomicU32::new(0);
static BLOCKS: AtomicBool = AtomicBool::new(false);

impl Log for BackEnd {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
        if record.args().to_string().contains("lines were left out") {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        }
        while BLOCKS.load(Ordering::Relaxed) {
            thread::park();
        }
    }

    fn flush(&self) {}
}

fn flood(timeout: Option<Duration>) -> VmBuilder {
    let disk = scratch().join("flood.img");
    std::fs::File::create(&disk).unwrap().set_len(64 << 10).unwrap();
    let disks = vec![DiskConfig::new(disk)];
    VmBuilder::new(VmConfig { kernel: Some(payload("log-flood")), disks, timeout, ..VmConfig::default() })
}

/// Runs `end` on a thread, for a machine that floods the log, and returns its outcome if that comes in time.
#[track_caller]
fn within_limits(what: &str, end: impl FnOnce() -> Option<Outcome> + Send + 'static) -> Option<Outcome> {
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    thread::spawn(move || drop(sender.send(end())));
    let outcome = receiver.recv_timeout(common::LIMIT);
    println!("{what}: {:?}", start.elapsed());
    outcome.unwrap_or_else(|_| panic!("{what} never came back"))
}

#[test]
fn guest_that_floods_the_log_is_stopped_while_the_back_end_blocks() {
    if !kvm_or_skip() {
        return;
    }
    log::set_logger(&BackEnd).unwrap();
    log::set_max_level(LevelFilter::Info);

    let outcome = flood(Some(Duration::from_secs(1))).run().unwrap();
    assert!(matches!(outcome.ending, Ending::TimedOut { kind: TimeLimit::Wall, .. }), "{outcome:?}");
    // The machine's limit for five seconds, another such period on a slow host, and the count of omitted
    // lines.
    let lines = LINES.load(Ordering::Relaxed);
    assert!((1..=21).contains(&lines), "{lines} lines");
    assert!(LEFT_OUT.load(Ordering::Relaxed) > 0, "nobody said how many lines were left out");

    BLOCKS.store(true, Ordering::Relaxed);
    let outcome = within_limits("the time limit", || flood(Some(Duration::from_secs(1))).run().ok());
    let ending = outcome.map(|outcome| outcome.ending);
    assert!(matches!(ending, Some(Ending::TimedOut { kind: TimeLimit::Wall, .. })), "{ending:?}");
    assert_eq!(LINES.load(Ordering::Relaxed), lines + 1, "one line is with the back end, for ever");

    let outcome = within_limits("a pause, and a stop", || {
        let vm = flood(None).start().unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(vm.handle().pause(), "it pauses");
        vm.handle().resume();
        Some(vm.stop(Grace::NONE))
    });
    assert_eq!(outcome.map(|outcome| outcome.ending), Some(Ending::Stopped));
    within_limits("a drop", || {
        drop(flood(None).start().unwrap());
        None
    });
}

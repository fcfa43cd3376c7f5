//! Tests of what the gate lets through, what it remembers, and what wakes the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use coracle_devices::guest_request::{GuestRequest, GuestRequestSink, ResetSource};

use super::*;
use crate::ending::{PanicEvidence, TimeLimit};

const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for something that must not happen.
const SHORT: Duration = Duration::from_millis(5);

#[test]
fn first_event_counts_and_later_ones_are_counted() {
    let gate = Gate::new();
    gate.post(Ending::PoweredOff);
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    assert_eq!(gate.next_wake(StartLimits::default(), None), Wake::Ended(Ending::PoweredOff));
    assert_eq!(gate.later_endings(), (None, 1));
}

#[test]
fn host_failure_after_a_clean_ending_is_kept() {
    let gate = Gate::new();
    let failure = HostFailure::ThreadPanicked { thread: "io-0".into() };
    gate.post(Ending::PoweredOff);
    gate.post(Ending::HostFailed { reason: failure.clone() });
    assert_eq!(gate.later_endings(), (Some(failure), 0));
}

#[test]
fn closed_gate_stays_closed() {
    let gate = Gate::new();
    gate.open();
    assert_eq!(gate.state(), GateState::Open);
    gate.post(Ending::Stopped);
    gate.open();
    gate.pause();
    assert_eq!(gate.state(), GateState::Closed);
    assert!(!gate.park(|| ()));
}

#[test]
fn parked_vcpu_leaves_when_the_gate_opens() {
    let gate = Arc::new(Gate::new());
    let vcpu = thread::spawn({
        let gate = gate.clone();
        move || gate.park(|| ())
    });
    assert!(gate.wait_parked(1, LIMIT));
    gate.open();
    assert!(vcpu.join().unwrap());
}

#[test]
fn waiting_ends_with_its_limit() {
    let gate = Gate::new();
    let limit = Duration::from_millis(5);
    assert!(!gate.wait_parked(1, limit));
    gate.open();
    assert_eq!(
        gate.next_wake(StartLimits { wall: Some(limit), boot: None }, None),
        Wake::Ended(Ending::TimedOut { kind: TimeLimit::Wall, limit })
    );
    assert_eq!(gate.state(), GateState::Closed);
}

#[test]
fn limit_beyond_all_time_never_comes() {
    let gate = Gate::new();
    gate.open();
    let limits = StartLimits { wall: Some(Duration::MAX), boot: Some(Duration::MAX) };
    assert_eq!(gate.next_wake(limits, Some(Instant::now())), Wake::Look);
}

#[test]
fn waiting_ends_for_a_look_and_for_the_text_of_a_panic() {
    let gate = Gate::new();
    assert_eq!(
        gate.next_wake(StartLimits::default(), Some(Instant::now() + Duration::from_millis(5))),
        Wake::Look
    );
    GuestRequestSink::post(&gate, GuestRequest::PanicText);
    assert_eq!(gate.state(), GateState::Paused, "the text of a panic ends nothing");
    assert_eq!(gate.next_wake(StartLimits::default(), None), Wake::PanicText);
    assert_eq!(
        gate.next_wake(StartLimits::default(), Some(Instant::now())),
        Wake::Look,
        "it is reported once"
    );
}

#[test]
fn limits_and_looks_come_before_texts_that_a_guest_prints_without_end() {
    let gate = Gate::new();
    gate.open();
    let (limit, now) = (Duration::ZERO, Instant::now());
    let wait = |limits, look_at| {
        GuestRequestSink::post(&gate, GuestRequest::PanicText);
        gate.count_disk_error(Some("a fault".into()));
        gate.next_wake(limits, look_at)
    };
    assert_eq!(wait(StartLimits::default(), Some(now)), Wake::Look);
    let boot = StartLimits { boot: Some(limit), ..StartLimits::default() };
    assert_eq!(wait(boot, Some(now)), Wake::BootLimit(limit));
    let wall = StartLimits { wall: Some(limit), boot: Some(limit) };
    let over = Wake::Ended(Ending::TimedOut { kind: TimeLimit::Wall, limit });
    assert_eq!(wait(wall, Some(now)), over);
}

#[test]
fn reset_machine_begins_again_with_the_gate_as_the_owner_left_it() {
    let gate = Gate::new();
    gate.open();
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    gate.count_ended_vcpu();
    assert_eq!(gate.state(), GateState::Closed);
    assert_eq!(gate.restart(), Ok(()));
    assert_eq!(gate.state(), GateState::Paused, "not before all vCPUs have arrived");
    gate.hold(false);
    assert_eq!(gate.state(), GateState::Open);
    assert!(!gate.wait_vcpus_ended(1, Duration::ZERO));
    gate.pause();
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    assert_eq!(gate.restart(), Ok(()));
    gate.hold(false);
    assert_eq!(gate.state(), GateState::Paused);
}

#[test]
fn waiting_for_the_end_of_a_reset_ends_with_the_machine_too() {
    let gate = Gate::new();
    assert!(gate.wait_restarted(LIMIT));
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    assert!(!gate.wait_restarted(Duration::ZERO));
    gate.set_over();
    assert!(!gate.wait_restarted(LIMIT));
}

#[test]
fn stop_during_a_reset_ends_the_machine() {
    let gate = Gate::new();
    gate.open();
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    gate.post(Ending::PoweredOff);
    gate.post(Ending::Stopped);
    assert_eq!(gate.restart(), Err(Ending::Stopped));
    assert_eq!(gate.state(), GateState::Closed);
    assert_eq!(gate.next_wake(StartLimits::default(), None), Wake::Ended(Ending::Stopped));
}

#[test]
fn look_at_the_vcpus_neither_resumes_nor_outlasts_a_pause() {
    let gate = Gate::new();
    gate.hold(true);
    gate.open();
    assert_eq!(gate.state(), GateState::Paused);
    gate.hold(false);
    assert_eq!(gate.state(), GateState::Open);
    gate.hold(true);
    gate.pause();
    gate.hold(false);
    assert_eq!(gate.state(), GateState::Paused);
}

#[test]
fn requests_of_a_guest_are_endings_but_for_what_it_only_reports() {
    let ends = |request| {
        let gate = Gate::new();
        GuestRequestSink::post(&gate, request);
        gate.next_wake(StartLimits::default(), Some(Instant::now()))
    };
    assert_eq!(ends(GuestRequest::PowerOff), Wake::Ended(Ending::PoweredOff));
    let source = ResetSource::AcpiRegister;
    assert_eq!(ends(GuestRequest::Reset(source)), Wake::Ended(Ending::Reset { source }));
    assert_eq!(ends(GuestRequest::DebugExit(7)), Wake::Ended(Ending::Exited { code: 7 }));
    let evidence = PanicEvidence::Device;
    assert_eq!(ends(GuestRequest::Panicked), Wake::Ended(Ending::Panicked { evidence }));
    assert_eq!(ends(GuestRequest::CrashKernelTakesOver), Wake::Look);
}

#[test]
fn parked_vcpu_serves_each_question_and_leaves_none_behind() {
    let gate = Arc::new(Gate::new());
    let (left, served) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    assert!(!gate.ask_parked(1, || panic!("no vCPU is parked")));
    let vcpu = thread::spawn({
        let (gate, left, served) = (gate.clone(), left.clone(), served.clone());
        move || {
            gate.park(|| {
                // Long enough for the gate to change meanwhile.
                thread::sleep(Duration::from_millis(2));
                served.fetch_add(left.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            })
        }
    });
    assert!(gate.wait_paused(1, LIMIT));
    assert!(!gate.wait_paused(2, SHORT));
    assert!(!gate.ask_parked(2, || panic!("not all vCPUs are parked")));
    let post = || {
        left.fetch_add(1, Ordering::Relaxed);
    };
    for asked in 1..=20 {
        assert!(gate.ask_parked(1, post));
        if asked % 2 == 0 {
            let start = Instant::now();
            while served.load(Ordering::Relaxed) < asked {
                assert!(start.elapsed() < LIMIT, "question {asked} was not served");
                thread::yield_now();
            }
        }
    }
    // Close the gate with two commands pending.
    assert!(gate.ask_parked(1, post) && gate.ask_parked(1, post));
    gate.post(Ending::Stopped);
    assert!(!vcpu.join().unwrap());
    assert_eq!((left.load(Ordering::Relaxed), served.load(Ordering::Relaxed)), (0, 22));
    assert!(!gate.ask_parked(0, || panic!("the gate is closed")));
}

#[test]
fn questions_are_for_a_machine_that_its_owner_has_paused() {
    let gate = Gate::new();
    gate.open();
    assert!(!gate.wait_paused(1, LIMIT), "an open gate is not waited for");
    assert!(!gate.ask_parked(0, || panic!("the gate is open")));
    gate.hold(true);
    assert_eq!(gate.state(), GateState::Paused);
    assert!(!gate.ask_parked(0, || panic!("the owner did not pause it")));
    assert!(gate.is_resumed() && !gate.is_paused());
    assert!(!gate.wait_paused(0, LIMIT), "a pause whose machine was resumed under a hold");
    gate.pause();
    assert!(gate.is_paused() && !gate.is_resumed());
    assert!(gate.ask_parked(0, || ()));
    gate.post(Ending::Stopped);
    assert!(!gate.is_paused(), "a machine that ends is not paused");
}

#[test]
fn signal_that_comes_after_the_guest_s_own_end_is_not_its_reason() {
    let gate = Gate::new();
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    assert!(gate.note_signal(libc::SIGTERM), "the machine may survive a reset");
    gate.restart().unwrap();
    gate.post(Ending::PoweredOff);
    assert!(!gate.note_signal(libc::SIGINT));
    assert_eq!(gate.signal(), Some(libc::SIGTERM));
    let gate = Gate::new();
    gate.post(Ending::Reset { source: ResetSource::I8042 });
    gate.set_over();
    assert!(!gate.note_signal(libc::SIGTERM));
    assert_eq!(gate.signal(), None);
}

#[test]
fn snapshot_keeps_the_vcpus_out_whatever_others_do() {
    let gate = Gate::new();
    gate.open();
    assert!(!gate.ask_held(0, || panic!("nobody holds the vCPUs")));
    assert!(gate.hold_for_snapshot());
    assert!(!gate.hold_for_snapshot(), "one at a time");
    gate.hold(true);
    gate.hold(false);
    gate.pause();
    gate.open();
    assert_eq!(gate.state(), GateState::Paused);
    assert!(gate.ask_held(0, || ()) && !gate.ask_held(1, || panic!("no vCPU is parked")));
    gate.release_from_snapshot();
    assert_eq!(gate.state(), GateState::Open);
    assert!(gate.hold_for_snapshot());
    gate.pause();
    gate.release_from_snapshot();
    assert_eq!(gate.state(), GateState::Paused, "the owner's pause stays");
    gate.post(Ending::Stopped);
    assert!(gate.hold_for_snapshot());
    assert!(!gate.ask_held(0, || panic!("the gate is closed")));
    gate.release_from_snapshot();
    assert_eq!(gate.state(), GateState::Closed);
}

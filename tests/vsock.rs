//! Tests of the vsock device on `/dev/kvm` of any kind, driven by a bare payload that echoes: through sockets
//! on disk and from inside this process; and of values that a vsock device refuses.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::{coracle, echo, eventually, finish, kvm_or_skip, run_payload, scratch};
use coracle::config::{ResetPolicy, VmConfig};
use coracle::outcome::Ending;
use coracle::vsock::{ConnectError, ListenError, VsockPortError};
use coracle::{Grace, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

fn machine(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.vsock = Some("cid=3".parse().unwrap());
    config.timeout = Some(Duration::from_secs(30));
    config
}

#[test]
fn guest_reaches_a_listener_of_this_program_and_all_comes_back() {
    needs_kvm!();
    let vm = VmBuilder::new(machine("virtio-vsock")).build().unwrap();
    let listener = vm.handle().listen(52).unwrap();
    let taken = vm.handle().listen(52).unwrap_err();
    assert!(matches!(taken, VsockPortError::Listen(ListenError::Taken { port: 52 })), "{taken}");
    vm.handle().resume();
    echo(listener.accept().unwrap(), 8 << 20);
    assert_eq!(vm.wait().ending, Ending::Exited { code: 0 });
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let over = vm.handle().connect(1).unwrap_err();
    assert!(matches!(over, VsockPortError::Ended), "{over}");
}

#[test]
fn guest_reaches_the_socket_on_disk_and_its_file_is_gone_afterwards() {
    needs_kvm!();
    let path = scratch().join("echo.sock");
    let listener = UnixListener::bind(scratch().join("echo.sock_52")).unwrap();
    let mut command = run_payload("virtio-vsock");
    command.arg("--vsock").arg(format!("cid=3,uds={}", path.display())).args(["--timeout", "30s"]);
    let run = thread::spawn(move || finish(&mut command));
    echo(listener.accept().unwrap().0, 1 << 20);
    run.join().unwrap().expect(0, "code 0");
    assert!(!path.exists());
}

#[test]
fn pause_keeps_a_connection_and_a_slow_host_loses_nothing() {
    needs_kvm!();
    let vm = VmBuilder::new(machine("virtio-vsock")).build().unwrap();
    let handle = vm.handle();
    let listener = handle.listen(52).unwrap();
    handle.resume();
    let mut stream = listener.accept().unwrap();
    for round in 0..20_u8 {
        stream.write_all(&[round; 3000]).unwrap();
        assert!(handle.pause());
        stream.write_all(&[round; 3000]).unwrap();
        handle.resume();
        let mut back = [0; 6000];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 6000]);
    }
    drop(stream);
    assert_eq!(vm.wait().ending, Ending::Exited { code: 0 });
}

#[test]
fn guest_without_a_listener_is_refused_at_once() {
    needs_kvm!();
    let outcome = VmBuilder::new(machine("virtio-vsock")).run().unwrap();
    assert_eq!(outcome.ending, Ending::Exited { code: 6 });
}

#[test]
fn guest_connects_again_after_a_reset() {
    needs_kvm!();
    let mut config = machine("hundred-lives");
    config.on_reset = ResetPolicy::Reboot;
    assert_eq!(VmBuilder::new(config).run().unwrap().ending, Ending::Exited { code: 0 });
}

#[test]
fn guest_whose_driver_never_starts_leaves_callers_with_an_error_at_the_end() {
    needs_kvm!();
    let vm = VmBuilder::new(machine("spin")).start().unwrap();
    let handle = vm.handle();
    let caller = thread::spawn(move || handle.connect(5).unwrap_err());
    thread::sleep(Duration::from_millis(50));
    vm.stop(Grace::NONE);
    let error = caller.join().unwrap();
    assert!(matches!(error, VsockPortError::Connect(ConnectError::Ended { port: 5 })), "{error}");
    let vm = VmBuilder::new(VmConfig::new(common::payload("spin"))).build().unwrap();
    assert!(matches!(vm.handle().connect(5), Err(VsockPortError::NoDevice)));
    assert!(matches!(vm.handle().listen(5), Err(VsockPortError::NoDevice)));
}

#[track_caller]
fn refused(value: &str, words: &str) {
    let run = finish(run_payload("poweroff").args(["--vsock", value]));
    run.expect(125, words);
    // clap reports bad values in its own way.
    assert!(run.stderr.starts_with("coracle: ") || run.stderr.starts_with("error: "), "{}", run.stderr);
}

#[test]
fn what_cannot_be_a_socket_device_is_refused_before_anything_is_made() {
    refused("cid=2", "`2` is not a guest address (CID)");
    refused("cid=3,cid=4", "`cid=4` does not go with a vsock device");
    refused("uds=", "`uds=` does not go with a vsock device");
    refused(&format!("uds=/{}", "x".repeat(100)), "has 101 bytes; a vsock device's path may have at most 96");
    needs_kvm!();
    let taken = scratch().join("taken.sock");
    std::fs::write(&taken, b"mine").unwrap();
    refused(&format!("uds={}", taken.display()), "the path is taken");
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
    refused(
        "uds=/no/such/folder/v.sock",
        "--vsock cid=3,uds=/no/such/folder/v.sock: the socket cannot be made",
    );
    // A later setting fails: the socket's file is not left behind.
    let path = scratch().join("early.sock");
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--initrd", "/no/such/initrd"]).arg(common::payload("poweroff"));
    finish(command.arg("--vsock").arg(format!("uds={}", path.display()))).expect(125, "/no/such/initrd");
    assert!(!path.exists());
}

#[test]
fn two_machines_do_not_share_a_socket() {
    needs_kvm!();
    let path = scratch().join("shared.sock");
    let option = format!("uds={}", path.display());
    let mut running = run_payload("spin");
    running.args(["--vsock", &option]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = running.spawn().unwrap();
    eventually("its socket is there", || path.exists());
    refused(&option, "the path is taken");
    assert!(is_socket(&path), "the socket of the first is still there");
    common::signal(&child, libc::SIGQUIT);
    common::wait(&mut child);
    assert!(!path.exists());
}

fn is_socket(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

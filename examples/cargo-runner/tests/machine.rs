//! Tests that need a whole machine, each of which would need care on a developer's own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use cargo_runner_example::{hostname, mount_tmpfs, set_hostname};

#[test]
fn machine_can_be_renamed() {
    set_hostname("renamed-by-a-test").unwrap();
    assert_eq!(hostname().unwrap(), "renamed-by-a-test");
    println!("the machine is now {}", hostname().unwrap());
}

#[test]
fn file_systems_can_be_mounted() {
    fs::create_dir_all("/mnt/memory").unwrap();
    mount_tmpfs("/mnt/memory").unwrap();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(mounts.contains("tmpfs /mnt/memory tmpfs"), "{mounts}");
}

/// A process in a new PID namespace has PID 1.
#[test]
fn process_can_be_the_first_of_a_namespace() {
    let mut command = Command::new("unshare");
    let output = command.args(["-p", "-f", "sh", "-c", "echo $$"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{output:?}");
}

/// The loopback interface is up, and its name resolves.
#[test]
fn localhost_can_be_served_at_a_port_of_the_kernels_choice() {
    let listener = TcpListener::bind("localhost:0").unwrap();
    let client = TcpStream::connect(("localhost", listener.local_addr().unwrap().port())).unwrap();
    let (_, address) = listener.accept().unwrap();
    assert_eq!(client.local_addr().unwrap(), address);
}

/// `--copy tests/data` brings the file; the package's directory is the working directory, as without a guest.
#[test]
fn data_of_the_package_is_there() {
    assert_eq!(fs::read_to_string("tests/data/greeting.txt").unwrap(), "hello\n");
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/greeting.txt").is_file());
    assert_eq!(std::env::var("CARGO_PKG_NAME").as_deref(), Ok("cargo-runner-example"));
}

/// Shows a failure: `cargo test -- --ignored` exits with 101.
#[test]
#[ignore = "fails, to show what that looks like"]
fn failure_is_reported_by_the_exit_code() {
    assert_eq!(hostname().unwrap(), "no machine has this name");
}

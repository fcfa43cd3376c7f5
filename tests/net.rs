//! Tests of network cards, driven by a bare payload on `/dev/kvm` of any kind, with taps in a network of the
//! test's own.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::network::{in_own_network, ip, passt, socket_for_everyone, tap};
use common::{collect, eventually, finish, kvm_or_skip, run_payload, scratch, signal};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

/// Returns the payload with the card that it expects.
fn with_net(end: &str) -> Command {
    let mut command = run_payload("virtio-net");
    command.args(["--timeout", "40s", "--net", &format!("{end},mac=02:00:00:00:00:01")]);
    command
}

#[track_caller]
fn refused(args: &[&str], words: &str) {
    let run = finish(run_payload("poweroff").args(["--timeout", "30s"]).args(args));
    run.expect(125, words);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}

#[test]
fn kernel_answers_a_card_on_its_tap_in_every_life() {
    needs_kvm!();
    in_own_network(|| {
        tap("tap0");
        ip("addr add 10.9.0.1/24 dev tap0");
        finish(&mut with_net("tap=tap0")).expect(0, "code 0");
        // The tap is available again.
        finish(&mut with_net("tap=tap0,mtu=9000")).expect(0, "code 0");
    });
}

/// Answers requests for 10.9.0.1, as a program at the other end of a socket does.
fn answer(mut socket: UnixStream) -> u32 {
    let mut answers = 0;
    loop {
        let mut len = [0; 4];
        if socket.read_exact(&mut len).is_err() {
            return answers;
        }
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        socket.read_exact(&mut frame).unwrap();
        assert_eq!((frame.len(), &frame[12..14], &frame[38..42]), (42, &[8, 6][..], &[10, 9, 0, 1][..]));
        let asker = frame[22..32].to_vec();
        frame[..6].copy_from_slice(&asker[..6]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[20..32].copy_from_slice(&[0, 2, 2, 0, 0, 0, 0, 9, 10, 9, 0, 1]);
        frame[32..42].copy_from_slice(&asker);
        if socket.write_all(&[&len[..], &frame].concat()).is_err() {
            return answers;
        }
        answers += 1;
    }
}

#[test]
fn program_at_a_socket_answers_a_card() {
    needs_kvm!();
    let path = scratch().join("net.socket");
    let listener = UnixListener::bind(&path).unwrap();
    let program = thread::spawn(move || answer(listener.accept().unwrap().0));
    finish(&mut with_net(&format!("socket={}", path.display()))).expect(0, "code 0");
    assert_eq!(program.join().unwrap(), 150);
}

#[test]
fn passt_answers_a_card_without_privilege() {
    needs_kvm!();
    in_own_network(|| {
        let socket = socket_for_everyone("passt");
        let Some(_passt) = passt(&socket) else { return };
        finish(&mut with_net(&format!("socket={}", socket.display()))).expect(0, "code 0");
        let _ = fs::remove_dir_all(socket.parent().unwrap());
    });
}

/// Gives `descriptor` to the command as number 9.
fn pass_on(command: &mut Command, descriptor: OwnedFd) {
    let pass = move || {
        let own = descriptor.as_raw_fd();
        let result = match own {
            // SAFETY: the call only keeps a descriptor with this number open in the new process.
            9 => unsafe { libc::fcntl(own, libc::F_SETFD, 0) },
            // SAFETY: the call duplicates an open descriptor in the new process.
            _ => unsafe { libc::dup2(own, 9) },
        };
        match result {
            0.. => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes only system calls.
    unsafe { command.pre_exec(pass) };
}

#[test]
fn inherited_socket_is_a_card() {
    needs_kvm!();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let program = thread::spawn(move || answer(ours));
    let mut command = with_net("fd=9");
    pass_on(&mut command, theirs.into());
    finish(&mut command).expect(0, "code 0");
    drop(command);
    assert_eq!(program.join().unwrap(), 150);
}

#[test]
fn what_is_no_network_is_refused_before_the_guest_runs() {
    needs_kvm!();
    refused(&["--net", "tap=no-such-tap"], "--net tap=no-such-tap: there is no such interface");
    refused(&["--net", "fd=77"], "--net fd=77: no descriptor of this number is open here");
    refused(
        &["--net", "socket=/no/such/socket"],
        "socket=/no/such/socket: it cannot be connected to: No such file",
    );
    refused(&["--net", "socket=/dev/null"], "it cannot be connected to: Connection refused");
    let card = "socket=/no/such/socket,mac=02:00:00:00:00:01";
    refused(&["--net", card, "--net", card], "--net: two network cards have the address 02:00:00:00:00:01");
    refused(&["--net", "tap=t0", "--net", "tap=t0"], "--net: two network cards have the end tap=t0");
    refused(&["--net", "none", "--net", "tap=t0"], "--net: `none` cannot be combined with a network card");
    let run = finish(run_payload("poweroff").args(["--net", "tap0"]));
    run.expect(125, "`tap0` is not the end of a network card");
    finish(run_payload("poweroff").args(["--net", "none"])).expect(0, "powered off");
}

#[test]
fn tap_of_somebody_else_is_refused_without_privilege() {
    needs_kvm!();
    in_own_network(|| {
        ip("tuntap add tap0 mode tap user 1");
        let mut command = run_payload("poweroff");
        command.args(["--timeout", "30s", "--net", "tap=tap0"]);
        let drop_capabilities = || {
            // SAFETY: the call only drops CAP_NET_ADMIN in the new process, also after its exec.
            match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes only system calls.
        unsafe { command.pre_exec(drop_capabilities) };
        let run = finish(&mut command);
        run.expect(125, "--net tap=tap0: it belongs to another user");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    });
}

const CAP_NET_ADMIN: libc::c_ulong = 12;

#[test]
fn removed_tap_takes_the_link_down_and_costs_no_time() {
    needs_kvm!();
    in_own_network(|| {
        tap("tap0");
        ip("addr add 10.9.0.1/24 dev tap0");
        let mut command = run_payload("virtio-net-down");
        command.args(["--timeout", "50s", "--net", "tap=tap0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut byte = [0];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"u");
        ip("link del tap0");
        stdout.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"d");
        eventually("it comes to rest", || {
            let before = cpu_ticks(child.id());
            thread::sleep(Duration::from_millis(500));
            cpu_ticks(child.id()) - before <= 1
        });
        signal(&child, libc::SIGQUIT);
        let run = collect(child);
        run.expect(131, "net tap=tap0: its tap device is gone; the guest's link is down");
    });
}

/// Returns the CPU time of a process, in hundredths of a second.
fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

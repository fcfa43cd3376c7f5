//! Attacks from inside the machine.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::case::{Case, MemoryLimit};
use super::scene::Scene;
use super::watch::{End, Reader, Run};

/// Returns the attacks by bare guests.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = simple();
    cases.extend(backlogs());
    cases
}

/// Guests that need at most one device.
fn simple() -> Vec<Case> {
    vec![
        guest("every port, by every width", &[0], |scene| Ok(Run::new(scene.machine("run", "ports")?))),
        guest("unaligned and odd accesses", &[0], |scene| Ok(Run::new(scene.machine("run", "widths")?))),
        guest("string instructions to ports", &[0], |scene| Ok(Run::new(scene.machine("run", "rep-io")?))),
        guest("registers of the serial port, at random", &[0], |scene| {
            Ok(Run::new(scene.machine("run", "serial-registers")?))
        }),
        guest("a jump to where no memory is", &[111, 113], |scene| {
            Ok(Run::new(scene.machine("run", "jump-to-mmio")?))
        }),
        guest("triple fault", &[111], |scene| Ok(Run::new(scene.machine("run", "triple-fault")?))),
        guest("a hundred resets", &[0], |scene| {
            let mut command = scene.machine("run", "hundred-lives")?;
            command.args(["--on-reset", "reboot"]);
            Ok(Run::new(command))
        }),
        guest("never leaves the CPU, time limit", &[124], |scene| Ok(limited(scene.machine("run", "spin")?))),
        guest("never leaves the CPU, SIGQUIT", &[131], |scene| {
            Ok(Run::new(scene.machine("run", "spin")?).end(End::Signal(libc::SIGQUIT, LIMIT)))
        }),
        guest("halts for good, SIGQUIT", &[131], |scene| {
            Ok(Run::new(scene.machine("run", "halt")?).end(End::Signal(libc::SIGQUIT, LIMIT)))
        }),
        guest("prints for ever, nobody reads", &[124], |scene| {
            Ok(Run { stdout: Reader::Asleep, ..limited(scene.machine("run", "flood")?) })
        }),
        guest("prints for ever, nobody reads, SIGQUIT", &[131], |scene| {
            let run = Run::new(scene.machine("run", "flood")?).end(End::Signal(libc::SIGQUIT, LIMIT));
            Ok(Run { stdout: Reader::Asleep, ..run })
        }),
        guest("prints for ever into a test", &[124], |scene| {
            let mut run = limited(scene.machine("test", "flood")?);
            run.command.args(["--expect", "never"]);
            Ok(Run { stdout: Reader::Asleep, ..run })
        }),
        guest("log lines for ever, nobody reads", &[124], |scene| {
            Ok(Run { stderr: Reader::Asleep, ..limited(log_flood(scene)?) })
        }),
        guest("log lines for ever, nobody reads, SIGQUIT", &[131], |scene| {
            let run = Run::new(log_flood(scene)?).end(End::Signal(libc::SIGQUIT, LIMIT));
            Ok(Run { stderr: Reader::Asleep, ..run })
        }),
        guest("log lines for ever", &[124], |scene| Ok(limited(log_flood(scene)?))),
        guest("connections for ever, nobody listens", &[124], |scene| Ok(limited(vsock_pairs(scene)?))),
        guest("connections for ever", &[124], |scene| {
            let listener = UnixListener::bind(scene.path("v.sock_80")).context("cannot listen")?;
            // The thread continues until this process ends.
            thread::spawn(move || listener.incoming().for_each(drop));
            Ok(limited(vsock_pairs(scene)?))
        }),
    ]
}

fn vsock_pairs(scene: &Scene) -> Result<Command> {
    let mut command = scene.machine("run", "vsock-pairs")?;
    command.arg("--vsock").arg(format!("uds={}", scene.path("v.sock").display()));
    Ok(command)
}

/// Guests that leave 256 requests for each of four disks: of 32 MiB, or of 1 GiB if no bytes move.
fn backlogs() -> Vec<Case> {
    let payloads = ["backlog-read", "backlog-write", "backlog-flush", "backlog-discard", "backlog-zeroes"];
    let engines = ["sync", "io_uring"];
    let all = payloads.into_iter().flat_map(|payload| engines.map(|engine| (payload, engine)));
    all.flat_map(|(payload, engine)| {
        let off = format!("{payload}, {engine}, powers off");
        let limit = format!("{payload}, {engine}, time limit");
        [
            guest(off, &[0], move |scene| {
                let run = Run::new(with_disks(scene, payload, engine)?).end(End::Byte(b'q'));
                Ok(Run { input: b"p", ..run })
            }),
            guest(limit, &[124], move |scene| Ok(limited(with_disks(scene, payload, engine)?))),
        ]
    })
    .collect()
}

fn with_disks(scene: &Scene, payload: &str, engine: &str) -> Result<Command> {
    let mut command = scene.machine("run", payload)?;
    for number in 0..DISKS {
        let path = scene.sparse_file(&format!("{number}.img"), DISK_BYTES)?;
        command.arg("--disk").arg(format!("path={},engine={engine}", path.display()));
    }
    Ok(command)
}

fn log_flood(scene: &Scene) -> Result<Command> {
    let mut command = scene.machine("run", "log-flood")?;
    command.arg("--disk").arg(scene.sparse_file("disk.img", DISK_BYTES)?);
    Ok(command)
}

fn guest(
    name: impl Into<String>,
    codes: &'static [i32],
    prepare: impl Fn(&Scene) -> Result<Run> + 'static,
) -> Case {
    let (name, prepare) = (name.into(), Box::new(prepare));
    Case { name, prepare, codes, says: "", memory: MemoryLimit::BesideRam }
}

/// A run that is ended by the program's own limit.
fn limited(mut command: Command) -> Run {
    command.args(["--timeout", "1s"]);
    Run::new(command).end(End::Limit(LIMIT))
}

const LIMIT: Duration = Duration::from_secs(1);
const DISKS: u32 = 4;
const DISK_BYTES: u64 = 64 << 20;

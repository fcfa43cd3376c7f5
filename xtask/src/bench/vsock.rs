//! Bytes per second through the vsock device of a bare guest that polls, in each direction, and the limit: a
//! pair of the host's own Unix sockets between two threads, next to one that spins as the guest's vCPU does.
//!
//! QEMU is not compared: it leaves its vsock device to the host's kernel.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_payload::Payload;

use super::process_time::wait_cpu_time;
use super::statistics::Samples;
use super::worker::Worker;
use crate::workspace::Workspace;
use crate::{process, setup, static_build};

/// Measures and prints the table.
///
/// # Errors
/// A guest cannot be started, or it loses bytes.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    setup::make_ready()?;
    let coracle = static_build::coracle(workspace)?;
    let folder = workspace.target.join("payloads");
    fs::create_dir_all(&folder)?;
    println!(
        "{} MiB on one connection, median of {runs} runs; limit: a pair of unix sockets; {} CPUs\n\n\
         {:16} {:>10} {:>10} {:>6} {:>9}",
        BYTES >> 20,
        thread::available_parallelism()?,
        "",
        "limit",
        "coracle",
        "ratio",
        "CPU/MiB"
    );
    for (title, payload, way) in
        [("guest to host", "vsock-send", Way::FromGuest), ("host to guest", "vsock-receive", Way::ToGuest)]
    {
        let guest = Guest::new(&coracle, &folder, payload)?;
        let (mut limit, mut ours, mut cpu) = (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..runs {
            limit.push(pair_of_sockets()?);
            let (time, cpu_time) = guest.measure(way)?;
            ours.push(time);
            cpu.push(cpu_time);
        }
        let speed = |samples: &Samples| BYTES as f64 / samples.median_ms() / 1e3;
        println!(
            "{title:16} {:5.0} MB/s {:5.0} MB/s {:6.2} {:6.0} us",
            speed(&limit),
            speed(&ours),
            speed(&ours) / speed(&limit),
            cpu.median_ms() * 1e3 / (BYTES >> 20) as f64
        );
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    FromGuest,
    ToGuest,
}

/// The guest that runs repeatedly.
struct Guest {
    command: PathBuf,
    payload: PathBuf,
    socket: PathBuf,
}

impl Guest {
    fn new(coracle: &Path, folder: &Path, name: &str) -> Result<Guest> {
        let payload = folder.join(format!("{name}.elf"));
        fs::write(&payload, Payload::named(name).with_context(|| format!("no payload {name}"))?.elf())?;
        let socket = std::env::temp_dir().join(format!("coracle-bench-{}", std::process::id()));
        Ok(Guest { command: coracle.into(), payload, socket })
    }

    /// Returns the time from the connection to the last byte, and the CPU time of the whole process.
    fn measure(&self, way: Way) -> Result<(Duration, Duration)> {
        let mut command = Command::new(&self.command);
        command.args(["run", "--accel", "kvm", "--memory", "64M", "--timeout", "60s", "--vsock"]);
        command.arg(format!("uds={}", self.socket.display())).arg(&self.payload);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child =
            command.spawn().with_context(|| format!("cannot start `{}`", process::line(&command)))?;
        let measured = self.connect(&mut child).and_then(|stream| transfer(stream, way));
        let cpu = wait_cpu_time(&child)?;
        Ok((measured.with_context(|| process::line(&command))?, cpu))
    }

    fn connect(&self, child: &mut Child) -> Result<UnixStream> {
        let mut stream = loop {
            if let Ok(stream) = UnixStream::connect(&self.socket) {
                break stream;
            }
            ensure!(child.try_wait()?.is_none(), "it has ended early");
            thread::sleep(Duration::from_millis(1));
        };
        stream.write_all(b"CONNECT 52\n")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        Ok(stream)
    }
}

fn transfer(stream: UnixStream, way: Way) -> Result<Duration> {
    let start = Instant::now();
    match way {
        Way::FromGuest => receive(stream)?,
        Way::ToGuest => {
            send(&stream)?;
            // The guest ends when it has received everything.
            (&stream).read_to_end(&mut Vec::new()).ok();
        }
    }
    Ok(start.elapsed())
}

/// Measures the load without a guest.
fn pair_of_sockets() -> Result<Duration> {
    let (here, there) = UnixStream::pair()?;
    let _guest = Worker::start(std::hint::spin_loop);
    let start = Instant::now();
    let sender = thread::spawn(move || send(&there));
    receive(here)?;
    let elapsed = start.elapsed();
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(elapsed)
}

fn send(mut stream: &UnixStream) -> Result<()> {
    let block = vec![0xa5; BLOCK];
    for _ in 0..BYTES / BLOCK {
        stream.write_all(&block)?;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive(mut stream: UnixStream) -> Result<()> {
    let mut block = vec![0; BLOCK];
    let mut received = 0;
    loop {
        match stream.read(&mut block)? {
            0 => break,
            len => received += len,
        }
    }
    ensure!(received == BYTES, "{received} bytes have come, and {BYTES} were sent");
    Ok(())
}

/// The number of bytes, which the payloads share.
const BYTES: usize = 256 << 20;
/// The number of bytes in a call.
const BLOCK: usize = 64 << 10;

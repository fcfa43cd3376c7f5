//! The disk and the network card of a bare guest that polls, by the loads of `bench block` and `bench net`.
//! The disk's file is in the page cache. Each monitor has the engine that it has by itself, QEMU io_uring and
//! an I/O thread; only Coracle can poll, and is measured with and without.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::table::{Better, Cell, Table};
use super::{Column, is_peer};
use crate::bench::life::{Lives, Waiting, write_payload};
use crate::bench::statistics::median;
use crate::bench::vmm::{Device, Guest, Kind, Vmm};
use crate::bench::{block, net};
use crate::workspace::Workspace;

/// A row of the table.
struct Row {
    name: &'static str,
    better: Better,
    /// The load of `bench block` or `bench net`.
    payload: &'static str,
    /// Whether a Coracle polls its disk.
    polls: bool,
}

const DISK: [Row; 4] = [
    Row { name: READ_1, better: Better::Less, payload: "block-read-1", polls: true },
    Row { name: READ_1_ASLEEP, better: Better::Less, payload: "block-read-1", polls: false },
    Row { name: READ_32, better: Better::Less, payload: "block-read-32", polls: true },
    Row { name: WRITE_32, better: Better::Less, payload: "block-write-32", polls: true },
];

/// The life of a machine with a disk that its guest does not touch.
const DISK_LIFE: Row =
    Row { name: "whole life with a disk, ms", better: Better::Less, payload: "hello-exit", polls: true };
const DISK_THREADS: Row =
    Row { name: "threads with a disk", better: Better::Less, payload: "hello-halt", polls: true };

const NET: [Row; 2] = [
    Row { name: SEND, better: Better::More, payload: "net-send-1514", polls: true },
    Row { name: RECEIVE, better: Better::More, payload: "net-receive-1514", polls: true },
];

/// Measures and adds the rows. Without root, or without /dev/net/tun, there is no tap,
/// and the rows of the card say so.
pub(super) fn add_rows(
    table: &mut Table,
    columns: &[Column],
    workspace: &Workspace,
    runs: u32,
) -> Result<()> {
    let folder = workspace.target.join("payloads");
    let disk = block::Disk::new(&workspace.target)?;
    let device = Device::Disk { path: disk.path.clone(), polls: true };
    let life = |vmm: &Vmm, guest: &Guest| {
        let mut lives = Lives::default();
        lives.measure(&mut vmm.command(guest))?;
        Ok(lives.whole.median_ms())
    };
    add_row(table, &DISK_LIFE, columns, &folder, device.clone(), runs * LIVES_A_RUN, life)?;
    let threads = |vmm: &Vmm, guest: &Guest| {
        Ok(Waiting::start(&mut vmm.command(guest))?.held(GUEST_MIB)?.threads as f64)
    };
    add_row(table, &DISK_THREADS, columns, &folder, device, 1, threads)?;
    let cycles_per_second = block::cycles_per_second();
    for row in &DISK {
        let load = block::LOADS.iter().find(|load| load.payload == row.payload).context("the load")?;
        let device = Device::Disk { path: disk.path.clone(), polls: row.polls };
        let one = |vmm: &Vmm, guest: &Guest| {
            Ok(1e6 / block::measure(&mut vmm.command(guest), load, cycles_per_second)?.per_second)
        };
        add_row(table, row, columns, &folder, device, runs, one)?;
    }
    // Only the thread that enters the bench's network is in it.
    thread::scope(|scope| {
        let thread = scope.spawn(|| add_cards(table, columns, &folder, runs));
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

fn add_cards(table: &mut Table, columns: &[Column], folder: &Path, runs: u32) -> Result<()> {
    if let Err(error) = net::enter_network() {
        eprintln!("the network card is left out: {error:#}");
        for row in &NET {
            table.row(row.name, row.better, columns.iter().map(|_| Err("no tap")));
        }
        return Ok(());
    }
    for row in &NET {
        let load = net::LOADS.iter().find(|load| load.payload == row.payload).context("the load")?;
        let one = |vmm: &Vmm, guest: &Guest| {
            let mut results = net::Results::default();
            net::measure(load, &mut vmm.command(guest), &mut results)?;
            Ok(f64::from(load.frames) / results.times.median_ms() / 1e3)
        };
        add_row(table, row, columns, folder, Device::Tap("tap0"), runs, one)?;
    }
    Ok(())
}

/// Measures a row in rounds, one monitor after the other, and adds the medians.
fn add_row(
    table: &mut Table,
    row: &Row,
    columns: &[Column],
    folder: &Path,
    device: Device,
    runs: u32,
    one: impl Fn(&Vmm, &Guest) -> Result<f64>,
) -> Result<()> {
    let guest = Guest::with_device(&write_payload(folder, row.payload)?, GUEST_MIB, device)?;
    let mut samples: Vec<Result<Vec<f64>, &'static str>> = columns.iter().map(has_devices).collect();
    for _ in 0..runs {
        for (column, samples) in columns.iter().zip(&mut samples) {
            let (Ok(vmm), Ok(values)) = (&column.vmm, &mut *samples) else { continue };
            match one(vmm, &guest) {
                Ok(value) => values.push(value),
                Err(error) if is_peer(column.kind) => {
                    eprintln!("{} is left out of `{}`: {error:#}", column.kind, row.name);
                    *samples = Err("failed");
                }
                Err(error) => return Err(error),
            }
        }
    }
    let cells = samples.into_iter().map(|samples| -> Cell { samples.map(|values| median(&values)) });
    table.row(row.name, row.better, cells);
    Ok(())
}

/// Returns an empty list of samples for a monitor that is here and has devices.
fn has_devices(column: &Column) -> Result<Vec<f64>, &'static str> {
    match (column.kind, &column.vmm) {
        (_, Err(why)) => Err(why),
        (Kind::Floor, _) => Err("-"),
        _ => Ok(Vec::new()),
    }
}

pub(super) const READ_1: &str = "4 KiB read, one at a time, us";
pub(super) const READ_1_ASLEEP: &str = "4 KiB read, Coracle without polling, us";
pub(super) const READ_32: &str = "4 KiB read, 32 at a time, us each";
pub(super) const WRITE_32: &str = "4 KiB write, 32 at a time, us each";
pub(super) const SEND: &str = "1514 B to a tap, M frames/s";
pub(super) const RECEIVE: &str = "1514 B from a tap, M frames/s";

const GUEST_MIB: u64 = 256;
/// A life is much shorter than a load.
const LIVES_A_RUN: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_load() {
        for row in &DISK {
            assert!(block::LOADS.iter().any(|load| load.payload == row.payload), "{}", row.name);
        }
        for row in &NET {
            assert!(net::LOADS.iter().any(|load| load.payload == row.payload), "{}", row.name);
        }
    }
}

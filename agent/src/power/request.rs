//! The signals by which busybox's `poweroff`, `reboot` and `halt` ask the first process to end the machine.

use std::io;

use super::{halt, power_off, restart};
use crate::signals::Signals;

/// Signals of busybox's commands, and the request that each stands for.
const REQUESTS: [(libc::c_int, fn() -> !); 3] =
    [(libc::SIGUSR2, power_off), (libc::SIGTERM, restart), (libc::SIGUSR1, halt)];

/// Makes SIGCHLD and the requests readable.
pub(crate) fn signal_events() -> io::Result<Signals> {
    let requests = REQUESTS.map(|(signal, _)| signal);
    Signals::open(&[requests.as_slice(), &[libc::SIGCHLD]].concat())
}

/// Takes the pending signals and returns the first request among them.
pub(crate) fn requested(signals: &Signals) -> Option<fn() -> !> {
    let requests = std::iter::from_fn(|| signals.take()).map(request);
    requests.fold(None, Option::or)
}

fn request(number: libc::c_int) -> Option<fn() -> !> {
    REQUESTS.iter().find(|(signal, _)| *signal == number).map(|(_, ending)| *ending)
}

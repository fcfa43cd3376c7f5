//! The signals by which `poweroff`, `reboot` and `halt` of busybox ask the first process for an end.

use std::io;

use super::{halt, power_off, restart};
use crate::signals::Signals;

/// What the signals of busybox's commands ask its init for.
const REQUESTS: [(libc::c_int, fn() -> !); 3] =
    [(libc::SIGUSR2, power_off), (libc::SIGTERM, restart), (libc::SIGUSR1, halt)];

/// Makes SIGCHLD and the requests readable.
pub(crate) fn signal_events() -> io::Result<Signals> {
    let requests = REQUESTS.map(|(signal, _)| signal);
    Signals::open(&[requests.as_slice(), &[libc::SIGCHLD]].concat())
}

/// Takes the signals that have come, and gives the first request among them.
pub(crate) fn requested(signals: &Signals) -> Option<fn() -> !> {
    let requests = std::iter::from_fn(|| signals.take()).map(request);
    requests.fold(None, Option::or)
}

fn request(number: libc::c_int) -> Option<fn() -> !> {
    REQUESTS.iter().find(|(signal, _)| *signal == number).map(|(_, ending)| *ending)
}

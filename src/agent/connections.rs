//! The connections of an agent to its machine's port, one after the other.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coracle_agent::relay::{poll, poll_entry};
use coracle_devices::virtio::listener::PortListener;

use super::error::AgentError;
use super::link::{self, Link};

/// Serves one connection after the other, until there will be no more. A guest that ends loses its agent
/// first. So the end of a connection is only reported when the machine ends, another connection comes, or
/// some time has passed.
pub(super) fn serve_each(
    link: &Link,
    mut accept: impl FnMut(Option<Instant>) -> Accepted,
    buffer: &mut [u8],
) -> AgentError {
    let mut lost: Option<(AgentError, Instant)> = None;
    loop {
        let accepted = accept(lost.as_ref().map(|(_, until)| *until));
        if let Accepted::None = accepted {
            return lost.map_or(AgentError::Lost, |(error, _)| error);
        }
        if let Some((error, _)) = lost.take() {
            link.lock().fail(&error);
            link.wakers().wake();
        }
        let Accepted::Stream(stream) = accepted else { continue };
        let error = link::serve(link, OwnedFd::from(stream), buffer);
        let mut state = link.lock();
        if state.has_to_end() {
            return error;
        }
        state.disconnect();
        drop(state);
        let wait = if matches!(error, AgentError::Lost) { LAST_MOMENTS } else { Duration::ZERO };
        lost = Some((error, Instant::now() + wait));
    }
}

pub(super) enum Accepted {
    Stream(UnixStream),
    /// No connection came in time.
    Late,
    /// There will be no connection.
    None,
}

/// Returns the next connection, if one comes before `deadline`.
pub(super) fn accept(link: &Link, listener: &PortListener, deadline: Option<Instant>) -> Accepted {
    loop {
        if link.lock().has_to_end() {
            return Accepted::None;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Accepted::Late;
        }
        // Rounded up, so that it does not spin.
        let wait = left.map_or(-1, |left| i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1);
        let listening = poll_entry(listener.as_fd().as_raw_fd(), libc::POLLIN);
        let mut entries = [poll_entry(link.wake.as_raw_fd(), libc::POLLIN), listening];
        if poll(&mut entries, wait).is_err() {
            return Accepted::None;
        }
        let _ = link.wake.read();
        match listener.accept_within(Duration::ZERO) {
            Ok(Some(stream)) => return Accepted::Stream(stream),
            Ok(None) => {}
            Err(_) => return Accepted::None,
        }
    }
}

/// The time that a guest takes from the end of its processes to its own, on a slow host.
const LAST_MOMENTS: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::channel::ChannelState;
    use crate::agent::link::Limits;
    use crate::ending::Ending;

    /// Returns a connection that has ended.
    fn ended() -> Accepted {
        UnixStream::pair().map_or(Accepted::None, |(ours, _)| Accepted::Stream(ours))
    }

    /// Returns the error of a call whose connection ends. `next` makes what comes then, and gets the call's
    /// error until then.
    fn fails_with(mut next: impl FnMut(&Link, Option<AgentError>) -> Accepted) -> Option<AgentError> {
        let limits = Limits { ready: Duration::ZERO, answer: Duration::MAX, min_rate: 1 };
        let link = Link::new(limits).unwrap();
        link.lock().channels.insert(1, ChannelState::default());
        let call = || link.lock().channels.get(&1).and_then(|call| call.lost().cloned());
        let mut is_first = true;
        let accept = |deadline: Option<Instant>| {
            if std::mem::take(&mut is_first) {
                assert!(deadline.is_none());
                return ended();
            }
            next(&link, call())
        };
        link.finish(serve_each(&link, accept, &mut [0; 64]));
        call()
    }

    #[test]
    fn machine_that_ends_after_its_agent_is_told_as_that() {
        let panic = Some("out of memory".to_owned());
        let error = fails_with(|link, call| {
            assert!(call.is_none(), "the end of the connection is held back");
            link.machine_ends(&Ending::PoweredOff, panic.clone());
            Accepted::None
        });
        assert!(matches!(error, Some(AgentError::MachineEnded { panic: Some(_), .. })), "{error:?}");
    }

    #[test]
    fn agent_that_comes_again_or_never_has_lost_what_was_under_way() {
        for again in [true, false] {
            let mut turn = 0;
            let error = fails_with(|link, call| {
                turn += 1;
                match turn {
                    1 if again => ended(),
                    1 => Accepted::Late,
                    _ => {
                        assert!(matches!(call, Some(AgentError::Lost)), "{call:?}");
                        link.machine_ends(&Ending::PoweredOff, None);
                        Accepted::None
                    }
                }
            });
            assert!(matches!(error, Some(AgentError::Lost)), "{again}: {error:?}");
        }
    }
}

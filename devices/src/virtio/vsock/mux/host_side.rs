//! The host's side of the multiplexer: events of sockets, new clients, calls from this process, and the
//! clock.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use super::super::client::{Client, Greeting};
use super::super::connection::{Opener, PATIENCE};
use super::super::switchboard::Call;
use super::{CALLS, CLOCK, Id, LISTENER, Mux, READY_EVENTS, SOCKET_EVENTS};
use crate::journal;

impl Mux {
    /// Serves events of the host's side: [`READY_EVENTS`] at once, and the rest with the next event.
    pub(in super::super) fn serve_host(&mut self) {
        let mut events = [EpollEvent::default(); READY_EVENTS];
        let count = self.epoll.wait(0, &mut events).unwrap_or_default();
        for event in events.iter().take(count) {
            match event.data() {
                CALLS => self.take_calls(),
                CLOCK => self.tick(),
                LISTENER => self.may_accept = true,
                id => self.on_socket_ready(id, event.event_set()),
            }
        }
        self.accept_waiting();
    }

    /// Takes clients that came when the device was full.
    pub(in super::super) fn accept_waiting(&mut self) {
        if self.may_accept {
            self.accept();
        }
    }

    /// Takes the clients that wait, up to the largest number. The others wait until connections have ended.
    fn accept(&mut self) {
        while let Some(socket) = self.socket.as_ref().filter(|_| !self.is_full()) {
            match socket.accept() {
                Ok(Some(stream)) => self.add_client(stream),
                Ok(None) => {
                    self.may_accept = false;
                    return;
                }
                Err(error) => {
                    journal!(Guest Warn, "virtio vsock: a client of the host cannot be served now: {error}");
                    return self.run_clock();
                }
            }
        }
    }

    fn add_client(&mut self, stream: UnixStream) {
        let id = self.new_id();
        if self.watch(&stream, id, SOCKET_EVENTS).is_ok() {
            self.clients.insert(id, Client { stream, patience: PATIENCE });
            self.run_clock();
        }
    }

    pub(super) fn on_socket_ready(&mut self, id: Id, events: EventSet) {
        if self.clients.contains_key(&id) {
            return self.on_client_ready(id);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.on_socket_ready(events) {
            return self.give_up(id);
        }
        if connection.is_over() {
            self.remove(id);
        } else {
            self.queue(id);
        }
    }

    fn on_client_ready(&mut self, id: Id) {
        let Some(client) = self.clients.get(&id) else { return };
        match client.greeting() {
            Greeting::Incomplete => {}
            Greeting::Bad => drop(self.clients.remove(&id)),
            Greeting::Port(port) => {
                let Some(Client { stream, .. }) = self.clients.remove(&id) else { return };
                let connection = self.requested(port, stream, Opener::Client);
                self.insert(id, connection);
            }
        }
    }

    fn take_calls(&mut self) {
        for Call { port, stream, caller, .. } in self.switchboard.take_calls() {
            if self.is_full() {
                caller.no_room();
                continue;
            }
            let connection = self.requested(port, stream, Opener::Caller(caller));
            // Without a place in the epoll set the connection is dropped, which its caller notices.
            let _ = self.add(connection);
        }
    }

    /// Handles one tick of the clock.
    pub(in super::super) fn tick(&mut self) {
        self.clients.retain(|_, client| {
            client.patience = client.patience.saturating_sub(1);
            client.patience > 0
        });
        let mut late = Vec::new();
        let mut is_needed = !self.clients.is_empty();
        for (id, connection) in &mut self.connections {
            let Some(patience) = &mut connection.patience else { continue };
            *patience = patience.saturating_sub(1);
            is_needed = true;
            if *patience == 0 {
                late.push(*id);
            }
        }
        late.into_iter().for_each(|id| self.give_up(id));
        if !is_needed {
            // This fails only for a timer that does not exist.
            let _ = self.clock.clear();
            self.clock_runs = false;
        }
    }

    pub(super) fn run_clock(&mut self) {
        if !self.clock_runs {
            // The watch is edge-triggered, so each tick gives one event although nobody reads the timer.
            self.clock_runs = self.clock.reset(TICK, Some(TICK)).is_ok();
        }
    }
}

/// The interval of the clock that counts patience. The clock stands still while the guest is paused.
const TICK: Duration = Duration::from_secs(1);

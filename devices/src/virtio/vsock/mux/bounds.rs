//! The bounds that tests and fuzz targets check the multiplexer's tables against.

use super::super::{KEPT_BACK, MAX_CONNECTIONS};
use super::{MAX_RESETS, Mux, WIDE_ROOM, WIDE_WINDOW};
#[cfg(test)]
use crate::virtio::vsock::connection::Connection;

impl Mux {
    /// Panics if a table holds more than the largest number of connections, clients and answers.
    pub(in super::super) fn assert_bounded(&self) {
        let connections = self.connections.len();
        let most_connections = MAX_CONNECTIONS.saturating_add(KEPT_BACK);
        let together = connections.saturating_add(self.clients.len());
        assert!(together <= most_connections, "{together} connections and clients");
        assert!(
            self.by_ports.len() <= connections,
            "{} ports, {connections} connections",
            self.by_ports.len()
        );
        assert!(self.ready.len() <= connections, "{} ready, {connections} connections", self.ready.len());
        let most = MAX_RESETS.saturating_add(most_connections);
        assert!(self.resets.len() <= most, "{} resets", self.resets.len());
        let wide = self.connections.values().filter(|connection| connection.window() == WIDE_WINDOW).count();
        let given = u64::from(WIDE_WINDOW).saturating_mul(wide as u64);
        assert_eq!(given.saturating_add(self.wide_room.into()), u64::from(WIDE_ROOM), "windows are lost");
    }

    #[cfg(test)]
    pub(in super::super) fn backlog(&self) -> usize {
        self.connections.values().map(Connection::backlog).sum()
    }

    #[cfg(test)]
    pub(in super::super) fn resets(&self) -> usize {
        self.resets.len()
    }

    #[cfg(test)]
    pub(in super::super) fn connections(&self) -> usize {
        self.connections.len()
    }
}

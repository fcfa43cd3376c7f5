//! From the configuration of a network card to the device, and its traffic counters.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_arch::field::{Field, NETS};
use coracle_devices::backend::net::{NetBackend, NetOpenError, Stream, Tap, adopt};
use coracle_devices::virtio::net::{MacAddress, Net, NetCounts, NetSettings};

use super::spec::{DeviceSpec, Named, Opened, SpecContext, numbered};
use super::template::{KnownNet, Link};
use super::{Attached, Handle, Repointed, VirtioDevices, VirtioError};
use crate::config::{DeviceId, NetConfig, NetEnd};

impl DeviceSpec for Named<'_, NetConfig> {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        opened(self.field, self.config)
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        format!("{} {}", self.field, self.config.end)
    }
}

/// A network card of a machine that goes on from another one.
pub(super) struct ForkNet<'a> {
    pub(super) id: &'a DeviceId,
    pub(super) field: Field,
    pub(super) config: NetConfig,
}

impl DeviceSpec for ForkNet<'_> {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        opened(self.field, &self.config)
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        MODULE
    }

    fn setting(&self) -> String {
        self.id.to_string()
    }
}

fn opened(field: Field, config: &NetConfig) -> Result<Opened, VirtioError> {
    let NetConfig { end, mac, mtu, poll, id: _ } = config;
    let backend = backend(end).map_err(|source| VirtioError::Net { field, end: end.clone(), source })?;
    let mac = mac.unwrap_or_else(MacAddress::random);
    let settings = NetSettings { name: format!("net {end}"), mac, mtu: *mtu, poll: *poll };
    let net = Arc::new(Net::new(settings, backend));
    let link = Link::Net(KnownNet { mac, mtu: *mtu }, config.clone());
    Ok(Opened { device: net.clone(), handle: Some(Handle::Net(net)), link })
}

/// A network card of a machine that goes on from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForkCard {
    pub(crate) id: DeviceId,
    /// The address by which the guest knows it.
    pub(crate) former: MacAddress,
    /// The address that it has now.
    pub(crate) mac: MacAddress,
}

impl VirtioDevices {
    /// Gives the cards with other ends than those of the first machine addresses of their own, after
    /// [`VirtioDevices::restore`] and before the vCPUs run. Returns all cards.
    pub(crate) fn renew_cards(&self, repointed: &Repointed) -> Vec<ForkCard> {
        let renew = |device: &Attached| {
            let Some(Handle::Net(net)) = &device.handle else { return None };
            let former = net.present_mac();
            if repointed.has_net(&device.id) {
                net.renew_mac();
            }
            Some(ForkCard { id: device.id.clone(), former, mac: net.present_mac() })
        };
        self.attached.iter().filter_map(renew).collect()
    }

    /// Returns the address of the first card.
    pub(crate) fn first_mac(&self) -> Option<MacAddress> {
        self.handles().find_map(|handle| match handle {
            Handle::Net(net) => Some(net.mac()),
            _ => None,
        })
    }

    /// Returns the traffic counters of each network card, in configuration order.
    pub(crate) fn net_counts(&self) -> Vec<NetCounts> {
        let nets = self.handles().filter_map(|handle| match handle {
            Handle::Net(net) => Some(net.counts()),
            _ => None,
        });
        nets.collect()
    }
}

fn backend(end: &NetEnd) -> Result<Box<dyn NetBackend>, NetOpenError> {
    Ok(match end {
        NetEnd::Tap(name) => Box::new(Tap::open(name)?),
        NetEnd::Fd(number) => adopt(*number)?,
        NetEnd::Socket(path) => Box::new(Stream::connect(path)?),
    })
}

/// Refuses two cards with the same MAC address, or with the same end if only one card can use it.
pub(super) fn check_each_is_its_own(nets: &[NetConfig]) -> Result<(), VirtioError> {
    let mut addresses = HashSet::new();
    for Named { field, config, id: _ } in numbered(nets, NETS, "mac") {
        if let Some(mac) = config.mac.filter(|mac| !addresses.insert(*mac)) {
            return Err(VirtioError::MacTwice { field, mac });
        }
    }
    for (place, net) in nets.iter().enumerate() {
        // A program can accept several connections on its socket; a tap serves one card.
        let is_shared = matches!(net.end, NetEnd::Socket(_));
        if !is_shared && nets.iter().take(place).any(|other| other.end == net.end) {
            return Err(VirtioError::NetTwice { field: NETS.item(place, "end"), end: net.end.clone() });
        }
    }
    Ok(())
}

/// The module that drives a card in a stock Linux.
const MODULE: &str = "virtio_net";

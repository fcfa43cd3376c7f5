//! Tests of Linux guests with network cards that are forked or restored: each has addresses of its own.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use coracle::agent::{ExecInput, ExecStatus, NetworkSettings};
use coracle::config::{AgentConfig, AgentTransport, NetConfig, VmConfig, default_cmdline_with};
use coracle::guest_data::{self, GuestData};
use coracle::{Fork, SnapshotError, Vm, VmBuilder};

use super::common::network::{in_own_network, ip, tap};
use super::{common, data, no_linux};

/// Far longer than anything takes on an emulated host.
const LIMIT: Duration = Duration::from_secs(250);
const FORMER: &str = "02:00:00:00:00:07";

fn guest() -> VmBuilder {
    let tuned = guest_data::find(GuestData::TunedVmlinux).is_ok();
    let kernel = if tuned { GuestData::TunedVmlinux } else { GuestData::GuestVmlinux };
    VmBuilder::new(VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet"]),
        agent: Some(AgentConfig { transport: AgentTransport::Console, ..AgentConfig::default() }),
        nets: vec![format!("tap=tap0,mac={FORMER}").parse().unwrap()],
        timeout: Some(LIMIT),
        ..VmConfig::new(data(kernel))
    })
}

fn sh(vm: &Vm, script: &str) -> String {
    let output = vm.exec(["sh", "-c", script]).timeout(LIMIT).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status, ExecStatus::Code(0), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn at(last: u8) -> NetworkSettings {
    let address = Some((Ipv4Addr::new(10, 9, 0, last), 24, Some(Ipv4Addr::new(10, 9, 0, 254))));
    NetworkSettings { address, dns: vec![[10, 9, 0, 254].into()], ..NetworkSettings::default() }
}

/// Returns the link-local address that follows from a hardware address.
fn of_mac(mac: &str) -> Ipv6Addr {
    let pairs: Vec<u8> = mac.split(':').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let [a, b, c, d, e, f] = pairs.try_into().unwrap();
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f].into()
}

/// Checks the addresses of a guest, and returns the hardware address.
fn mac(vm: &Vm, address: &str) -> String {
    let addresses = sh(vm, "ip -4 -o addr show dev eth0 | grep -o 'inet [^ ]*'");
    assert_eq!(addresses, format!("inet {address}/24\n"), "those of the first machine are gone");
    let routes = sh(vm, "ip route");
    assert!(routes.starts_with("default via 10.9.0.254 dev eth0"), "{routes}");
    assert_eq!(sh(vm, "cat /etc/resolv.conf"), "nameserver 10.9.0.254\n");
    let mac = sh(vm, "cat /sys/class/net/eth0/address").trim().to_owned();
    let link_local = sh(vm, "ip -6 -o addr show dev eth0 | grep -o 'fe80[^/]*'");
    assert_eq!(link_local.trim(), of_mac(&mac).to_string());
    mac
}

#[test]
fn forks_on_taps_of_one_bridge_reach_each_other_by_addresses_of_their_own() {
    needs_linux!();
    in_own_network(|| {
        ip("link add br0 type bridge");
        ip("addr add 10.9.0.254/24 dev br0");
        ip("link set br0 up");
        for name in ["tap0", "tap1", "tap2", "tap3"] {
            tap(name);
            ip(&format!("link set {name} master br0"));
        }
        let vm = guest().start().unwrap();
        vm.wait_ready(LIMIT).unwrap();
        vm.network_up(at(1)).unwrap();
        sh(&vm, "ip addr add 10.9.0.77/24 dev eth0; ping -c 1 10.9.0.254");
        // The kernel makes it some time after the interface has come up.
        sh(
            &vm,
            "for i in $(seq 500); do ip -6 addr show dev eth0 | grep -q fe80 && exit; sleep 0.1; done; exit 1",
        );
        let folder = common::fresh_path("forks-net");
        vm.snapshot_to(&folder).unwrap();
        let template = vm.freeze().unwrap();
        drop(vm);
        let net = |index: usize| NetConfig::tap(format!("tap{index}"));
        let adapt =
            |index: usize, fork: Fork| fork.net("net0", net(index)).address("net0", at(index as u8 + 10));
        let forks = template.fork(2, adapt).unwrap();
        let [one, other] = forks.as_slice() else { panic!() };
        let mut macs = HashSet::from([FORMER.to_owned()]);
        assert!(macs.insert(mac(one, "10.9.0.10")) && macs.insert(mac(other, "10.9.0.11")), "{macs:?}");
        exchange(one, other);
        // By the address that the card has now.
        one.network_up(at(12)).unwrap();
        mac(one, "10.9.0.12");
        drop(forks);
        let restore = || Vm::restore(&folder).timeout(LIMIT);
        let named = NetConfig { mac: Some("02:00:00:00:00:08".parse().unwrap()), ..net(3) };
        let restored = restore().net("net0", named).address("net0", at(13)).start().unwrap();
        assert_eq!(mac(&restored, "10.9.0.13"), "02:00:00:00:00:08");
        sh(&restored, "ping -c 2 10.9.0.254");
        drop(restored);
        // No DHCP server answers.
        let limit = Some(Duration::from_secs(1));
        let by_dhcp = NetworkSettings { lease_limit: limit, ..NetworkSettings::default() };
        let refused = restore().reopen_recorded().address("net0", by_dhcp).start().map(drop).unwrap_err();
        assert!(matches!(refused, SnapshotError::Identity { .. }), "{refused}");
        assert!(refused.to_string().contains("eth0"), "{refused}");
        let same = restore().reopen_recorded().start().unwrap();
        assert_eq!(sh(&same, "cat /sys/class/net/eth0/address").trim(), FORMER);
        sh(&same, "ping -c 1 10.9.0.254");
    });
}

/// Lets one fork send bytes to the other.
fn exchange(one: &Vm, other: &Vm) {
    sh(one, "ping -c 2 10.9.0.11");
    let receive = other.exec(["sh", "-c", "nc -l -p 7000 | md5sum"]).stdin(ExecInput::Piped);
    let mut received = receive.timeout(LIMIT).spawn().unwrap();
    // At the end of its input, it would end the connection.
    let _input = received.stdin.take();
    let send =
        "head -c 100000 /dev/urandom > /tmp/sent; while ! nc 10.9.0.11 7000 < /tmp/sent; do sleep 0.2; done";
    sh(one, send);
    let sum = sh(one, "md5sum < /tmp/sent");
    assert_eq!(String::from_utf8(received.wait_with_output().unwrap().stdout).unwrap(), sum);
}

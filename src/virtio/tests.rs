//! Opening and attaching the devices of a configuration, without a guest.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use coracle_devices::event_loop::EventLoop;
use coracle_devices::virtio::state::SavedDevice;

use super::*;
use crate::config::ConsoleDevice;

fn attach(config: &VmConfig) -> VirtioDevices {
    let event_loop = EventLoop::new().unwrap();
    let (interrupts, gate) = (Interrupts::default(), Arc::new(Gate::new()));
    let context = AttachContext { interrupts: &interrupts, io: event_loop.handle(), gate };
    let devices = VirtioDevices::attach(config, &specs(config, None), &context).unwrap();
    devices.end_threads(false);
    devices
}

#[test]
fn each_device_with_a_host_s_side_gives_its_handle_and_no_other() {
    let mut config = VmConfig::new("kernel");
    (config.rng, config.balloon, config.console) = (true, false, ConsoleDevice::Serial);
    let devices = attach(&config);
    assert!(devices.balloon().is_none() && devices.vsock().is_none() && devices.console().is_none());
    assert!(devices.agent_port().is_none() && devices.net_counts().is_empty());
    assert_eq!(devices.handles().count(), 0, "the entropy device has no host side");

    let (ends, _peers): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
    config.nets = ends.iter().map(|end| format!("fd={}", end.as_raw_fd()).parse().unwrap()).collect();
    config.vsock = Some("cid=7".parse().unwrap());
    (config.balloon, config.console) = (true, ConsoleDevice::Virtio);
    let devices = attach(&config);
    assert_eq!(devices.net_counts().len(), 2);
    assert!(devices.vsock().is_some() && devices.console().is_some() && devices.agent_port().is_none());
    let balloon = devices.balloon().unwrap();
    balloon.set_target(u64::MAX);
    assert_eq!(balloon.status().target_bytes, config.memory.bytes(), "the balloon has the size of the RAM");
}

#[test]
fn devices_that_do_not_go_together_are_refused_with_the_setting_to_change() {
    let refused = |change: &dyn Fn(&mut VmConfig)| {
        let mut config = VmConfig::new("kernel");
        change(&mut config);
        check(&config).unwrap_err().to_string()
    };
    let disks = |config: &mut VmConfig| {
        config.disks = ["a,serial=x", "b", "c,id=x"].map(|text| text.parse().unwrap()).into();
    };
    assert_eq!(refused(&disks), "disks[2].serial: two disks have the serial number x; give each its own");
    let ids = |config: &mut VmConfig| {
        config.disks = ["a,id=disk1,serial=x", "b"].map(|text| text.parse().unwrap()).into();
    };
    let said = "disks[1].path b: it has the id disk1, which another device (disks[0].path a) has; \
                give each its own id=";
    assert_eq!(refused(&ids), said);
    let kinds = |config: &mut VmConfig| {
        config.rng = true;
        config.nets = vec!["tap=t,id=rng0".parse().unwrap()];
    };
    let said = "rng: it has the id rng0, which another device (nets[0].end tap=t) has; give each its own id=";
    assert_eq!(refused(&kinds), said);
    let nets = |config: &mut VmConfig, texts: [&str; 2]| {
        config.nets = texts.map(|text| text.parse().unwrap()).into();
    };
    let mac = "mac=02:00:00:00:00:01";
    let said = refused(&|config| nets(config, [&format!("tap=a,{mac}"), &format!("tap=b,{mac}")]));
    assert_eq!(said, "nets[1].mac: two network cards have the address 02:00:00:00:00:01; give each its own");
    let said = refused(&|config| nets(config, ["tap=a", "tap=a"]));
    assert_eq!(said, "nets[1].end: two network cards have the end tap=a; give each its own");
    let said = refused(&|config| config.disks = vec!["a".parse().unwrap(); 99]);
    assert!(
        said.starts_with("disks[17].path a: a machine has interrupts for 17 virtio devices, and 99"),
        "{said}"
    );
}

#[test]
fn devices_are_in_their_order_with_the_modules_that_drive_them() {
    let mut config = VmConfig::new("kernel");
    (config.rng, config.balloon, config.console) = (true, true, ConsoleDevice::Virtio);
    config.vsock = Some("cid=7".parse().unwrap());
    let modules: Vec<_> = specs(&config, None).iter().map(|spec| spec.module()).collect();
    assert_eq!(modules, ["virtio_rng", "virtio_balloon", "virtio_console", "vmw_vsock_virtio_transport"]);
    assert_eq!(attach(&config).places().len(), modules.len());
}

#[test]
fn states_are_those_of_the_same_devices_in_the_same_order() {
    let mut config = VmConfig::new("kernel");
    (config.rng, config.balloon) = (true, true);
    let states = attach(&config).save().unwrap();
    assert!(states.iter().map(|(name, _)| name.as_str()).eq(["rng0", "balloon0"]));
    assert_eq!(attach(&config).restore(&states), Ok(()));
    let refused = |change: &dyn Fn(&mut States)| {
        let mut states = states.clone();
        change(&mut states);
        attach(&config).restore(&states).unwrap_err().to_string()
    };
    let missing = "the state of balloon0 (balloon) is missing; \
                   a machine is restored with the states of all its devices";
    assert_eq!(refused(&|states| states.truncate(1)), missing);
    let unknown = "there is a state of a device 'balloon0', which this machine does not have";
    assert_eq!(refused(&|states| states.reverse()), unknown);
    assert_eq!(refused(&|states| states.extend(states.last().cloned())), unknown);
    let kind = "balloon0 (balloon): field `kind` is 0x4: always 0x5 here";
    assert_eq!(refused(&|states| states[1].1 = states[0].1.clone()), kind);
}

#[test]
fn every_device_has_a_state() {
    let mut config = VmConfig::new("kernel");
    (config.rng, config.balloon, config.console) = (true, true, ConsoleDevice::Virtio);
    config.vsock = Some("cid=7".parse().unwrap());
    let (end, _peer) = UnixStream::pair().unwrap();
    config.nets = vec![format!("fd={},id=lan", end.as_raw_fd()).parse().unwrap()];
    let devices = attach(&config);
    assert_eq!(devices.check_can_be_saved(), Ok(()));
    let states = devices.save().unwrap();
    let ids: Vec<_> = states.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["lan", "rng0", "balloon0", "console0", "vsock0"]);
    let infos: Vec<_> = devices.template().iter().map(TemplateDevice::info).collect();
    let kinds: Vec<_> = infos.iter().map(|info| (info.kind, info.needs_host)).collect();
    let nothing = ["rng", "balloon", "console", "vsock"].map(|kind| (kind, false));
    assert_eq!(kinds, [&[("net", true)][..], &nothing].concat());
    assert_eq!(infos[0].recorded, Some(format!("fd={}", end.as_raw_fd())));
    assert_eq!(infos[4].recorded, Some("cid=7".to_owned()));
    // The first machine's descriptors are nobody's.
    std::mem::forget((end, devices));
}

/// The states of a machine's devices, with their names.
type States = Vec<(String, SavedDevice)>;

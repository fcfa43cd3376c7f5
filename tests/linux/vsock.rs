//! Tests of a stock kernel with a vsock device, and connections in both directions.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use coracle::VmBuilder;
use coracle::config::{VmConfig, VsockConfig, default_cmdline_with};
use coracle::guest_data::GuestData;
use coracle::outcome::Ending;
use coracle::vsock::{ConnectError, VsockPortError};

use super::common::{self, echo};
use super::{data, no_linux};

/// The port on which the guest echoes, and to which it connects on the host.
const ECHO: u32 = 7;

#[test]
fn stock_linux_talks_both_ways_and_100_mb_come_back() {
    needs_linux!();
    // A directory of the machine's own: sockets do not work on every shared one.
    let path = PathBuf::from(format!("/dev/shm/coracle-vsock-{}", std::process::id()));
    let config = VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet", "coracle.init=echo"]),
        vsock: Some(VsockConfig { cid: 42, uds: Some(path.clone()), id: None }),
        timeout: Some(Duration::from_secs(100)),
        ..VmConfig::new(data(GuestData::GuestVmlinux))
    };
    let vm = VmBuilder::new(config).build().unwrap();
    let handle = vm.handle();
    let listener = handle.listen(ECHO).unwrap();
    handle.resume();
    let stream = listener.accept().expect("the guest connects");
    echo(stream, 1000);

    // Through the host's socket.
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    echo(stream, 100_000);

    let refused = handle.connect(ECHO + 1).unwrap_err();
    assert!(matches!(refused, VsockPortError::Connect(ConnectError::Refused { port: 8 })), "{refused}");
    let idle = handle.connect(ECHO).unwrap();
    echo(handle.connect(ECHO).unwrap(), 100_000_000);
    handle.press_power_button();
    assert_eq!(vm.wait().ending, Ending::PoweredOff);
    assert_eq!((&idle).read(&mut [0; 1]).unwrap(), 0, "the end of the machine ends its connections");
    assert!(!path.exists());
}

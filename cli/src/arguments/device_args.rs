//! The options that connect the devices of a restored machine to the host.

use clap::Args;
use coracle::config::{DiskConfig, NetConfig};

use super::per_fork::PerFork;
use super::vm_args::SocketArgs;

// The connections of devices.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Other file for a disk: path=PATH,id=ID with the options of `coracle run --disk`; a guest that writes
    /// to its disk needs a copy from the moment of the snapshot. The id can be left out if there is only one
    /// disk. Here, in --net and in --vsock, `{i}` is the index of the fork; can be repeated
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<PerFork<DiskConfig>>,
    /// Other end for a network card, as with `coracle run --net`; can be repeated
    #[arg(long = "net", value_name = "NET")]
    pub nets: Vec<PerFork<NetConfig>>,
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Open what the snapshot has recorded for devices that are not named here; prints each path. Only for a
    /// snapshot that you trust
    #[arg(long)]
    pub reopen: bool,
    /// Accept that the file of this disk has changed since the snapshot, which may destroy its file system;
    /// can be repeated
    #[arg(long, value_name = "ID")]
    pub disk_changed_ok: Vec<String>,
}

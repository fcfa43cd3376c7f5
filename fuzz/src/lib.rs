//! The fuzz targets' work on one input. Called by libFuzzer (`fuzz_targets/`) with inputs that it makes,
//! and by `tests/fuzz_corpus.rs` with those of `corpus/`. A function returns when the input was handled, also
//! when it was refused; a panic, a sanitizer's report, too much memory or too much time is a finding.

mod agent;
mod config_file;
mod control_protocol;
mod diagnosis_inputs;
mod kernel_image;
mod legacy_bus;
mod packed_tar;
mod root_tar;
mod snapshot_state;
mod suite_toml;
mod tap_stream;
mod virtio_balloon;
mod virtio_block;
mod virtio_console;
mod virtio_echo;
mod virtio_mmio;
mod virtio_net;
mod virtio_ring;
mod virtio_state;
mod virtio_vsock;

pub use agent::{agent_guest, agent_host};
pub use config_file::config_file;
pub use control_protocol::control_protocol;
pub use diagnosis_inputs::diagnosis_inputs;
pub use kernel_image::kernel_image;
pub use legacy_bus::legacy_bus;
pub use packed_tar::packed_tar;
pub use root_tar::root_tar;
pub use snapshot_state::snapshot_state;
pub use suite_toml::suite_toml;
pub use tap_stream::tap_stream;
pub use virtio_balloon::virtio_balloon;
pub use virtio_block::virtio_block;
pub use virtio_console::virtio_console;
pub use virtio_mmio::virtio_mmio;
pub use virtio_net::virtio_net;
pub use virtio_ring::virtio_ring;
pub use virtio_state::virtio_state;
pub use virtio_vsock::virtio_vsock;

/// A target's name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 20] = [
    ("agent_guest", agent_guest),
    ("agent_host", agent_host),
    ("config_file", config_file),
    ("control_protocol", control_protocol),
    ("diagnosis_inputs", diagnosis_inputs),
    ("kernel_image", kernel_image),
    ("legacy_bus", legacy_bus),
    ("packed_tar", packed_tar),
    ("root_tar", root_tar),
    ("snapshot_state", snapshot_state),
    ("suite_toml", suite_toml),
    ("tap_stream", tap_stream),
    ("virtio_balloon", virtio_balloon),
    ("virtio_block", virtio_block),
    ("virtio_console", virtio_console),
    ("virtio_mmio", virtio_mmio),
    ("virtio_net", virtio_net),
    ("virtio_ring", virtio_ring),
    ("virtio_state", virtio_state),
    ("virtio_vsock", virtio_vsock),
];

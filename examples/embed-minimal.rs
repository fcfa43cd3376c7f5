//! Boots a guest, runs a command in it, and prints the command's output and how the machine ended.
//!
//! `cargo run --example embed-minimal` boots the default guest, which `cargo xtask guest` creates.

use std::time::Duration;

use coracle::config::AgentConfig;
use coracle::host::{self, KvmPolicy};
use coracle::{Grace, Vm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First in main: if the KVM of this host cannot run Linux, the program starts again on an emulated host.
    host::ensure_kvm(KvmPolicy::Auto, &[])?;
    let vm = Vm::builder().append("quiet").memory_mib(256).agent(AgentConfig::default()).start()?;

    let output = vm.exec(["sh", "-c", "echo \"$GREETING from $(uname -sr)\""]);
    let output = output.env("GREETING", "hello").timeout(Duration::from_secs(30)).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    println!("the command ended with {}", output.status);

    vm.write_file("/tmp/in.txt", "some bytes")?;
    assert_eq!(vm.read_file("/tmp/in.txt")?, b"some bytes");

    let outcome = vm.stop(Grace::default());
    println!("{}", outcome.reason());
    Ok(())
}

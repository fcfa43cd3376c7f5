//! The JSON Schema of the config file, written by hand; its tests hold it against the types that read the file.

use serde_json::{Map, Value, json};

use super::{MemorySize, VcpuCount};

/// The schema, in JSON Schema 2020-12. It says the form of each field; ranges of sizes and times, and whether files
/// can be used, are for `coracle config check`.
pub fn schema() -> Value {
    let properties: Map<String, Value> =
        properties().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A virtual machine of Coracle",
        "description": "The file of `coracle run --config FILE`. Flags override it. Relative paths are taken from \
                        the folder that the file is in.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

/// Every field with its form, what it means and examples. The order is that of `RawConfig`.
#[expect(clippy::too_many_lines, reason = "a table with an entry for each setting")]
fn properties() -> Vec<(&'static str, Value)> {
    let memory = format!("Size of RAM, from {} to {}; a number is MiB", MemorySize::LEAST, MemorySize::MOST);
    vec![
        ("$schema", text("Where this schema is, for editors; without effect", "vm.schema.json")),
        ("kernel", text("Kernel image (ELF or bzImage); none boots the default guest", "vmlinux")),
        ("initrds", texts("Initial RAM file systems, given to the guest one after the other", "initrd.cpio")),
        (
            "root",
            text(
                "Root file system: the path of a folder, a tar or an image, or path=PATH with any of rw, cow, \
                 cow-size=SIZE, as=initramfs, as=disk, keep-ids, comma-separated; `,,` is a comma in the path",
                "rootfs",
            ),
        ),
        ("append", texts("Words to add to the kernel command line", "quiet")),
        ("cmdline", text("Kernel command line in place of the default one", "console=ttyS0")),
        ("protocol", choice("How the kernel is entered", &["auto", "linux", "pvh"])),
        (
            "kaslr",
            json!({ "description": "Let a bzImage unpack itself, to a random address", "type": "boolean", "examples": [true] }),
        ),
        ("modules", text("Folder with the kernel's modules, for devices that need one", "lib/modules/6.1.0")),
        ("cpus", count("Number of vCPUs", VcpuCount::MOST)),
        ("cpu", text("What the vCPUs can do: host, baseline, or the path of a template", "baseline")),
        ("cpu_affinity", pattern("CPUs of the host for the vCPUs", r"^[0-9][0-9,=-]*$", "0-1")),
        (
            "cpu_quota",
            quantity(
                "Most CPU time that the vCPUs take together, in percent of one CPU",
                r"^[0-9]+%?$",
                &[json!("50%"), json!(200)],
            ),
        ),
        (
            "memory",
            quantity(&memory, r"^([0-9]+[KMGTkmgt]?([Ii]?[Bb])?|size=.+)$", &[json!("512M"), json!(512)]),
        ),
        (
            "disks",
            texts(
                "Disks: the path of a raw image or block device, or path=PATH with any of ro, cow, cow-size=SIZE, \
                 engine=sync, engine=io_uring, poll=off, poll=TIME, queues=N, id=TEXT, on-error=report, on-error=pause, comma-separated; `,,` is a comma in the path",
                "path=data.img,ro",
            ),
        ),
        (
            "nets",
            texts(
                "Network cards: tap=NAME, fd=NUMBER or socket=PATH, with any of mac=ADDRESS, mtu=BYTES, poll=off and poll=TIME, comma-separated; or none; `,,` is a comma in the path",
                "tap=tap0,mac=02:00:00:00:00:01",
            ),
        ),
        (
            "rng",
            json!({ "description": "Whether the guest has an entropy device", "type": "boolean", "examples": [true] }),
        ),
        (
            "balloon",
            json!({
                "description": "Whether the guest gives memory that it does not need back to the host",
                "type": "boolean",
                "examples": [true],
            }),
        ),
        (
            "vsock",
            pattern(
                "Socket device: uds=PATH for the host's socket and cid=NUMBER for the guest's address",
                r"^((cid=[0-9]+|uds=[^,]+)(,|$))+$",
                "uds=v.sock,cid=3",
            ),
        ),
        ("timeout", timeout()),
        ("boot_timeout", time("Longest time that the guest may take to its init", "5s")),
        ("idle_timeout", time("Longest time that the guest may have nothing to do", "10m")),
        (
            "console",
            choice("Which device the console on standard input and output is", &["serial", "virtio"]),
        ),
        (
            "serial",
            pattern("What the serial console is connected to", r"^(stdio|pty|null|(file|socket)=.+)$", "pty"),
        ),
        ("acpi", choice("Whether ACPI tables describe the machine", &["on", "off"])),
        ("on_reset", choice("What a reset by the guest does", &["exit", "reboot"])),
        ("on_halt", choice("What a halt of all vCPUs for good does", &["wait", "exit"])),
        ("host_timeout", time("Longest time that an emulated host may take to come up", "180s")),
        ("accel", choice("Where the guest may run", &["auto", "kvm", "emulate"])),
        ("outcome", text("File to write the outcome to, as JSON", "outcome.json")),
    ]
}

fn time(about: &str, example: &str) -> Value {
    let about = format!("{about}; a number is seconds");
    quantity(&about, r"^[0-9]*\.?[0-9]*(ms|s|m|min|h)?$", &[json!(example), json!(1.5)])
}

fn timeout() -> Value {
    let about = "Longest time that the guest, or a command in it, may run, or none; a number is seconds";
    quantity(about, r"^(none|[0-9]*\.?[0-9]*(ms|s|m|min|h)?)$", &[json!("20s"), json!(1.5), json!("none")])
}

fn text(about: &str, example: &str) -> Value {
    json!({ "description": about, "type": "string", "examples": [example] })
}

fn texts(about: &str, example: &str) -> Value {
    json!({ "description": about, "type": "array", "items": { "type": "string" }, "examples": [[example]] })
}

fn pattern(about: &str, pattern: &str, example: &str) -> Value {
    json!({ "description": about, "type": "string", "pattern": pattern, "examples": [example] })
}

/// Text with a unit, or a number. The pattern is for the text only.
fn quantity(about: &str, pattern: &str, examples: &[Value]) -> Value {
    json!({ "description": about, "type": ["string", "number"], "pattern": pattern, "examples": examples })
}

fn count(about: &str, most: u8) -> Value {
    json!({ "description": about, "type": "integer", "minimum": 1, "maximum": most, "examples": [1, most] })
}

fn choice(about: &str, words: &[&str]) -> Value {
    json!({ "description": about, "enum": words, "examples": words })
}

#[cfg(test)]
mod tests;

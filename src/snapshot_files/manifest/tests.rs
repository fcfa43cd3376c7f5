//! The manifest: what is written is read, and nothing else is.

use super::*;

fn manifest() -> Manifest {
    let mut config = VmConfig::new("/boot/vmlinux");
    config.memory = "size=512M,memfd".parse().unwrap();
    config.vcpus = VcpuCount::new(3).unwrap();
    config.serial = "file=/tmp/console".parse().unwrap();
    config.on_halt = HaltPolicy::Exit;
    Manifest {
        format: FORMAT,
        id: SnapshotId::from_bytes(*b"0123456789abcdef"),
        made_by: "coracle 0.1.0".to_owned(),
        created: 1_764_892_800,
        host: HostFacts {
            architecture: "x86_64".to_owned(),
            kvm: Some("kvm_amd".to_owned()),
            cpu: "a \"CPU\"".to_owned(),
        },
        machine: MachineFacts::of(&config),
        parent: None,
        devices: Vec::new(),
        state: FileFacts { bytes: 9, sha256: Hash::of(b"state") },
        memory: FileFacts { bytes: 10, sha256: Hash::of(b"memory") },
    }
}

/// Encodes a manifest of which a part is replaced before the checksum is made.
fn edited(from: &str, to: &str) -> Vec<u8> {
    let file = String::from_utf8(manifest().encode().unwrap()).unwrap();
    let content = file.split_at(file.rfind(END_START).unwrap()).0;
    assert!(content.contains(from), "{from} in {content}");
    let content = content.replace(from, to);
    [content.as_str(), &end(&content)].concat().into_bytes()
}

fn refusal(file: &[u8]) -> String {
    Manifest::decode(file).unwrap_err().to_string()
}

#[test]
fn manifest_comes_back_as_it_was_and_is_plain_json() {
    let file = manifest().encode().unwrap();
    assert_eq!(Manifest::decode(&file).unwrap(), manifest());
    let json: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(json["id"], "30313233343536373839616263646566");
    assert_eq!(json["machine"]["memory_mib"], 512);
    assert_eq!(json["machine"]["serial"], "file");
    // The checksum covers all bytes before the comma in front of it.
    let content = file.len() - END_START.len() - 64 - "\"\n}\n".len();
    assert_eq!(json["sha256"], Hash::of(&file[..content]).to_string());
}

#[test]
fn layout_is_that_of_format_1() {
    let file = String::from_utf8(manifest().encode().unwrap()).unwrap();
    let names = |line: &str| Some(line.trim().strip_prefix('"')?.split_once('"')?.0.to_owned());
    let lines: Vec<String> = file.lines().filter_map(names).collect();
    assert_eq!(
        lines,
        [
            "format",
            "id",
            "made_by",
            "created",
            "host",
            "architecture",
            "kvm",
            "cpu",
            "machine",
            "memory_mib",
            "vcpus",
            "acpi",
            "ends_when_halted",
            "virtio_console",
            "serial",
            "agent",
            "kernel",
            "cmdline",
            "state",
            "bytes",
            "sha256",
            "memory",
            "bytes",
            "sha256",
            "sha256"
        ]
    );
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error() {
    let file = manifest().encode().unwrap();
    for len in 0..file.len() {
        assert!(Manifest::decode(&file[..len]).is_err(), "{len}");
    }
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::decode(&flipped).is_err(), "bit {bit}");
    }
    let more = [&file[..], b"\n"].concat();
    assert!(Manifest::decode(&more).is_err());
}

#[test]
fn values_that_no_machine_has_are_refused_by_field() {
    for (from, to, expected) in [
        (
            "\"format\": 1",
            "\"format\": 2",
            "its format is 2, made by coracle 0.1.0, and this version reads 1 to 1;",
        ),
        ("\"format\": 1", "\"format\": 2,\n  \"later\": 1", "its format is 2,"),
        ("\"format\": 1", "\"format\": 1,\n  \"later\": 1", "it is not a manifest: unknown field `later`"),
        ("\"memory_mib\": 512", "\"memory_mib\": 1", "machine.memory_mib: 1M is not possible"),
        ("\"memory_mib\": 512", "\"memory_mib\": -1", "it is not a manifest: invalid value"),
        ("\"vcpus\": 3", "\"vcpus\": 65", "machine.vcpus: 65 vCPUs are not possible"),
        ("\"vcpus\": 3,", "", "it is not a manifest: missing field `vcpus`"),
        ("3031", "3G31", "it is not a manifest: lower-case hexadecimal digits"),
        ("3031", "303", "it is not a manifest: lower-case hexadecimal digits"),
        ("1764892800", &"[".repeat(5000), "it is not a manifest: "),
    ] {
        let found = refusal(&edited(from, to));
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn restored_machine_has_the_guest_s_part_of_the_configuration() {
    let config = manifest().machine.config().unwrap();
    let expected = VmConfig {
        vcpus: VcpuCount::new(3).unwrap(),
        memory: MemorySize::from_mib(512).unwrap().into(),
        on_halt: HaltPolicy::Exit,
        ..VmConfig::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn manifest_that_would_be_too_long_is_not_written() {
    let mut long = manifest();
    long.machine.cmdline = "x".repeat(64 << 10);
    assert!(long.encode().is_err());
}

#[test]
fn each_setting_is_a_fact_about_the_machine_or_left_out_on_purpose() {
    // Complete, so that a new setting is put into one of the two lists.
    let VmConfig {
        // Limits, connections of the host, and what the guest has used up in its boot.
        initrds: _,
        root: _,
        protocol: _,
        kaslr: _,
        modules: _,
        cpu: _,
        cpu_affinity: _,
        cpu_quota: _,
        disks: _,
        rng: _,
        balloon: _,
        vsock: _,
        timeout: _,
        boot_timeout: _,
        idle_timeout: _,
        rtc: _,
        on_reset: _,
        nets: _,
        agent: _,
        // In the manifest.
        kernel,
        vcpus,
        memory,
        console,
        serial,
        acpi,
        on_halt,
        cmdline,
    } = VmConfig::default();
    let facts = MachineFacts::of(&VmConfig::default());
    assert_eq!((facts.memory_mib, facts.vcpus), (memory.size().mib(), vcpus.value()));
    assert_eq!((facts.acpi, facts.ends_when_halted), (acpi == AcpiMode::On, on_halt == HaltPolicy::Exit));
    assert_eq!((facts.kernel, facts.cmdline), (kernel.map(|path| path.display().to_string()), cmdline));
    assert_eq!(facts.virtio_console, console == ConsoleDevice::Virtio);
    assert_eq!(facts.serial == "stdio", serial == SerialConfig::Stdio);
}

#[test]
fn parent_is_recorded_and_only_names_of_folders_are_taken() {
    let parent = |name: &str| ParentFacts {
        id: SnapshotId::from_bytes(*b"fedcba9876543210"),
        name: name.to_owned(),
        sha256: Hash::of(b"parent"),
    };
    let through = |name| {
        let manifest = Manifest { parent: Some(parent(name)), ..manifest() };
        let file = manifest.encode().unwrap();
        assert!(str::from_utf8(&file).unwrap().contains("\"parent\": {"));
        Manifest::decode(&file).map(|decoded| assert_eq!(decoded, manifest))
    };
    let [longest, too_long] = [255, 256].map(|len| "x".repeat(len));
    for name in ["first", "a b", "...", ".hidden", &longest] {
        assert_eq!(through(name), Ok(()));
    }
    for name in ["", ".", "..", "a/b", "/", "../x", "a\0", &too_long] {
        assert_eq!(through(name), Err(ManifestError::ParentName { name: name.to_owned() }));
    }
    assert!(!str::from_utf8(&manifest().encode().unwrap()).unwrap().contains("parent"));
}

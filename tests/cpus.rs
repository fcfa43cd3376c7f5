//! Tests of vCPUs: how many start, what they see of themselves, where they run, and what a pause means to
//! them.

mod common;

use std::fs;
use std::time::Duration;

use common::{coracle, file, finish, kvm_or_skip, run_payload, scratch};
use coracle::VmBuilder;
use coracle::config::{MemorySize, SerialConfig, VmConfig};
use coracle::host::KvmKind;
use coracle::outcome::Ending;

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn every_vcpu_starts_under_its_own_id() {
    needs_kvm!();
    for cpus in [1, 4, 64] {
        let run = finish(run_payload("smp").args(["--cpus", &cpus.to_string(), "--timeout", "50s"]));
        run.expect(cpus, &format!("code {cpus}"));
    }
}

#[test]
fn dumped_cpu_is_a_template_that_gives_the_same_cpu() {
    needs_kvm!();
    let dump = |args: &[&str]| {
        let run = finish(coracle().args(["cpu", "dump"]).args(args));
        run.expect(0, "");
        run.text()
    };
    let host = dump(&[]);
    let path = file("cpu.json", host.as_bytes());
    let path = path.to_str().unwrap();
    assert_eq!(dump(&["--cpu", path]), host);
    finish(run_payload("smp").args(["--cpus", "4", "--cpu", path])).expect(4, "code 4");

    let json: serde_json::Value = serde_json::from_str(&host).unwrap();
    let leaves = json["cpuid"].as_array().unwrap();
    let features = leaves.iter().find(|leaf| leaf["leaf"] == "0x1").unwrap();
    let ecx = features["ecx"].as_str().unwrap().strip_prefix("0x").unwrap();
    let ecx = u32::from_str_radix(ecx, 16).unwrap();
    assert_eq!(ecx >> 31 & ecx >> 21 & 1, 1, "hypervisor and x2APIC: {ecx:#x}");
}

#[test]
fn baseline_has_no_more_than_its_level_or_says_what_the_host_lacks() {
    needs_kvm!();
    let run = finish(coracle().args(["cpu", "dump", "--cpu", "baseline"]));
    if run.code() == 125 {
        // Software KVM may offer less than this level.
        run.expect(125, "--cpu baseline is not possible on this host: it wants bits 0x");
        return;
    }
    let json: serde_json::Value = serde_json::from_str(run.expect(0, "").text().as_str()).unwrap();
    let leaves = json["cpuid"].as_array().unwrap();
    assert!(leaves.iter().all(|leaf| leaf["leaf"] != "0xd"), "XSAVE is not of x86-64-v2");
    finish(run_payload("smp").args(["--cpus", "2", "--cpu", "baseline"])).expect(2, "code 2");
}

/// A guest with a wrong size of its extended state loses registers; Linux 6 warns about it, and Linux 7
/// panics.
#[test]
fn sizes_of_xsave_follow_its_states_or_there_is_no_xsave() {
    needs_kvm!();
    let run = finish(run_payload("xsave").args(["--timeout", "30s"]));
    let expected = if coracle::host::hides_xsave() { 50 } else { 0 };
    // Ring 3 of a software KVM has the host's XCR0, with states that need the host's permission (AMX).
    let has_more = run.code() == 51 && matches!(KvmKind::probe(), KvmKind::Software { .. });
    assert!(run.code() == expected || run.code() == 50 && !has_avx() || has_more, "{run:?}");
}

#[test]
fn avx_registers_of_ring_3_outlive_exits() {
    needs_kvm!();
    if !has_avx() {
        return common::skip("guests of this host have no AVX");
    }
    finish(run_payload("avx").args(["--timeout", "30s"])).expect(0, "code 0");
}

/// Software KVM runs ring 3 on the CPU itself, whatever its list of features says.
fn has_avx() -> bool {
    is_x86_feature_detected!("avx") && !coracle::host::hides_xsave()
}

#[test]
fn cpu_that_the_host_lacks_is_refused_with_the_bits() {
    needs_kvm!();
    // All bits of EBX in leaf 7: no CPU has every one of them (bit 22 is reserved).
    let path = file("greedy.json", br#"{ "cpuid": [{ "leaf": "0x7", "ebx": "0xffffffff" }] }"#);
    finish(run_payload("poweroff").arg("--cpu").arg(&path)).expect(125, "EBX in CPUID leaf 0x7.0");
}

#[test]
fn register_that_kvm_does_not_have_is_refused_by_number() {
    needs_kvm!();
    let path = file("msr.json", br#"{ "msrs": [{ "msr": "0x12345678", "value": "0x1" }] }"#);
    finish(run_payload("poweroff").arg("--cpu").arg(&path)).expect(125, "0x12345678");
}

#[test]
fn templates_that_cannot_be_used_are_refused() {
    let broken = file("broken.json", br#"{ "cpuid": [], "flavour": 1 }"#);
    for (path, words) in
        [(broken.to_str().unwrap(), "unknown field `flavour`"), ("/no/such.json", "/no/such.json")]
    {
        let run = finish(run_payload("poweroff").args(["--cpu", path]));
        assert_eq!(run.expect(125, words).stderr.lines().count(), 1, "{}", run.stderr);
    }
}

#[test]
fn vcpus_run_on_the_cpus_that_they_are_given() {
    needs_kvm!();
    let cpu = allowed_cpus().pop().unwrap();
    let mut command = run_payload("spin");
    command.args(["--cpus", "2", "--cpu-affinity", &format!("1={cpu}"), "--timeout", "50s"]);
    let mut child = command.spawn().unwrap();
    let mut seen = [String::new(), String::new()];
    common::eventually("both vCPUs have threads", || {
        for thread in fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let value = |key: &str| {
                status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim().to_owned()
            };
            match value("Name:").as_str() {
                "vcpu-0" => seen[0] = value("Cpus_allowed_list:"),
                "vcpu-1" => seen[1] = value("Cpus_allowed_list:"),
                _ => {}
            }
        }
        seen[1] == cpu
    });
    common::signal(&child, libc::SIGKILL);
    let _ = common::wait(&mut child);
    assert!(seen[0] != cpu || allowed_cpus().len() == 1, "{seen:?}");
}

#[test]
fn cpus_that_are_not_there_are_refused() {
    let refusal = |affinity: &str, words: &str| {
        let mut command = run_payload("poweroff");
        finish(command.args(["--cpus", "2", "--cpu-affinity", affinity])).expect(125, words);
    };
    refusal("0-1023", "--cpu-affinity");
    refusal("1023", "this host has no CPU 1023");
    refusal("2=0", "there is no vCPU 2");
    refusal("0=0,0=0", "two CPUs for vCPU 0");
    refusal("all", "names no CPUs");
}

#[test]
fn clocks_run_on_in_a_pause_and_kvm_clock_tells_of_it() {
    needs_kvm!();
    let path = scratch().join("clock.log");
    let mut config = VmConfig::new(common::payload("clock"));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config.serial = SerialConfig::File(path.clone().into());
    let vm = VmBuilder::new(config).start().unwrap();
    common::eventually("the guest watches its clock", || {
        fs::metadata(&path).is_ok_and(|file| file.len() == 1)
    });
    assert!(vm.handle().pause());
    // 2^29 ticks of any TSC above 0.6 GHz.
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(vm.handle().wait_for(Duration::ZERO), None);
    vm.handle().resume();
    let outcome = vm.handle().wait_for(Duration::from_secs(30)).expect("kvm-clock did not tell of the pause");
    assert_eq!(outcome.ending, Ending::Exited { code: 0 });
}

fn allowed_cpus() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
    list.split(['-', ',']).map(str::to_owned).collect()
}

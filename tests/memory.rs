//! Tests of what backs a guest's RAM, and of the errors if it is not available.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{finish, kvm_or_skip, run_payload, scratch};

#[test]
fn guest_runs_in_a_memory_file_on_both_sides_of_the_hole() {
    if !kvm_or_skip() {
        return;
    }
    finish(run_payload("ram-end").args(["--memory", "size=128M,memfd"])).expect(0, "code 0");
    finish(run_payload("ram-hole").args(["--memory", "size=3584M,memfd"])).expect(0, "code 0");
}

#[test]
fn guest_runs_in_huge_pages_or_is_told_how_to_have_them() {
    if !kvm_or_skip() {
        return;
    }
    let run = finish(run_payload("ram-end").args(["--memory", "size=128M,hugepages=2M"]));
    if free_huge_pages() >= 64 {
        run.expect(0, "code 0");
    } else {
        run.expect(125, "it takes 64 huge pages of 2M");
        run.expect(125, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    }
}

#[test]
fn more_than_the_limit_of_the_process_is_refused() {
    if !kvm_or_skip() {
        return;
    }
    finish(&mut with_more_than_its_limit()).expect(125, "--memory 1T: the host cannot map it");
}

/// Initrds that fit into no memory are refused before that memory is created, which takes seconds if it is
/// large.
#[test]
fn initrd_that_does_not_fit_is_refused_before_the_memory_exists() {
    if !kvm_or_skip() {
        return;
    }
    let initrd = scratch().join("sparse.cpio");
    fs::File::create(&initrd).unwrap().set_len(5 << 30).unwrap();
    let run = finish(with_more_than_its_limit().arg("--initrd").arg(&initrd));
    fs::remove_file(&initrd).unwrap();
    run.expect(125, "-i: 5368709120 bytes are too many: this kernel has room for");
}

/// Creates a run with 1 TiB of RAM, of which the process may map 64 GiB.
fn with_more_than_its_limit() -> Command {
    let mut command = run_payload("poweroff");
    command.args(["--memory", "1T"]);
    let limit = || {
        let limit = libc::rlimit { rlim_cur: 64 << 30, rlim_max: 64 << 30 };
        // SAFETY: the structure is valid; only the new process is limited.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
        Ok(())
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(limit) };
    command
}

fn free_huge_pages() -> u64 {
    let count = |name: &str| -> u64 {
        let text = fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
        text.map_or(0, |text| text.trim().parse().unwrap())
    };
    count("free_hugepages").saturating_sub(count("resv_hugepages"))
}

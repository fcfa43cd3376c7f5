//! Tests of what programs find in a guest whose first process is the agent: devices, mounts, names.

use std::fs;

use super::common::{self, coracle, finish, scratch};
use super::root::{add_program, folder};
use super::virtio::host;
use super::{data, no_linux};
use coracle::guest_data::GuestData;

/// A line for each thing that runc gives a container (OCI runtime specification, config-linux.md "Default
/// Filesystems" and "Default Devices", runtime-linux.md "Dev symbolic links"), and for other things that
/// people expect.
const SCRIPT: &str = r#"
for link in fd stdin stdout stderr; do echo "$link $(readlink /dev/$link)"; done
[ ! -e /proc/kcore ] || [ "$(readlink /dev/core)" = /proc/kcore ] || echo "no core"
for device in null zero full random urandom tty ptmx; do echo "$device $(stat -c '%F %t:%T %a' /dev/$device)"; done
for place in /proc /sys /dev /dev/pts /dev/shm /dev/mqueue /sys/fs/cgroup; do
  echo "$place $(grep " $place " /proc/mounts | cut -d' ' -f3,4 | cut -d, -f1-4)"
done
for folder in /dev/shm /dev/mqueue /tmp; do echo "$folder $(stat -c %a $folder)"; done
echo "name $(hostname)"
echo "up $(cat /sys/class/net/lo/flags)"
echo through > /dev/stdout
test -e /sys/fs/cgroup/cgroup.procs && echo "groups"
"#;

const FOUND: &str = "fd /proc/self/fd
stdin /proc/self/fd/0
stdout /proc/self/fd/1
stderr /proc/self/fd/2
null character special file 1:3 666
zero character special file 1:5 666
full character special file 1:7 666
random character special file 1:8 666
urandom character special file 1:9 666
tty character special file 5:0 666
ptmx character special file 5:2 666
/proc proc rw,nosuid,nodev,noexec
/sys sysfs rw,nosuid,nodev,noexec
/dev devtmpfs rw,nosuid,relatime,SIZE
/dev/pts devpts rw,nosuid,noexec,relatime
/dev/shm tmpfs rw,nosuid,nodev,relatime
/dev/mqueue mqueue rw,nosuid,nodev,noexec
/sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec
/dev/shm 1777
/dev/mqueue 1777
/tmp 1777
name coracle
up 0x9
through
groups
";

/// Returns the script's output, without sizes that depend on the machine: as many lines as [`FOUND`] has, and
/// the rest.
fn split(text: &str) -> (String, String) {
    let is_size = |word: &&str| word.starts_with("size=");
    let hide = |line: &str| {
        let size = line.split(',').find(is_size).unwrap_or("size=");
        line.replace(size, "SIZE") + "\n"
    };
    let lines: Vec<String> = text.lines().map(hide).collect();
    let (found, rest) = lines.split_at(FOUND.lines().count().min(lines.len()));
    (found.concat(), rest.concat())
}

#[test]
fn default_guest_has_what_a_container_has_and_a_user_can_open_his_streams() {
    needs_linux!();
    let own = "cat /etc/passwd /etc/group; id -u; echo err > /dev/stderr; cat /dev/stdin";
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--user", "1000", "--", "sh", "-c", &format!("{SCRIPT}{own}")]);
    let run = common::finish_with_input(&mut command, b"typed\n");
    run.expect(0, "err");
    let (found, rest) = split(&run.text());
    assert_eq!(found, FOUND);
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    assert_eq!(rest, format!("{users}root:x:0:\ntty:x:5:\nnogroup:x:65534:\n1000\ntyped\n"));
}

#[test]
fn bare_root_is_given_the_same_and_keeps_what_it_has() {
    needs_linux!();
    let Some(tree) = folder("bare") else { return };
    for program in ["/bin/bash", "/usr/bin/getent"] {
        add_program(&tree, program);
    }
    // The same as `docker export` leaves it.
    fs::write(tree.join("etc/hosts"), "").unwrap();
    fs::write(tree.join("etc/hostname"), "from-file\n").unwrap();
    fs::write(tree.join("etc/group"), "wheel:x:10:\n").unwrap();
    fs::create_dir_all(tree.join("run/service")).unwrap();
    let log = scratch().join("bare.log");
    let own = "ls /run; whoami; cat /etc/group; getent hosts localhost; getent hosts from-file; \
               getent passwd root; cat <(echo substituted)";
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(GuestData::GuestVmlinuz));
    command.arg("--serial").arg(format!("file={}", log.display()));
    command.arg("--root").arg(format!("path={},as=initramfs", tree.display()));
    let install = "/bin/busybox --install -s /bin 2>/dev/null;";
    let run = finish(command.args(["--", "/bin/bash", "-c", &format!("{install}{SCRIPT}{own}")]));
    run.expect(0, "");
    let (found, rest) = split(&run.text());
    assert_eq!(found, FOUND.replace("name coracle", "name from-file"));
    // The directory of `coracle-agent branch-here` is one of those.
    let expected = "coracle\nservice\nroot\nwheel:x:10:\n::1             localhost ip6-localhost ip6-loopback\n\
                    127.0.1.1       from-file\nroot:x:0:0:root:/root:/bin/sh\nsubstituted\n";
    assert_eq!(rest, expected);
    // The kernel refused nothing that was tried.
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("coracle-agent"), "{log}");
}

#[test]
fn root_that_is_kept_is_given_no_files() {
    needs_linux!();
    let Some(tree) = folder("kept") else { return };
    let image = scratch().join("kept.ext4");
    let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
    host("mkfs.ext4", &["-q", "-E", "root_owner=0:0", "-d", from, to, "24M"]);
    let run = |access: &str| {
        let mut command = coracle();
        command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(GuestData::GuestVmlinuz));
        command.arg("--root").arg(format!("path={to}{access}"));
        let script = "/bin/busybox ls /etc; /bin/busybox readlink /dev/fd; /bin/busybox hostname";
        let run = finish(command.args(["--", "/bin/busybox", "sh", "-c", script]));
        run.expect(0, "");
        run.text()
    };
    assert_eq!(run(",rw"), "note\nother\n/proc/self/fd\ncoracle\n");
    assert_eq!(run(",cow-size=64M"), "group\nhosts\nmtab\nnote\nother\npasswd\n/proc/self/fd\ncoracle\n");
    let kept = host("debugfs", &["-R", "ls -p /etc", to]);
    assert!(kept.contains("/note/") && !kept.contains("passwd"), "{kept}");
}

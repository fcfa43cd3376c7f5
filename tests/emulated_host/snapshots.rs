//! Tests of a snapshot that one emulated host writes to a shared directory and another one reads. Such a
//! directory has no holes, locks or exchange of names, and the time-stamp counter of the second host begins
//! near 0.

use std::ffi::OsStr;
use std::time::Instant;

use coracle::guest_data::{self, GuestData};
use coracle::snapshot;

use super::{Run, Scratch, common, coracle, emulate_with_options, has_qemu, shown};

#[test]
fn guest_goes_on_from_a_shared_directory_on_another_host() {
    needs_qemu!();
    let kernel = guest_data::find(GuestData::TunedVmlinux);
    let kernel = kernel.or_else(|_| guest_data::find(GuestData::GuestVmlinux));
    let (kernel, initrd) = match (kernel, guest_data::find(GuestData::GuestInitramfs)) {
        (Ok(kernel), Ok(initrd)) => (kernel, initrd),
        (Err(error), _) | (_, Err(error)) => return common::skip(&error.to_string()),
    };
    let scratch = Scratch::new("snapshot");
    let folder = scratch.0.join("ready");
    let run = |script: &str| {
        let script = script.replace("CORACLE", coracle().to_str().unwrap());
        let script = script.replace("FOLDER", folder.to_str().unwrap());
        // One CPU, as for all tests with Linux guests.
        let mut options = ["--cpus", "1"].map(OsStr::new).to_vec();
        for path in [&scratch.0, &kernel, &initrd] {
            options.extend([OsStr::new("--share"), path.as_os_str()]);
        }
        Run::start(emulate_with_options(options, ["sh", "-c", &script].map(OsStr::new))).finish()
    };
    let writes = WRITES.replace("KERNEL", kernel.to_str().unwrap());
    let begun = Instant::now();
    let written = run(&writes.replace("INITRD", initrd.to_str().unwrap()).replace("GUEST", GUEST));
    assert_eq!(written.status.code(), Some(0), "{}", shown(&written));
    snapshot::check(&folder).unwrap();
    let restored = run(RESTORES);
    assert_eq!(restored.status.code(), Some(0), "{}", shown(&restored));
    let first = numbers(&written.stdout, "first ");
    let second = numbers(&restored.stdout, "second ");
    let (passed, limit) = (second[0] - first[0], begun.elapsed().as_secs_f64());
    assert!((0.0..limit).contains(&passed), "{first:?}, {second:?}, {limit}");
    let text = String::from_utf8_lossy(&restored.stdout);
    assert!(text.contains("complaints: none"), "{text}");
    assert!(text.contains("slept\r\n"), "{text}");
}

/// Returns the numbers of the line that begins with this word.
#[track_caller]
fn numbers(output: &[u8], word: &str) -> Vec<f64> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find_map(|line| line.trim().strip_prefix(word));
    line.unwrap_or_else(|| panic!("{text}")).split(' ').map(|number| number.parse().unwrap()).collect()
}

/// The shell prints its uptime, waits, and prints it again.
const GUEST: &str = "stty -echo; echo fir''st $(cut -d' ' -f1 /proc/uptime); read line; \
    echo sec''ond $(cut -d' ' -f1 /proc/uptime); sleep 1; echo sl''ept; \
    echo compl''aints: $(dmesg | grep -iE 'lockup|unstable|stall|BUG:|WARNING:' || echo none); poweroff";

/// Writes a snapshot of the guest while it waits.
const WRITES: &str = r#"
comes() {
    n=0
    until eval "$1"; do
        n=$((n+1))
        if [ $n = 500 ] || ! kill -0 $run; then
            echo "it did not come to this: $1" >&2
            cat /tmp/out >&2
            kill -KILL $run
            exit 1
        fi
        sleep 0.1
    done
}
mkfifo /tmp/in
CORACLE run --accel kvm --timeout 200s KERNEL -i INITRD -a 'quiet coracle.init=shell' \
    --snapshot-on-signal FOLDER < /tmp/in > /tmp/out &
run=$!
exec 3> /tmp/in
comes "grep -q '# ' /tmp/out"
cat >&3 <<'end'
GUEST
end
comes "grep -q 'first ' /tmp/out"
kill -USR1 $run
comes '[ -e FOLDER/manifest.json ]'
kill -KILL $run
cat /tmp/out"#;

/// Lets it go on.
const RESTORES: &str = "echo | CORACLE restore FOLDER --timeout 200s";

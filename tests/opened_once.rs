//! Kernel and initrds are opened once: what was checked is what is loaded.

mod common;

use std::fs;
use std::io::Read;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use coracle::config::{MemorySize, VmConfig};
use coracle::outcome::Ending;
use coracle::{BuildError, VmBuilder};

/// Puts a file that is not a kernel in the place of `path`.
fn replace(path: &Path) {
    let other = common::file("other", b"not a kernel\n");
    fs::rename(other, path).unwrap();
}

#[test]
fn file_that_takes_the_name_of_one_that_is_open_is_not_loaded() {
    if !common::kvm_or_skip() {
        return;
    }
    let kernel = common::payload("exit-7");
    let mut config = VmConfig::new(&kernel);
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config.initrds = vec![common::file("first", b"first")];
    let opened = VmBuilder::new(config.clone()).open_files().unwrap();
    assert_eq!(opened.kernel_image().unwrap().path(), kernel);
    replace(&kernel);
    fs::remove_file(&config.initrds[0]).unwrap();

    assert!(matches!(VmBuilder::new(config).build(), Err(BuildError::Kernel(_))));
    opened.check_files().unwrap();
    // Again and again, and beside a file that is named only now.
    assert_eq!(opened.run().unwrap().ending, Ending::Exited { code: 7 });
    let more = opened.initrd(common::file("second", b"second"));
    assert_eq!(more.run().unwrap().ending, Ending::Exited { code: 7 });
    assert!(matches!(more.clone().initrd("/no/such/initrd").build(), Err(BuildError::Initrd(_))));
    // Another kernel is another file, also where the first is still open.
    assert!(matches!(more.kernel("/no/such/kernel").build(), Err(BuildError::Kernel(_))));
}

#[test]
fn command_opens_kernel_and_initrd_once() {
    if !common::kvm_or_skip() {
        return;
    }
    let kernel = common::payload("exit-7");
    let initrd = common::file("initrd", b"initrd");
    for (command, code) in [("run", 7), ("test", 120)] {
        let opened = [&kernel, &initrd].map(|path| Opened::watch(path));
        let mut coracle = common::coracle();
        coracle.args([command, "--memory", "16M", "-i"]).arg(&initrd).arg(&kernel);
        common::finish(&mut coracle).expect(code, "");
        assert_eq!(opened.map(Opened::count), [1, 1], "{command}");
    }
}

/// Counts how often a file is opened (inotify(7)).
struct Opened(fs::File);

impl Opened {
    fn watch(path: &Path) -> Opened {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the call takes no pointers.
        let events = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(events >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let events = unsafe { fs::File::from_raw_fd(events) };
        // SAFETY: the path is a string that ends in NUL and lives through the call.
        let watch = unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), EVENTS) };
        assert!(watch >= 0);
        Opened(events)
    }

    fn count(mut self) -> usize {
        let mut events = vec![0; 64 << 10];
        let len = self.0.read(&mut events).unwrap_or(0);
        // A watch of a file gives no names: all events have one length.
        let events = events[..len].chunks_exact(size_of::<libc::inotify_event>());
        let mask = |event: &[u8]| {
            let at = offset_of!(libc::inotify_event, mask);
            u32::from_ne_bytes(event[at..at + 4].try_into().unwrap())
        };
        events.filter(|event| mask(event) & libc::IN_OPEN != 0).count()
    }
}

/// inotify merges equal events in a row; a read or close always separates two opens.
const EVENTS: u32 = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE;

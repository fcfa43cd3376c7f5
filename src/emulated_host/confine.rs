//! Keeps QEMU, and any code that takes it over, from changing the caller's files. Landlock (Linux 5.13 and
//! newer) protects contents and names. A seccomp filter protects what Landlock leaves out: modes, owners,
//! times and attributes. `machine` makes it before the fork and applies it between fork and exec. Reading is
//! not confined.
//!
//! Sources: Linux, Documentation/userspace-api/landlock.rst and seccomp_filter.rst.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The files that a process may still change.
#[derive(Debug)]
pub(super) struct Confinement {
    rules: OwnedFd,
    filter: Vec<libc::sock_filter>,
}

impl Confinement {
    /// Allows changes only to these files, and to everything in these directories. Returns `None` if the
    /// kernel has no Landlock.
    ///
    /// # Errors
    /// A path cannot be opened, or the kernel refuses a rule.
    pub(super) fn to(writable: &[PathBuf]) -> io::Result<Option<Confinement>> {
        let Ok(version @ 1..) = landlock(libc::SYS_landlock_create_ruleset, [0, 0, VERSION]) else {
            return Ok(None);
        };
        let handled = ALL | if version >= 2 { REFER } else { 0 } | if version >= 3 { TRUNCATE } else { 0 };
        let attributes = RulesetAttributes { handled_access_fs: handled };
        let size = size_of::<RulesetAttributes>() as libc::c_long;
        let rules = landlock(libc::SYS_landlock_create_ruleset, [address(&attributes), size, 0])?;
        let rules = libc::c_int::try_from(rules).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new, and nothing else owns it.
        let rules = unsafe { OwnedFd::from_raw_fd(rules) };
        for path in writable {
            let place = open_path(path)?;
            let of_a_file = WRITE_FILE | TRUNCATE;
            let access = if path.is_dir() { handled } else { handled & of_a_file };
            let rule = PathBeneath { allowed_access: access, parent_fd: place.as_raw_fd() };
            let rules = libc::c_long::from(rules.as_raw_fd());
            landlock(libc::SYS_landlock_add_rule, [rules, RULE_PATH_BENEATH, address(&rule)])?;
        }
        let makes_files = writable.iter().any(|path| path.is_dir());
        Ok(Some(Confinement { rules, filter: filter(makes_files) }))
    }

    /// Confines the calling process for good. Makes only system calls: it is for the time between fork and
    /// exec.
    pub(super) fn apply(&self) -> io::Result<()> {
        // SAFETY: forbids this process to gain privilege; no memory is involved.
        checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        landlock(libc::SYS_landlock_restrict_self, [libc::c_long::from(self.rules.as_raw_fd()), 0, 0])?;
        let program = libc::sock_fprog {
            len: u16::try_from(self.filter.len()).unwrap_or(u16::MAX),
            filter: self.filter.as_ptr().cast_mut(),
        };
        // SAFETY: reads the program, whose instructions live as long as `self`.
        checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: reads a string that ends with a zero.
    let fd = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    checked(fd)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn landlock(call: libc::c_long, [first, second, third]: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    // SAFETY: the calls read the structures that they are given, which outlive them. The last is for add_rule
    // alone.
    let result = unsafe { libc::syscall(call, first, second, third, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn address<T>(value: &T) -> libc::c_long {
    std::ptr::from_ref(value).addr().cast_signed() as libc::c_long
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Builds the filter. A call of another instruction set is refused, one that changes attributes fails, one
/// that sets times has no effect, and a file opened for reading is not truncated. All other calls are
/// allowed. QEMU's share sets the mode of each new file a second time, so a change of mode must not fail
/// there; it has no effect either.
fn filter(makes_files: bool) -> Vec<libc::sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        // Skips one instruction if it is x86-64.
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JGE, X32_BIT, 0, 1),
        answer(refusal(libc::EPERM)),
    ];
    for call in REFUSED {
        program.extend([jump(libc::BPF_JEQ, number(call), 0, 1), answer(refusal(libc::EPERM))]);
    }
    for call in MODES {
        let result = refusal(if makes_files { 0 } else { libc::EPERM });
        program.extend([jump(libc::BPF_JEQ, number(call), 0, 1), answer(result)]);
    }
    for call in WITHOUT_EFFECT {
        program.extend([jump(libc::BPF_JEQ, number(call), 0, 1), answer(refusal(0))]);
    }
    // The old Landlock of Linux 5.13 to 6.1 does not see that an open for reading truncates a file.
    for (call, flags) in [(libc::SYS_open, ARGUMENT_1), (libc::SYS_openat, ARGUMENT_2)] {
        program.extend([
            jump(libc::BPF_JEQ, number(call), 0, 5),
            load(flags),
            jump(libc::BPF_JSET, libc::O_ACCMODE.cast_unsigned(), 2, 0),
            jump(libc::BPF_JSET, libc::O_TRUNC.cast_unsigned(), 0, 1),
            answer(refusal(libc::EACCES)),
            answer(libc::SECCOMP_RET_ALLOW),
        ]);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump(condition: u32, value: u32, then: u8, or_else: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, value, then, or_else)
}

fn answer(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// The result of a call that is not made: this error, or success for 0.
fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// Calls that change modes.
const MODES: [libc::c_long; 4] = [libc::SYS_chmod, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchmodat2];

/// Calls that change owners and attributes, or that would bypass the other rules.
const REFUSED: [libc::c_long; 18] = [
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // setxattrat, removexattrat and file_setattr of Linux 6.13 and 6.17.
    463,
    466,
    469,
    libc::SYS_truncate,
    libc::SYS_creat,
    libc::SYS_openat2,
    libc::SYS_io_uring_setup,
    libc::SYS_ptrace,
];

/// Calls that set times. They come with other changes, which must not fail because of them.
const WITHOUT_EFFECT: [libc::c_long; 4] =
    [libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_utimensat];

/// Offsets in `struct seccomp_data`. Those of arguments are the offsets of the lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_1: u32 = 24;
const ARGUMENT_2: u32 = 32;
/// `linux/audit.h`: EM_X86_64, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// The flag in the numbers of calls with 32-bit pointers.
const X32_BIT: u32 = 0x4000_0000;

#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

const VERSION: libc::c_long = 1;
const RULE_PATH_BENEATH: libc::c_long = 1;
const WRITE_FILE: u64 = 1 << 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
/// Rights to write, remove and make files of each kind (bits 4 to 12), which every version knows.
const ALL: u64 = WRITE_FILE | 0x1ff0;

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// Runs shell commands in `folder`, confined to `writable` in it; returns whether they succeeded.
    fn confined(folder: &Path, writable: &[&str], script: &str) -> Option<bool> {
        let writable: Vec<PathBuf> = writable.iter().map(|name| folder.join(name)).collect();
        let confinement = Confinement::to(&writable).unwrap()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(folder).stderr(std::process::Stdio::null());
        // SAFETY: the closure makes only system calls on data that was made before the fork.
        unsafe { shell.pre_exec(move || confinement.apply()) };
        Some(shell.status().unwrap().success())
    }

    #[test]
    fn only_what_is_named_can_be_changed() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path();
        for name in ["open", "closed"] {
            std::fs::write(path.join(name), "old").unwrap();
        }
        std::fs::create_dir(path.join("folder")).unwrap();
        let try_it = |script| confined(path, &["open", "folder"], script);
        let Some(written) = try_it("echo new > open && cat open closed > folder/x && rm folder/x") else {
            let _ = io::Write::write_all(&mut io::stderr(), b"skipped: this kernel has no Landlock\n");
            return;
        };
        assert!(written, "what is named can be written");
        for script in [
            "echo new > closed",
            "echo new >> closed",
            ": > other",
            "rm closed",
            "mv closed folder/closed",
            "ln closed folder/closed",
            "ln -s closed other",
            "mkdir other",
            "chown 1 closed",
            "rm open",
            "truncate -s 0 closed",
        ] {
            assert_eq!(try_it(script), Some(false), "{script}");
        }
        for (writable, fails) in [(&["open"][..], true), (&["open", "folder"], false)] {
            assert_eq!(confined(path, writable, "chmod 777 closed open"), Some(!fails));
        }
        for name in ["open", "closed"] {
            let mode = std::fs::metadata(path.join(name)).unwrap().permissions();
            assert_ne!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o777, "{name}");
        }
        assert_eq!(try_it("touch -d @0 closed"), Some(true), "times are left alone without an error");
        let times = std::fs::metadata(path.join("closed")).unwrap().modified().unwrap();
        assert!(times.elapsed().unwrap().as_secs() < 1 << 20, "{times:?}");
        assert_eq!(std::fs::read_to_string(path.join("closed")).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(path.join("open")).unwrap(), "new\n");
    }

    #[test]
    fn path_that_is_not_there_is_an_error() {
        assert!(
            Confinement::to(&["/no/such/file".into()]).is_err() || Confinement::to(&[]).unwrap().is_none()
        );
    }
}

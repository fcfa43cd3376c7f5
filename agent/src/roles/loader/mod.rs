//! The module loader loads the modules that a machine's devices need, and then hands PID 1 to the user's
//! system. That is the `/init` of the user's initramfs, which it leaves as it found it, or else the system on
//! the device that `root=` names, or in the initramfs itself if that was made from a root.
//!
//! All of its files are under `/coracle`. `image/src/initramfs/loader/mod.rs` makes them.

mod agent;
mod device;
mod options;
mod overlay;
mod root;
mod superblock;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use self::agent::Wanted;
use self::options::Options;
use self::root::RootError;
use crate::furnish::{DEVICES, KERNEL_MOUNTS};
use crate::mounts::Mount;
use crate::report::report_end;
use crate::{console, modules};

/// The path of this program in the archive.
const PROGRAM: &str = "/coracle/init";
/// The first program of the user's initramfs.
const USER_INIT: &str = "/init";

/// Programs that the kernel tries as the first of a root, in this order.
const INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// A file that marks the initramfs as the root, with this program's files added to it
/// (`image/src/initramfs/loader/mod.rs` of the VMM).
const ROOT_IS_HERE: &str = "/coracle/root-is-here";
/// The directory of everything that was added.
const OWN_FILES: &str = "/coracle";

/// Returns whether the kernel was told to start the loader (`rdinit=/coracle/init`) instead of another
/// `/init`.
pub(crate) fn is_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| name == PROGRAM)
}

/// Returns whether the initramfs holds the loader alone.
pub(crate) fn is_all_there_is() -> bool {
    Path::new(modules::OF_DEVICES).exists()
}

/// Loads the modules and becomes the user's first program. Returns only if that is impossible. The end of PID
/// 1 then panics the kernel, after the reason was printed on the console.
pub(crate) fn run() -> ExitCode {
    modules::load_all(modules::OF_DEVICES);
    // The console may be one of these devices. If none exists yet, the user's system finds its own.
    let _ = console::attach();
    let line = agent::command_line();
    match Wanted::from_command_line(&line) {
        Wanted::No => {}
        Wanted::BesideInit(transport) => agent::start_beside(&transport),
        Wanted::FirstProcess(transport) => return agent::run_first(&transport, &line),
    }
    let result = if fs::metadata(ROOT_IS_HERE).is_ok() {
        start_here(&Options::from_command_line(&line))
    } else if is_asked_for() && fs::metadata(USER_INIT).is_ok() {
        start(&[USER_INIT])
    } else {
        KERNEL_MOUNTS.iter().for_each(Mount::make_or_report);
        start_root(&Options::from_command_line(&line))
    };
    let Err(error) = result;
    report_end(&error.to_string());
    ExitCode::FAILURE
}

/// Starts the system of a root that is the initramfs itself. It finds the same as after a kernel's mount of a
/// root: its own files, and devices.
fn start_here(options: &Options) -> Result<Infallible, RootError> {
    DEVICES.make_or_report();
    remove_own_files();
    start_system(options)
}

/// Removes the loader's files, but not mounts below them: an agent beside the init looks at processes there.
/// Files that stay cost memory and nothing else.
fn remove_own_files() {
    for path in fs::read_dir(OWN_FILES).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let _ = match path {
            _ if !path.is_dir() => fs::remove_file(&path),
            _ if path.ends_with("proc") => fs::remove_dir(&path),
            _ => fs::remove_dir_all(&path),
        };
    }
    let _ = fs::remove_dir(OWN_FILES);
}

fn start_root(options: &Options) -> Result<Infallible, RootError> {
    root::switch(options)?;
    start_system(options)
}

fn start_system(options: &Options) -> Result<Infallible, RootError> {
    match &options.init {
        Some(init) => start(&[init]),
        None => start(&INITS),
    }
}

/// Becomes the first of `programs` that can be started, with the arguments and variables that the kernel
/// passed.
fn start<P: AsRef<OsStr>>(programs: &[P]) -> Result<Infallible, RootError> {
    let mut failed = RootError::NoInit;
    for program in programs {
        let source = Command::new(program).args(std::env::args_os().skip(1)).exec();
        let is_missing = source.kind() == std::io::ErrorKind::NotFound;
        if !is_missing || programs.len() == 1 {
            failed = RootError::Init { path: program.as_ref().into(), source };
        }
    }
    Err(failed)
}

//! Starts a process. Everything that needs memory is prepared before the fork. The new process makes system
//! calls only, and reports which one failed.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read, pipe};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::fchown;
use std::path::Path;
use std::sync::OnceLock;

use coracle_agent::protocol::agent::{ExecRequest, Failure, ResourceLimit, Step};

use super::cgroup::Cgroup;
use super::users::{self, Identity};

/// A process to be started.
#[derive(Debug)]
pub(super) struct Plan {
    program: OsString,
    /// Paths of the program to try, in this order.
    paths: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    directory: CString,
    identity: Option<Identity>,
    resources: Vec<ResourceLimit>,
    /// Whether the process must be in the control group, which enforces its limits.
    needs_group: bool,
}

/// The new process's streams, by number, and whether they are a terminal.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) inner: [OwnedFd; 3],
    pub(super) is_terminal: bool,
}

impl Plan {
    /// Resolves a request against this system.
    ///
    /// # Errors
    /// There is no such user, or a string has a zero byte.
    pub(super) fn of(request: &ExecRequest) -> Result<Self, Failure> {
        let identity = match &request.user {
            None => None,
            Some(user) => {
                let missing = io::Error::from_raw_os_error(libc::ENOENT);
                Some(users::find(user).ok_or_else(|| Failure::new(Step::User, user, &missing))?)
            }
        };
        let program = request.argv.first().cloned().unwrap_or_default();
        let env = environment(request, identity.as_ref());
        let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        let no_string = |error| Failure::new(Step::Execute, &program, &io::Error::from(error));
        let strings = |list: Vec<OsString>| {
            list.into_iter().map(|text| CString::new(text.into_vec())).collect::<Result<Vec<_>, _>>()
        };
        let pairs = env.into_iter().map(|(name, value)| [name, value].join(OsStr::new("=")));
        let directory = request.cwd.clone().unwrap_or_else(|| "/".into());
        Ok(Self {
            paths: strings(candidates(&program, path.as_deref())).map_err(no_string)?,
            argv: strings(request.argv.clone()).map_err(no_string)?,
            env: strings(pairs.collect()).map_err(no_string)?,
            directory: CString::new(directory.into_os_string().into_vec()).map_err(no_string)?,
            identity,
            program,
            resources: request.limits.resources.clone(),
            needs_group: request.limits.need_controllers(),
        })
    }

    /// Starts the process, as the leader of a session and in a control group of its own.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn spawn(self, streams: Streams, group: Option<&Cgroup>) -> Result<libc::pid_t, Failure> {
        let streams_failed = |error: &io::Error| Failure::new(Step::Streams, &self.program, error);
        if let Some(identity) = &self.identity {
            streams.give_to(identity.uid);
        }
        let (report, reporter) = pipe().map_err(|error| streams_failed(&error))?;
        let pointers = |list: &[CString]| {
            list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        let (limit, ignored) = (initial_descriptor_limit(), IGNORED.get_or_init(ignored_signals));
        let process = fork_into(group, self.needs_group).map_err(|error| streams_failed(&error))?;
        if process == 0 {
            let child = Child { plan: &self, streams: &streams, argv: &argv, env: &env, limit, ignored };
            let (step, errno) = child.exec();
            report_failure(reporter.as_raw_fd(), step, errno);
        }
        drop((streams, reporter));
        match read_report(report) {
            None => Ok(process),
            Some((step, errno)) => {
                // The process ends by itself at once. Nothing that reaps children knows it.
                // SAFETY: waits for this child; its status is not asked for.
                unsafe { libc::waitpid(process, std::ptr::null_mut(), 0) };
                let subject = match step {
                    Step::Directory => OsString::from_vec(self.directory.into_bytes()),
                    _ => self.program,
                };
                Err(Failure { step, subject, errno })
            }
        }
    }
}

impl Streams {
    /// Makes a user the owner, so that the user can also open them by name, such as `/dev/stdout`, as with
    /// runc. An input that is neither a pipe nor a terminal of this command is `/dev/null`, which belongs to
    /// everybody.
    fn give_to(&self, uid: u32) {
        for stream in &self.inner {
            let is_pipe = fstat(stream).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFIFO);
            if is_pipe || self.is_terminal {
                // A stream that stays root's can still be used as it is.
                let _ = fchown(stream, Some(uid), None);
            }
        }
    }
}

fn fstat(fd: &OwnedFd) -> io::Result<libc::stat> {
    // SAFETY: an all-zero structure is valid: it is plain data.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure it is given.
    let result = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut found) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
}

/// Returns the system's limit of descriptors for a process.
pub(super) fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the structure it is given.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(limit) }
}

/// Returns the limit for commands, because the agent has raised its own.
fn initial_descriptor_limit() -> Option<libc::rlimit> {
    let limit = descriptor_limit().ok()?;
    Some(libc::rlimit { rlim_cur: limit.rlim_max.min(DEFAULT_DESCRIPTORS), ..limit })
}

/// The set-up of the new process between fork and exec.
struct Child<'a> {
    plan: &'a Plan,
    streams: &'a Streams,
    argv: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    limit: Option<libc::rlimit>,
    ignored: &'a [libc::c_int],
}

impl Child<'_> {
    /// Executes the program. Returns only on failure, with the step and `errno`.
    fn exec(&self) -> (Step, i32) {
        match self.prepare() {
            Ok(()) => (Step::Execute, self.execute()),
            Err(step) => (step, errno()),
        }
    }

    fn prepare(&self) -> Result<(), Step> {
        // SAFETY: makes the calling process a session leader; no memory is involved.
        checked(unsafe { libc::setsid() }, Step::Streams)?;
        for (number, stream) in (0..).zip(&self.streams.inner) {
            // SAFETY: replaces a standard stream of this process by an open descriptor; those are above the
            // three.
            checked(unsafe { libc::dup2(stream.as_raw_fd(), number) }, Step::Streams)?;
        }
        if self.streams.is_terminal {
            // SAFETY: makes the terminal on stdin the session's; the argument is a number.
            checked(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }, Step::Streams)?;
        }
        if let Some(limit) = self.limit {
            // SAFETY: reads the structure it is given. A limit that the system refuses is left as it is.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        }
        for ResourceLimit { resource, value } in &self.plan.resources {
            let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            // SAFETY: reads the structure it is given.
            checked(unsafe { libc::setrlimit((*resource).into(), &raw const limit) }, Step::Limits)?;
        }
        reset_signals(self.ignored);
        if let Some(Identity { uid, gid, groups, .. }) = &self.plan.identity {
            // SAFETY: pointer and length are those of a list that lives through the call.
            checked(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }, Step::Identity)?;
            // SAFETY: the call takes a number only.
            checked(unsafe { libc::setgid(*gid) }, Step::Identity)?;
            // SAFETY: the call takes a number only.
            checked(unsafe { libc::setuid(*uid) }, Step::Identity)?;
        }
        // SAFETY: the path ends with a zero byte and outlives the call.
        checked(unsafe { libc::chdir(self.plan.directory.as_ptr()) }, Step::Directory)
    }

    /// Tries each path, and goes on if there is no such file. Returns `errno` of the most telling failure.
    fn execute(&self) -> i32 {
        let mut error = libc::ENOENT;
        for path in &self.plan.paths {
            // SAFETY: all strings end with zero bytes, both lists with null pointers, and all outlive the
            // call.
            unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()) };
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => error = libc::EACCES,
                other => return other,
            }
        }
        error
    }
}

/// Forks, into a control group if there is one. If that fails, forks outside of it, unless `has_to` is set.
/// The agent has one thread, so the new process is a whole copy.
fn fork_into(group: Option<&Cgroup>, has_to: bool) -> io::Result<libc::pid_t> {
    if let Some(group) = group {
        // SAFETY: an all-zero structure is valid: it is plain data.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = group.as_raw_fd() as u64;
        // SAFETY: the structure lives through the call and has this size; without shared memory, this is a
        // fork.
        let process =
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
        if process >= 0 {
            return libc::pid_t::try_from(process).map_err(io::Error::other);
        }
        if has_to {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the process has one thread, so that the copy finds no lock taken.
    let process = unsafe { libc::fork() };
    if process < 0 { Err(io::Error::last_os_error()) } else { Ok(process) }
}

/// Resets signals. The agent, or the process that started it, blocks and ignores some, and a new process
/// would inherit that. It does not inherit handlers: exec removes them.
fn reset_signals(ignored: &[libc::c_int]) {
    for signal in ignored {
        // SAFETY: sets a disposition that is not a function.
        unsafe { libc::signal(*signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is valid: it is plain data.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: reads the set it is given; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Returns the signals that this process ignores.
fn ignored_signals() -> Vec<libc::c_int> {
    let is_ignored = |signal: &libc::c_int| {
        // SAFETY: an all-zero structure is valid: it is plain data.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: fills the structure it is given, and changes nothing.
        let result = unsafe { libc::sigaction(*signal, std::ptr::null(), &raw mut action) };
        result == 0 && action.sa_sigaction == libc::SIG_IGN
    };
    (1..libc::SIGRTMIN()).filter(is_ignored).collect()
}

fn report_failure(reporter: RawFd, step: Step, errno: i32) -> ! {
    let [a, b, c, d] = errno.to_ne_bytes();
    let record = [step as u8, a, b, c, d];
    // SAFETY: pointer and length are those of `record`. If it fails, the start looks like a success that ends
    // with 127.
    unsafe { libc::write(reporter, record.as_ptr().cast(), record.len()) };
    // SAFETY: ends this process without running anything of its parent's.
    unsafe { libc::_exit(127) }
}

/// Returns the report of the new process. There is none if it runs its program, which closes the pipe.
fn read_report(mut report: PipeReader) -> Option<(Step, i32)> {
    let mut record = [0; 5];
    report.read_exact(&mut record).ok()?;
    let [step, errno @ ..] = record;
    let steps = [Step::Streams, Step::Identity, Step::Directory, Step::Limits];
    let step = steps.into_iter().find(|known| *known as u8 == step).unwrap_or(Step::Execute);
    Some((step, i32::from_ne_bytes(errno)))
}

/// Returns the variables of a command: defaults for its user, overridden by those of the request.
fn environment(request: &ExecRequest, identity: Option<&Identity>) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    if !request.clear_env {
        // SAFETY: the call takes nothing.
        let own = || users::of_uid(unsafe { libc::getuid() });
        let Identity { name, home, shell, .. } = identity.cloned().unwrap_or_else(own);
        let shell = if shell.is_empty() { "/bin/sh".into() } else { shell };
        env.push(("PATH".into(), DEFAULT_PATH.into()));
        env.extend([("HOME".into(), home), ("USER".into(), name.clone()), ("LOGNAME".into(), name)]);
        env.push(("SHELL".into(), shell));
        if request.terminal.is_some() {
            env.push(("TERM".into(), "xterm".into()));
        }
    }
    for (name, value) in &request.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    env
}

/// Returns the paths to try for a program (`execvp(3)`).
fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<OsString> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = path.unwrap_or(DEFAULT_PATH.as_ref());
    let folders = path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
    folders.map(|folder| Path::new(folder).join(program).into_os_string()).collect()
}

fn checked(result: libc::c_int, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// Returns an input that is at its end.
pub(super) fn no_input() -> io::Result<OwnedFd> {
    match File::open("/dev/null") {
        Ok(file) => Ok(file.into()),
        // The system has no devices.
        Err(_) => pipe().map(|(reader, _)| reader.into()),
    }
}

/// Read once, because the agent changes none after its start.
static IGNORED: OnceLock<Vec<libc::c_int>> = OnceLock::new();
/// From `linux/sched.h`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Root's `PATH` in Debian, and the directory of the agent's own program.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/coracle";
/// The default `RLIMIT_NOFILE`. Some programs walk through all the descriptors that they may have.
const DEFAULT_DESCRIPTORS: libc::rlim_t = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_looked_for_in_the_path_unless_it_is_one() {
        assert_eq!(candidates("sh".as_ref(), Some("/a:/b".as_ref())), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("./sh".as_ref(), Some("/a".as_ref())), ["./sh"]);
        assert_eq!(candidates("".as_ref(), Some("/a".as_ref())), [""]);
        assert!(candidates("sh".as_ref(), None).contains(&"/bin/sh".into()));
    }

    #[test]
    fn given_variables_replace_defaults_and_may_be_all() {
        let mut request = ExecRequest { env: vec![("HOME".into(), "/x".into())], ..ExecRequest::default() };
        let env = environment(&request, None);
        assert_eq!(env.iter().filter(|(name, _)| name == "HOME").count(), 1);
        assert!(env.contains(&("HOME".into(), "/x".into())) && env.iter().any(|(name, _)| name == "PATH"));
        request.clear_env = true;
        assert_eq!(environment(&request, None), [("HOME".into(), "/x".into())]);
    }
}

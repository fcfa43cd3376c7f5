//! Counts the system calls of a process by ptrace(2), so that no other program is needed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How often each call was made.
#[derive(Debug, Default)]
pub struct Calls {
    /// The number of calls, by the number of the call in the kernel's table.
    pub by_number: BTreeMap<u64, u32>,
    /// The number of ioctl(2) calls, by their request.
    pub ioctls: BTreeMap<u64, u32>,
}

/// Runs `command` to its end. Returns the calls that all its threads began, and the exit code. Call this in a
/// process that has no other child: it waits for any.
pub fn of(command: &mut Command) -> (Calls, i32) {
    let (threads, code) = by_thread(command);
    let mut all = Calls::default();
    threads.into_values().for_each(|calls| add(calls, &mut all));
    (all, code)
}

/// Runs `command` as [`of`] does. Returns the calls by the names that its threads had at their ends. Threads
/// that the end of the process has ended may have no name.
pub fn by_thread(command: &mut Command) -> (BTreeMap<String, Calls>, i32) {
    // SAFETY: the closure makes only a system call.
    unsafe { command.pre_exec(|| trace(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)) };
    let child = command.spawn().unwrap().id().cast_signed();
    let (pid, status) = wait(child);
    assert!(pid == child && libc::WIFSTOPPED(status), "the traced process is not at its start: {status:#x}");
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXIT
        | libc::PTRACE_O_EXITKILL;
    trace(libc::PTRACE_SETOPTIONS, child, 0, options as usize).unwrap();
    go_on(child, 0);
    let mut running: BTreeMap<libc::pid_t, Calls> = BTreeMap::new();
    let mut ended: BTreeMap<String, Calls> = BTreeMap::new();
    loop {
        let (thread, status) = wait(-1);
        if !libc::WIFSTOPPED(status) {
            if thread == child {
                assert!(libc::WIFEXITED(status), "ended by signal {}", libc::WTERMSIG(status));
                // The end of the process may end a thread without a stop.
                running.into_values().for_each(|calls| add(calls, ended.entry(String::new()).or_default()));
                return (ended, libc::WEXITSTATUS(status));
            }
            continue;
        }
        if status >> 8 == libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8 {
            let name = std::fs::read_to_string(format!("/proc/{thread}/comm")).unwrap();
            let calls = running.remove(&thread).unwrap_or_default();
            add(calls, ended.entry(name.trim_end().to_owned()).or_default());
        }
        match libc::WSTOPSIG(status) {
            CALL => {
                if let Some((number, request)) = begun_call(thread) {
                    let calls = running.entry(thread).or_default();
                    *calls.by_number.entry(number).or_default() += 1;
                    if number == libc::SYS_ioctl as u64 {
                        *calls.ioctls.entry(request).or_default() += 1;
                    }
                }
                go_on(thread, 0);
            }
            // A new thread begins with one, and an event has the other; neither is for the program.
            libc::SIGSTOP | libc::SIGTRAP => go_on(thread, 0),
            signal => go_on(thread, signal),
        }
    }
}

fn add(calls: Calls, sum: &mut Calls) {
    for (calls, sum) in [(calls.by_number, &mut sum.by_number), (calls.ioctls, &mut sum.ioctls)] {
        calls.into_iter().for_each(|(key, count)| *sum.entry(key).or_default() += count);
    }
}

/// Returns the number and the second argument of the call that the thread begins; `None` at the end of one.
fn begun_call(thread: libc::pid_t) -> Option<(u64, u64)> {
    // SAFETY: the structure has only numbers, for which zero is a valid value.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let place = (&raw mut info).expose_provenance();
    trace(libc::PTRACE_GET_SYSCALL_INFO, thread, size_of_val(&info), place).unwrap();
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: the member is valid at the beginning of a call.
    let entry = unsafe { info.u.entry };
    Some((entry.nr, entry.args[1]))
}

/// Lets a thread run to its next stop. A thread that has been killed meanwhile is gone.
fn go_on(thread: libc::pid_t, signal: libc::c_int) {
    match trace(libc::PTRACE_SYSCALL, thread, 0, signal as usize) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        result => drop(result.unwrap()),
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: the callers pass what the request takes, and a place with room for what it writes.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn wait(thread: libc::pid_t) -> (libc::pid_t, libc::c_int) {
    let mut status = 0;
    // SAFETY: `status` has room for the answer.
    let pid = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert!(pid > 0, "waitpid: {}", io::Error::last_os_error());
    (pid, status)
}

/// The signal number of a stop at a system call, with PTRACE_O_TRACESYSGOOD.
const CALL: libc::c_int = libc::SIGTRAP | 0x80;

//! Makes a vCPU leave the guest, by a signal that is blocked everywhere but inside `KVM_RUN`.
//!
//! The thread of a vCPU blocks all signals, and `KVM_SET_SIGNAL_MASK` opens one signal for the time of
//! `KVM_RUN` alone. A kick therefore needs no handler, cannot be lost between a check and the entry (it stays
//! pending and ends the next entry at once), and never reaches code that does not expect it.

use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::thread::JoinHandle;

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

/// Ends `KVM_RUN` in another thread. Valid for as long as that thread has not been joined.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kicker {
    thread: RawPthread,
}

impl Kicker {
    /// Makes a kicker for the thread behind `handle`, which the caller joins only after the last kick.
    pub(crate) fn new<T>(handle: &JoinHandle<T>) -> Kicker {
        Kicker { thread: handle.as_pthread_t() }
    }

    /// Makes the thread leave the guest, now or at its next entry.
    pub(crate) fn kick(self) {
        // SAFETY: the thread is not joined yet, so its id is valid; to one that has ended this does nothing.
        unsafe { libc::pthread_kill(self.thread, KICK) };
    }
}

/// Kicks the calling thread, which blocks the signal: its next entry into the guest ends at once.
pub(super) fn kick_this_thread() {
    // SAFETY: the call has no preconditions.
    unsafe { libc::raise(KICK) };
}

/// Opens the kick signal inside `KVM_RUN` of this vCPU, and no other signal.
pub(super) fn allow_kicks(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    // Signal n is bit n - 1 of the kernel's 64-bit set.
    let closed = !(1u64 << (KICK - 1));
    // struct kvm_signal_mask: the size of the set in bytes, then the set, without padding.
    let mask = [size_of::<u64>() as u32, closed as u32, (closed >> 32) as u32];
    // SAFETY: the vCPU is open, and the kernel reads a length and that many bytes, all of which are in
    // `mask`.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    if result < 0 { Err(errno::Error::last()) } else { Ok(()) }
}

/// Consumes the kicks that have arrived in the calling thread.
pub(super) fn consume_kicks() {
    let mut kick = empty_set();
    // SAFETY: `kick` is an initialized signal set.
    unsafe { libc::sigaddset(&mut kick, KICK) };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set and time are valid, and no information on the signal is asked for.
    while unsafe { libc::sigtimedwait(&kick, std::ptr::null_mut(), &now) } > 0 {}
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was initialized by the call above.
    unsafe { set.assume_init() }
}

/// The kick's signal. SIGURG does nothing to a process by default. So a SIGURG for the whole process, which a
/// vCPU in `KVM_RUN` may take for a kick, is not missed by anybody. Unlike a real-time signal, it needs no
/// entry in the user's queue of signals, which other programs of this user may have filled. It is never
/// unblocked outside `KVM_RUN`, so a program that uses it for something else in other threads is not
/// disturbed.
const KICK: libc::c_int = libc::SIGURG;

// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, Documentation/virt/kvm/api.rst 4.19; kvm-ioctls has no call
// for it.
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

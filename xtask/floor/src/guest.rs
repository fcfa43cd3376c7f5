//! The parts of a guest: its RAM, its interrupt controllers, the state in which it begins.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};

/// The RAM of a guest: one mapping of this process, unmapped on drop. It must outlive the virtual machine.
#[derive(Debug)]
pub struct Ram {
    address: *mut u8,
    bytes: usize,
}

impl Ram {
    /// Maps anonymous memory.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn anonymous(bytes: usize) -> io::Result<Ram> {
        Ram::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Maps a file, so that both have the same content.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn shared(file: &File, bytes: usize) -> io::Result<Ram> {
        Ram::map(bytes, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Maps a file, which does not change with the memory.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn private(file: &File, bytes: usize) -> io::Result<Ram> {
        Ram::map(bytes, libc::MAP_PRIVATE, file.as_raw_fd())
    }

    fn map(bytes: usize, flags: i32, file: i32) -> io::Result<Ram> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_NORESERVE);
        // SAFETY: the kernel chooses where the new mapping is.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, file, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ram { address: address.cast(), bytes })
    }

    /// Maps `file` privately, from the same offset, in place of `len` bytes from `offset`. No guest runs
    /// meanwhile.
    ///
    /// # Errors
    /// The host refuses the mapping, or it is not inside.
    pub fn lay_over(&mut self, file: &File, (offset, len): (usize, usize)) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let at = self.address.wrapping_add(offset).cast();
        // SAFETY: it replaces a part of this mapping, to which no reference exists, for `self` is exclusive.
        let placed = unsafe { libc::mmap(at, len, access, flags, file.as_raw_fd(), offset as libc::off_t) };
        if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the content. No guest runs meanwhile.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is mapped for as long as `self` lives, which is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }

    /// Gives the memory to a guest: from 0 to 3 GiB, and the rest from 4 GiB on, as in Coracle's machine.
    ///
    /// # Errors
    /// KVM refuses a slot.
    pub fn give(&self, vm: &VmFd) -> io::Result<()> {
        let below = self.bytes.min(GAP.0);
        let slots = [(0, 0, below), (GAP.1, below, self.bytes - below)];
        for ((start, offset, bytes), slot) in
            slots.into_iter().zip(0..).filter(|((_, _, bytes), _)| *bytes > 0)
        {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: start as u64,
                memory_size: bytes as u64,
                userspace_addr: self.address.wrapping_add(offset) as u64,
            };
            // SAFETY: the memory outlives the virtual machine, as the type asks for.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and the guest is gone.
        unsafe { libc::munmap(self.address.cast(), self.bytes) };
    }
}

/// Makes the interrupt controllers of a guest: local APICs in KVM, nothing else.
///
/// # Errors
/// KVM refuses a call.
pub fn create_local_apics(vm: &VmFd) -> io::Result<()> {
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS)?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = IOAPIC_PINS;
    Ok(vm.enable_cap(&split)?)
}

/// Sets the vCPU to the state of a PVH entry: flat 32-bit segments, no paging (Xen, `docs/misc/pvh.pandoc`).
///
/// # Errors
/// KVM refuses the state.
pub fn enter_protected_mode(vcpu: &VcpuFd, entry: u32) -> io::Result<()> {
    let mut special = vcpu.get_sregs()?;
    let flat = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11, // code, readable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, ..flat };
    special.cs = flat;
    for segment in [&mut special.ds, &mut special.es, &mut special.ss, &mut special.fs, &mut special.gs] {
        *segment = data;
    }
    special.cr0 |= 1;
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    general.rip = u64::from(entry);
    general.rflags = 2;
    Ok(vcpu.set_regs(&general)?)
}

/// The data register of the serial port.
pub const SERIAL: u16 = 0x3f8;
/// The pages that KVM needs on some Intel CPUs, outside RAM as in Coracle's machine.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// As in Coracle, whose I/O APIC is not KVM's.
const IOAPIC_PINS: u64 = 24;
/// The end of RAM below 4 GiB, and the address at which it continues.
const GAP: (usize, usize) = (3 << 30, 4 << 30);

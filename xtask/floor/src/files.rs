//! Templates in files, from which a guest goes on in another process of the same program.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::{
    CpuId, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::Kvm;

use crate::forks::{State, Template};

impl Template {
    /// Writes the template to two files in `folder`, `state` and `memory`; of the memory, `touched`, which
    /// are offset and length.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn save_to(&self, folder: &Path, touched: &[(usize, usize)]) -> io::Result<()> {
        let State { clock, sregs, xcrs, xsave, lapic, msrs, regs, debug, events, mp } = &self.state;
        let mut state = Vec::new();
        write_list(&mut state, self.cpuid.as_slice());
        write_list(&mut state, msrs.as_slice());
        write(&mut state, clock);
        write(&mut state, sregs);
        write(&mut state, xcrs);
        write(&mut state, xsave);
        write(&mut state, lapic);
        write(&mut state, regs);
        write(&mut state, debug);
        write(&mut state, events);
        write(&mut state, mp);
        fs::write(folder.join("state"), state)?;
        let memory = File::create(folder.join("memory"))?;
        memory.set_len(self.bytes as u64)?;
        for &(offset, len) in touched {
            let mut piece = vec![0; len];
            self.file.read_exact_at(&mut piece, offset as u64)?;
            memory.write_all_at(&piece, offset as u64)?;
        }
        Ok(())
    }

    /// Opens a template in files, which this program has written.
    ///
    /// # Errors
    /// There is none, or the host has no KVM.
    pub fn open(folder: &Path) -> io::Result<Template> {
        let kvm = Kvm::new()?;
        let content = fs::read(folder.join("state"))?;
        let from = &mut content.as_slice();
        let cpuid = CpuId::from_entries(&read_list(from)?).map_err(|_| io::ErrorKind::InvalidData)?;
        let msrs = Msrs::from_entries(&read_list(from)?).map_err(|_| io::ErrorKind::InvalidData)?;
        let state = State {
            msrs,
            clock: read(from)?,
            sregs: read(from)?,
            xcrs: read(from)?,
            xsave: read(from)?,
            lapic: read(from)?,
            regs: read(from)?,
            debug: read(from)?,
            events: read(from)?,
            mp: read(from)?,
        };
        let file = File::open(folder.join("memory"))?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Template { kvm, cpuid, state, file, bytes })
    }
}

/// A structure of integers: all bytes are a value of it.
///
/// # Safety
/// Each pattern of bytes is a value of the type.
unsafe trait Plain: Sized {}

macro_rules! plain {
    ($($name:ty),*) => {
        // SAFETY: they are structures and unions of integers (Linux, `arch/x86/include/uapi/asm/kvm.h`).
        $(unsafe impl Plain for $name {})*
    };
}

plain!(
    usize,
    kvm_cpuid_entry2,
    kvm_msr_entry,
    kvm_clock_data,
    kvm_sregs,
    kvm_xcrs,
    kvm_xsave,
    kvm_lapic_state
);
plain!(kvm_regs, kvm_debugregs, kvm_vcpu_events, kvm_mp_state);

/// Appends the bytes of a structure.
fn write<T: Plain>(to: &mut Vec<u8>, value: &T) {
    // SAFETY: the bytes are those of `value`, whose padding is zero, as KVM or a default has made it.
    to.extend_from_slice(unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) });
}

fn write_list<T: Plain>(to: &mut Vec<u8>, values: &[T]) {
    write(to, &values.len());
    values.iter().for_each(|value| write(to, value));
}

/// Takes a structure from the front of `from`.
fn read<T: Plain>(from: &mut &[u8]) -> io::Result<T> {
    let (bytes, rest) = from.split_at_checked(size_of::<T>()).ok_or(io::ErrorKind::UnexpectedEof)?;
    *from = rest;
    // SAFETY: there are as many bytes, and all are a value.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Takes a list from the front of `from`.
fn read_list<T: Plain>(from: &mut &[u8]) -> io::Result<Vec<T>> {
    let count: usize = read(from)?;
    (0..count).map(|_| read(from)).collect()
}

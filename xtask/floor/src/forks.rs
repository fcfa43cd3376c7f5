//! Forks of a guest with the calls that no fork can do without: a virtual machine, a private mapping of the
//! template's memory, local APICs, a vCPU with its CPUID, and the state of both.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_clock_data, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::guest::{Ram, SERIAL, create_local_apics, enter_protected_mode};
use crate::payload;

/// A guest with one vCPU that has printed a byte.
pub struct Machine {
    // Fields drop in declaration order: the virtual machine before its memory.
    guest: Guest,
    kvm: Kvm,
    cpuid: CpuId,
    /// The model-specific registers that can be read and set.
    msrs: Vec<u32>,
    bytes: usize,
    /// The file that is the RAM, if one is.
    file: Option<File>,
}

/// A stopped guest, from which others go on.
pub struct Template {
    pub(crate) kvm: Kvm,
    pub(crate) cpuid: CpuId,
    pub(crate) state: State,
    pub(crate) file: File,
    pub(crate) bytes: usize,
}

/// A guest that goes on from a template.
pub struct Fork {
    guest: Guest,
}

struct Guest {
    // As above.
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Ram,
}

/// The state of a guest apart from its memory.
pub(crate) struct State {
    pub(crate) clock: kvm_clock_data,
    pub(crate) sregs: kvm_sregs,
    pub(crate) xcrs: kvm_xcrs,
    pub(crate) xsave: kvm_xsave,
    pub(crate) lapic: kvm_lapic_state,
    pub(crate) msrs: Msrs,
    pub(crate) regs: kvm_regs,
    pub(crate) debug: kvm_debugregs,
    pub(crate) events: kvm_vcpu_events,
    pub(crate) mp: kvm_mp_state,
}

impl Machine {
    /// Runs `payload` until it has printed a byte. Its RAM is a memory file or anonymous.
    ///
    /// # Errors
    /// The host or KVM refuses a call, or the file is not a payload.
    pub fn start(payload: &Path, mib: usize, in_file: bool) -> io::Result<Machine> {
        let bytes = mib << 20;
        let file = in_file.then(|| memory_file(bytes)).transpose()?;
        let mut ram = match &file {
            Some(file) => Ram::shared(file, bytes)?,
            None => Ram::anonymous(bytes)?,
        };
        let entry = payload::load(&mut File::open(payload)?, ram.bytes())?;
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        ram.give(&vm)?;
        create_local_apics(&vm)?;
        let vcpu = vm.create_vcpu(0)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        vcpu.set_cpuid2(&cpuid)?;
        let msrs = changeable(&vcpu, kvm.get_msr_index_list()?.as_slice());
        enter_protected_mode(&vcpu, entry)?;
        let mut guest = Guest { vcpu, vm, ram };
        guest.run_to_byte()?;
        Ok(Machine { guest, kvm, cpuid, msrs, bytes, file })
    }

    /// Saves the state, and gives the memory to a file that never changes again. The guest has touched no
    /// memory outside of `touched`, which are offset and length. Returns the machine's remains as well, which
    /// no template needs.
    ///
    /// # Errors
    /// The host or KVM refuses a call.
    pub fn freeze(self, touched: &[(usize, usize)]) -> io::Result<(Template, impl Drop + use<>)> {
        let Machine { mut guest, kvm, cpuid, msrs, bytes, file } = self;
        let state = State::save(&guest, &msrs)?;
        let file = match file {
            Some(file) => {
                guest.ram = Ram::anonymous(4096)?;
                file
            }
            None => {
                let file = memory_file(bytes)?;
                for &(offset, len) in touched {
                    let content = guest.ram.bytes().get(offset..offset.saturating_add(len));
                    file.write_all_at(content.ok_or(io::ErrorKind::InvalidInput)?, offset as u64)?;
                }
                file
            }
        };
        seal(&file)?;
        Ok((Template { kvm, cpuid, state, file, bytes }, Remains(Some(guest))))
    }
}

impl Machine {
    /// Writes to the memory, as its guest would.
    ///
    /// # Errors
    /// It is not inside.
    pub fn dirty(&mut self, (offset, len): (usize, usize), value: u8) -> io::Result<()> {
        let range = self.guest.ram.bytes().get_mut(offset..offset.saturating_add(len));
        range.ok_or(io::ErrorKind::InvalidInput)?.fill(value);
        Ok(())
    }

    /// Saves the state, and shares the memory `dirty`, which are offset and length, with a file that never
    /// changes again. The guest can go on over it.
    ///
    /// # Errors
    /// The host or KVM refuses a call.
    pub fn branch(&mut self, dirty: (usize, usize)) -> io::Result<impl Sized + use<>> {
        let state = State::save(&self.guest, &self.msrs)?;
        let file = memory_file(self.bytes)?;
        let (offset, len) = dirty;
        if len > 0 {
            let content = self.guest.ram.bytes().get(offset..offset.saturating_add(len));
            file.write_all_at(content.ok_or(io::ErrorKind::InvalidInput)?, offset as u64)?;
        }
        seal(&file)?;
        if len > 0 {
            self.guest.ram.lay_over(&file, dirty)?;
        }
        Ok((state, file))
    }
}

fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the call changes nothing but the file.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The rest of a machine.
struct Remains(Option<Guest>);

impl Drop for Remains {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

impl Template {
    /// Makes a guest that goes on from here.
    ///
    /// # Errors
    /// The host or KVM refuses a call.
    pub fn fork(&self) -> io::Result<Fork> {
        let vm = self.kvm.create_vm()?;
        let ram = Ram::private(&self.file, self.bytes)?;
        ram.give(&vm)?;
        create_local_apics(&vm)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&self.cpuid)?;
        let guest = Guest { vcpu, vm, ram };
        self.state.restore(&guest)?;
        Ok(Fork { guest })
    }
}

impl Fork {
    /// Runs the guest until it prints its next byte.
    ///
    /// # Errors
    /// Something else.
    pub fn run_to_byte(&mut self) -> io::Result<u8> {
        self.guest.run_to_byte()
    }
}

impl Guest {
    fn run_to_byte(&mut self) -> io::Result<u8> {
        loop {
            match self.vcpu.run()? {
                VcpuExit::IoOut(SERIAL, &[byte]) => break self.complete().map(|()| byte),
                VcpuExit::IoIn(_, bytes) => bytes.fill(0xff),
                VcpuExit::IoOut(..) | VcpuExit::Intr => {}
                other => return Err(io::Error::other(format!("the guest ended with {other:?}"))),
            }
        }
    }

    /// Lets KVM finish the guest's last access to a port.
    fn complete(&mut self) -> io::Result<()> {
        self.vcpu.set_kvm_immediate_exit(1);
        let result = self.vcpu.run().map(drop);
        self.vcpu.set_kvm_immediate_exit(0);
        match result {
            Err(error) if error.errno() != libc::EINTR => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl State {
    fn save(guest: &Guest, msrs: &[u32]) -> io::Result<State> {
        let Guest { vcpu, vm, .. } = guest;
        let entries: Vec<_> =
            msrs.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(State {
            mp: vcpu.get_mp_state()?,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            xcrs: vcpu.get_xcrs()?,
            xsave: vcpu.get_xsave()?,
            lapic: vcpu.get_lapic()?,
            msrs: {
                vcpu.get_msrs(&mut msrs)?;
                msrs
            },
            debug: vcpu.get_debug_regs()?,
            events: vcpu.get_vcpu_events()?,
            clock: vm.get_clock()?,
        })
    }

    /// The order is that of Coracle (`src/kvm/vcpu_state/restore.rs`).
    fn restore(&self, guest: &Guest) -> io::Result<()> {
        let Guest { vcpu, vm, .. } = guest;
        let State { clock, sregs, xcrs, xsave, lapic, msrs, regs, debug, events, mp } = self;
        vm.set_clock(&kvm_clock_data { clock: clock.clock, ..Default::default() })?;
        vcpu.set_sregs(sregs)?;
        if xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(xcrs)?;
        }
        // SAFETY: the size of the area is that of the structure, because this process asks for no state that
        // makes it larger.
        unsafe { vcpu.set_xsave(xsave) }?;
        vcpu.set_lapic(lapic)?;
        if vcpu.set_msrs(msrs)? != msrs.as_slice().len() {
            return Err(io::Error::other("KVM refused a model-specific register"));
        }
        vcpu.set_regs(regs)?;
        vcpu.set_debug_regs(debug)?;
        vcpu.set_vcpu_events(events)?;
        vcpu.set_mp_state(*mp)?;
        // The guest takes the pause for its start, and prints.
        Ok(vcpu.kvmclock_ctrl()?)
    }
}

/// Returns those of `msrs` that can be read and set to what they are.
fn changeable(vcpu: &VcpuFd, msrs: &[u32]) -> Vec<u32> {
    let is_changeable = |index: &&u32| {
        let entry = kvm_msr_entry { index: **index, ..Default::default() };
        let Ok(mut list) = Msrs::from_entries(&[entry]) else { return false };
        vcpu.get_msrs(&mut list) == Ok(1) && vcpu.set_msrs(&list) == Ok(1)
    };
    msrs.iter().filter(is_changeable).copied().collect()
}

fn memory_file(bytes: usize) -> io::Result<File> {
    // SAFETY: the name is nul-terminated.
    let fd =
        unsafe { libc::memfd_create(c"floor-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use coracle_payload::Payload;

    use super::*;

    #[test]
    fn forks_of_either_kind_of_memory_go_on_from_the_first_byte() {
        if Kvm::new().is_err() {
            let _ = writeln!(io::stderr(), "skipped: no usable /dev/kvm");
            return;
        }
        let path = std::env::temp_dir().join(format!("floor-{}-fork-mark.elf", std::process::id()));
        std::fs::write(&path, Payload::named("fork-mark").unwrap().elf()).unwrap();
        for in_file in [false, true] {
            let machine = Machine::start(&path, 16, in_file).unwrap();
            let (template, remains) = machine.freeze(&[(1 << 20, 9 << 20)]).unwrap();
            drop(remains);
            for _ in 0..2 {
                assert_eq!(template.fork().unwrap().run_to_byte().unwrap(), b'.');
            }
            let folder = path.with_extension("template");
            std::fs::create_dir(&folder).unwrap();
            template.save_to(&folder, &[(1 << 20, 9 << 20)]).unwrap();
            assert_eq!(Template::open(&folder).unwrap().fork().unwrap().run_to_byte().unwrap(), b'.');
            std::fs::remove_dir_all(folder).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }
}

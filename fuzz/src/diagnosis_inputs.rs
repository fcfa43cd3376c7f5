//! The inputs of a diagnosis of a dead guest: the symbols of the kernel's file, and the configuration in
//! its memory.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use coracle::diagnosis::inputs;
use coracle_arch::nameless_file;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// `data` is an ELF file, and what lies in the guest's memory. A name of a function, if there is one, can be
/// shown as it is, and the value of an option is in one line.
pub fn diagnosis_inputs(data: &[u8]) {
    let file = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    file.write_all_at(data, 0).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    for function in inputs::functions(Path::new(&path), &ADDRESSES).into_iter().flatten() {
        assert!(!function.name.is_empty() && function.name.len() <= 128, "{function}");
        assert!(function.name.bytes().all(|byte| byte.is_ascii_graphic()), "{function}");
    }
    let len = data.len().min(RAM);
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    ram.write_slice(&data[..len], GuestAddress(0)).unwrap();
    let value = inputs::option(&ram, 0..RAM as u64, Path::new("/nonexistent/kernel"), "CONFIG_A");
    assert!(value.is_none_or(|value| !value.contains('\n')));
}

/// The addresses of a linked kernel, of a loaded one, and the ends.
const ADDRESSES: [u64; 4] = [0xffff_ffff_8100_1234, 0x100_0000, 0, u64::MAX];
/// Bytes of memory, which are searched for each input.
const RAM: usize = 96 << 10;

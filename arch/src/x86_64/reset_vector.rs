//! Sixteen bytes of firmware: a guest that jumps to the BIOS entry resets the machine.
//!
//! Linux on a hardware-reduced ACPI machine expects EFI. Where there is none, it reboots by returning to real
//! mode and jumping to ffff:0 (arch/x86/kernel/reboot.c, `reboot_init` and `machine_real_restart`), even if
//! the FADT has a reset register. [`crate::x86_64::load`] puts these instructions there, and they write that
//! register.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{RESET_PORT, RESET_VALUE, RESET_VECTOR};

/// Writes the instructions.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(RESET_VECTOR))
}

/// Real mode code: `mov dx, RESET_PORT`, `mov al, RESET_VALUE`, `out dx, al`, `cli`, then `hlt` forever.
const CODE: [u8; 10] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_at_the_bios_entry_writes_the_reset_register() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        let mut code = [0; 10];
        memory.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
        assert_eq!(code, *b"\xba\x02\x06\xb0\x01\xee\xfa\xf4\xeb\xfd");
    }
}

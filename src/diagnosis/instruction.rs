//! Reads the instruction at a vCPU's instruction pointer from guest RAM, and disassembles it.
//!
//! Address, page tables and bytes are the guest's. The address may be unmapped, outside RAM, or hold no valid
//! instruction. The diagnosis calls this for vCPUs that have left the guest.

use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use serde::{Serialize, Serializer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The content of memory at a vCPU's instruction pointer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Code {
    /// An instruction.
    Instruction {
        /// Its bytes, in hexadecimal in the JSON object.
        #[serde(serialize_with = "hexadecimal")]
        bytes: Vec<u8>,
        /// Its disassembly, with Intel's order of operands.
        text: String,
    },
    /// Bytes that are not an instruction in the mode of the vCPU.
    Undefined {
        /// The bytes, in hexadecimal in the JSON object.
        #[serde(serialize_with = "hexadecimal")]
        bytes: Vec<u8>,
    },
    /// The guest's page tables map nothing at the address.
    Unmapped,
    /// The guest's page tables map the address to one without RAM.
    OutsideRam {
        /// The guest-physical address.
        physical: u64,
    },
}

impl Code {
    /// Reads and decodes the code at `linear` for a mode of `bits` bits. `translate` walks the guest's page
    /// tables. If memory has no answer, `fetched` is what KVM had read there.
    pub(super) fn read(
        ram: &GuestMemoryMmap,
        linear: u64,
        bits: u32,
        fetched: &[u8],
        translate: impl Fn(u64) -> Option<u64>,
    ) -> Code {
        let mut bytes = [0; LONGEST];
        let read = match fetch(ram, linear, &mut bytes, translate) {
            Ok(length) => bytes.get(..length).unwrap_or_default(),
            Err(_) if !fetched.is_empty() => fetched,
            Err(nothing) => return nothing,
        };
        Code::decode(read, bits, linear)
    }

    fn decode(bytes: &[u8], bits: u32, address: u64) -> Code {
        let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Code::Undefined { bytes: bytes.to_vec() };
        }
        let mut formatter = FastFormatter::new();
        formatter.options_mut().set_use_hex_prefix(true);
        formatter.options_mut().set_uppercase_hex(false);
        formatter.options_mut().set_space_after_operand_separator(true);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        Code::Instruction { bytes: bytes.iter().copied().take(instruction.len()).collect(), text }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Code::Instruction { text, .. } => write!(f, "the instruction `{text}`"),
            Code::Undefined { bytes } => write!(f, "bytes that are not an instruction ({})", hex(bytes)),
            Code::Unmapped => write!(f, "an address that the guest's page tables do not map"),
            Code::OutsideRam { physical } => {
                write!(f, "physical address {physical:#x}, where there is no RAM")
            }
        }
    }
}

/// Reads the bytes at `linear`, which may lie in two pages, and returns how many there are, or the reason why
/// there are none.
fn fetch(
    ram: &GuestMemoryMmap,
    linear: u64,
    bytes: &mut [u8; LONGEST],
    translate: impl Fn(u64) -> Option<u64>,
) -> Result<usize, Code> {
    let to_page_end = usize::try_from(PAGE - linear % PAGE).unwrap_or(LONGEST).min(LONGEST);
    let (first, second) = bytes.split_at_mut(to_page_end);
    let physical = translate(linear).ok_or(Code::Unmapped)?;
    ram.read_slice(first, GuestAddress(physical)).map_err(|_| Code::OutsideRam { physical })?;
    let rest = translate(linear.wrapping_add(to_page_end as u64));
    let rest = rest.and_then(|physical| ram.read_slice(second, GuestAddress(physical)).ok());
    Ok(to_page_end + rest.map_or(0, |()| second.len()))
}

fn hexadecimal<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// The length of the longest x86 instruction in bytes (Intel SDM vol. 2, 2.3.11).
const LONGEST: usize = 15;
const PAGE: u64 = 0x1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(at: u64, bytes: &[u8]) -> GuestMemoryMmap {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        ram.write_slice(bytes, GuestAddress(at)).unwrap();
        ram
    }

    fn text(code: &Code) -> &str {
        match code {
            Code::Instruction { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn instruction_is_decoded_in_the_mode_of_its_vcpu() {
        let ram = ram(0x1000, &[0x48, 0x0f, 0xc7, 0x4d, 0x20, 0xcc]);
        let code = |bits| Code::read(&ram, 0x1000, bits, &[], Some);
        assert_eq!(text(&code(64)), "cmpxchg16b [rbp+0x20]");
        assert!(matches!(code(64), Code::Instruction { bytes, .. } if bytes.len() == 5));
        assert_eq!(text(&code(32)), "dec eax");
    }

    #[test]
    fn instruction_across_two_pages_is_read_from_both() {
        let ram = ram(0x1ffe, &[0x0f, 0xae]);
        ram.write_slice(&[0x27], GuestAddress(0x3000)).unwrap();
        let scattered = |linear| Some(if linear >= 0x2000 { linear + 0x1000 } else { linear });
        assert_eq!(text(&Code::read(&ram, 0x1ffe, 64, &[], scattered)), "xsave [rdi]");
        let only_first = |linear| (linear < 0x2000).then_some(linear);
        let cut = Code::read(&ram, 0x1ffe, 64, &[], only_first);
        assert_eq!(cut, Code::Undefined { bytes: vec![0x0f, 0xae] });
    }

    #[test]
    fn place_without_memory_is_said() {
        let ram = ram(0, &[]);
        assert_eq!(Code::read(&ram, 0x1000, 64, &[], |_| None), Code::Unmapped);
        let outside = Code::read(&ram, 0xd000_0000, 64, &[], Some);
        assert_eq!(outside, Code::OutsideRam { physical: 0xd000_0000 });
        assert_eq!(Code::read(&ram, u64::MAX, 64, &[], Some), Code::OutsideRam { physical: u64::MAX });
    }

    #[test]
    fn bytes_that_kvm_read_stand_in_for_memory() {
        let ram = ram(0, &[]);
        assert_eq!(text(&Code::read(&ram, 0xd000_0000, 64, &[0xcc], Some)), "int3");
    }

    #[test]
    fn bytes_of_a_guest_never_break_the_decoder() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..50_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bytes = [state.to_le_bytes(), state.rotate_left(23).to_be_bytes()].concat();
            for bits in [16, 32, 64] {
                Code::decode(&bytes[..15], bits, state);
            }
        }
    }
}

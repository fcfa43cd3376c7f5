//! The check of a state that was read back: values that no CPU has are refused before KVM is asked.

use super::{SegmentRegister, VcpuEvents, VcpuState};
use crate::x86_64::lapic::LAPIC_PAGE_LEN;

/// The reason why a state cannot be that of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuStateError {
    /// A field has a value that it cannot have.
    #[error("{field}: {value:#x} is not possible, only {allowed}; the state is damaged")]
    Value {
        /// The name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The values that the field can have.
        allowed: &'static str,
    },
    /// A list has a length that it cannot have.
    #[error("{field}: {length} elements are not possible, only {min} to {max}; the state is damaged")]
    Length {
        /// The name of the field.
        field: &'static str,
        /// The number of elements.
        length: usize,
        /// The smallest possible number.
        min: usize,
        /// The largest possible number.
        max: usize,
    },
    /// A register stands in a list twice.
    #[error("{field}: register {number:#x} occurs twice; the state is damaged")]
    Twice {
        /// The name of the list.
        field: &'static str,
        /// The number of the register.
        number: u32,
    },
}

impl VcpuState {
    /// Refuses values that no CPU has. Only KVM can check those that depend on the features of the CPU.
    ///
    /// # Errors
    /// A list has a length, or a field has a value, that no CPU gives it.
    pub fn check(&self) -> Result<(), VcpuStateError> {
        // Complete, so that a new field is not forgotten. The others can have any value.
        let Self {
            mp_state: _,
            registers: _,
            special_registers,
            shadow_stack_pointer: _,
            xsave,
            xcrs,
            debug_registers,
            local_apic,
            events,
            msrs,
            tsc,
        } = self;
        check_segments(special_registers)?;
        limit("cr8", special_registers.cr8, 15, "0 to 15")?;
        let bits = special_registers.interrupt_bitmap.iter().map(|word| word.count_ones());
        limit("interrupt_bitmap", bits.fold(0, u32::saturating_add).into(), 1, "one bit at most")?;
        length("xsave", xsave.len(), Self::MIN_XSAVE_BYTES, Self::MAX_XSAVE_BYTES)?;
        length("xcrs", xcrs.len(), 0, Self::MAX_XCRS)?;
        distinct("xcrs", xcrs.iter().map(|xcr| xcr.number))?;
        limit("dr6", debug_registers.status, u32::MAX.into(), "32 bits")?;
        limit("dr7", debug_registers.control, u32::MAX.into(), "32 bits")?;
        length("local_apic", local_apic.len(), LAPIC_PAGE_LEN, LAPIC_PAGE_LEN)?;
        check_events(events)?;
        length("msrs", msrs.len(), 0, Self::MAX_MSRS)?;
        distinct("msrs", msrs.iter().map(|(number, _)| *number))?;
        match tsc.khz {
            Some(0) => Err(value("tsc.khz", 0, "a frequency above 0")),
            _ => Ok(()),
        }
    }
}

fn check_segments(registers: &super::SpecialRegisters) -> Result<(), VcpuStateError> {
    let super::SpecialRegisters {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldtr,
        gdtr: _,
        idtr: _,
        cr0: _,
        cr2: _,
        cr3: _,
        cr4: _,
        cr8: _,
        efer: _,
        apic_base: _,
        interrupt_bitmap: _,
    } = registers;
    for SegmentRegister { type_, dpl, .. } in [cs, ds, es, fs, gs, ss, tr, ldtr] {
        limit("type of a segment", (*type_).into(), 15, "0 to 15")?;
        limit("dpl of a segment", (*dpl).into(), 3, "0 to 3")?;
    }
    Ok(())
}

fn check_events(events: &VcpuEvents) -> Result<(), VcpuStateError> {
    let VcpuEvents { exception, interrupt, nmi, sipi_vector, smm: _, triple_fault: _ } = events;
    let is_pending = exception.pending == Some(true);
    if exception.injected || is_pending {
        limit("exception.vector", exception.vector.into(), 31, "0 to 31 without 2")?;
        if exception.vector == NMI_VECTOR {
            return Err(value("exception.vector", NMI_VECTOR.into(), "0 to 31 without 2"));
        }
    }
    if exception.injected && is_pending {
        return Err(value("exception.pending", 1, "one of pending and injected"));
    }
    if exception.payload.is_some() && !is_pending {
        let payload = exception.payload.unwrap_or_default();
        return Err(value("exception.payload", payload, "a payload of a pending exception"));
    }
    limit("interrupt.shadow", interrupt.shadow.unwrap_or(0).into(), 3, "0 to 3")?;
    // One that is latched, and one that may be delivered.
    limit("nmi.pending", nmi.pending.unwrap_or(0).into(), 2, "0 to 2")?;
    limit("sipi_vector", sipi_vector.unwrap_or(0).into(), 0xff, "0 to 0xff")
}

/// The vector of a non-maskable interrupt, which is not an exception.
const NMI_VECTOR: u8 = 2;

fn value(field: &'static str, value: u64, allowed: &'static str) -> VcpuStateError {
    VcpuStateError::Value { field, value, allowed }
}

fn limit(field: &'static str, found: u64, max: u64, allowed: &'static str) -> Result<(), VcpuStateError> {
    if found > max { Err(value(field, found, allowed)) } else { Ok(()) }
}

fn length(field: &'static str, length: usize, min: usize, max: usize) -> Result<(), VcpuStateError> {
    if (min..=max).contains(&length) {
        Ok(())
    } else {
        Err(VcpuStateError::Length { field, length, min, max })
    }
}

/// Refuses a number that occurs twice. The list has been limited before.
fn distinct(field: &'static str, numbers: impl Iterator<Item = u32>) -> Result<(), VcpuStateError> {
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    let twice = numbers.windows(2).find_map(|pair| match pair {
        [one, other] if one == other => Some(*one),
        _ => None,
    });
    twice.map_or(Ok(()), |number| Err(VcpuStateError::Twice { field, number }))
}

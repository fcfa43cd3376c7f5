//! CPU templates: which of the host's CPUID bits and model-specific registers a guest may see.
//!
//! A template is read from JSON, or is the built-in [`CpuTemplate::baseline`]. It is applied to the leaves
//! that KVM supports, before [`crate::x86_64::cpuid::for_vcpu`] adds identity and topology. A template never
//! announces a feature that the host lacks: that is an error, which names the bits.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use rule::Rule;

use super::cpuid::CpuidEntry;

mod baseline;
mod rule;

/// Rules that turn the host's CPU into the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTemplate {
    /// Whether the leaves that `cpuid` does not name are passed on.
    #[serde(default)]
    pub other_leaves: OtherLeaves,
    /// Rules for CPUID leaves.
    #[serde(default)]
    pub cpuid: Vec<LeafRule>,
    /// Rules for model-specific registers.
    #[serde(default)]
    pub msrs: Vec<MsrRule>,
}

/// The rule for leaves that have none of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherLeaves {
    /// The guest reads the host's values.
    #[default]
    Keep,
    /// The guest reads zeros.
    Hide,
}

/// The rules for one CPUID leaf. A register without a rule stays as the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafRule {
    /// The leaf: EAX at the time of CPUID.
    #[serde(with = "rule::hex32")]
    pub leaf: u32,
    /// The sub-leaf: ECX at the time of CPUID. It matters only for leaves whose answer depends on it.
    #[serde(default, with = "rule::hex32", skip_serializing_if = "is_zero")]
    pub subleaf: u32,
    /// The rule for the EAX that CPUID returns.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub eax: Rule<u32>,
    /// The rule for the EBX that CPUID returns.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub ebx: Rule<u32>,
    /// The rule for the ECX that CPUID returns.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub ecx: Rule<u32>,
    /// The rule for the EDX that CPUID returns.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub edx: Rule<u32>,
}

/// The rule for one model-specific register. It is applied to the register's value in a new vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrRule {
    /// The number of the register.
    #[serde(with = "rule::hex32")]
    pub msr: u32,
    /// The rule for its value.
    pub value: Rule<u64>,
}

/// The reason why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuTemplateError {
    /// The text is not a template.
    #[error("it is not a CPU template: {reason}; `coracle cpu dump` prints one")]
    Syntax {
        /// The reason, with line and column.
        reason: String,
    },
    /// More rules than CPUID can have leaves.
    #[error("it has {count} rules for {what}, and at most {max} are possible")]
    TooMany {
        /// CPUID leaves or model-specific registers.
        what: &'static str,
        /// The number of rules in the template.
        count: usize,
        /// The largest number of rules.
        max: usize,
    },
    /// Two rules are for the same leaf or register.
    #[error("it has two rules for {what}: leave one out")]
    Twice {
        /// The leaf or register.
        what: String,
    },
    /// The template announces features that this host's KVM does not support.
    #[error(
        "it wants bits {bits:#x} of {register} in CPUID leaf {leaf:#x}.{subleaf}, which this host does not support; \
         use another host or another template"
    )]
    Unsupported {
        /// The leaf: EAX at the time of CPUID.
        leaf: u32,
        /// The sub-leaf: ECX at the time of CPUID.
        subleaf: u32,
        /// The register with the bits: EAX, EBX, ECX or EDX.
        register: &'static str,
        /// The bits that the host lacks.
        bits: u32,
    },
}

impl CpuTemplate {
    /// The largest number of rules for model-specific registers. A dumped template has about ten.
    pub const MAX_MSRS: usize = 64;
    /// The largest number of rules for CPUID leaves: KVM takes no more leaves (KVM_MAX_CPUID_ENTRIES).
    pub const MAX_LEAVES: usize = 256;

    /// Returns the template that passes on everything the host has.
    pub fn host() -> CpuTemplate {
        CpuTemplate { other_leaves: OtherLeaves::Keep, cpuid: Vec::new(), msrs: Vec::new() }
    }

    /// Returns the template with the instructions of x86-64-v2 and nothing newer. Server CPUs have had them
    /// since about 2010.
    pub fn baseline() -> CpuTemplate {
        baseline::template()
    }

    /// Reads a template.
    ///
    /// # Errors
    /// The text is not JSON, has an unknown key, or has two rules for the same leaf or register.
    pub fn from_json(text: &str) -> Result<CpuTemplate, CpuTemplateError> {
        // serde would accept an array with the values of the fields in order.
        if text.trim_start().starts_with('[') {
            let reason = "it is an array, and has to be an object".to_owned();
            return Err(CpuTemplateError::Syntax { reason });
        }
        let template: CpuTemplate = serde_json::from_str(text)
            .map_err(|error| CpuTemplateError::Syntax { reason: error.to_string() })?;
        limit("CPUID leaves", template.cpuid.len(), Self::MAX_LEAVES)?;
        limit("model-specific registers", template.msrs.len(), Self::MAX_MSRS)?;
        let mut leaves = BTreeSet::new();
        for rule in &template.cpuid {
            if !leaves.insert((rule.leaf, rule.subleaf)) {
                let what = format!("CPUID leaf {:#x}.{}", rule.leaf, rule.subleaf);
                return Err(CpuTemplateError::Twice { what });
            }
        }
        let mut msrs = BTreeSet::new();
        for rule in &template.msrs {
            if !msrs.insert(rule.msr) {
                let what = format!("model-specific register {:#x}", rule.msr);
                return Err(CpuTemplateError::Twice { what });
            }
        }
        Ok(template)
    }

    /// Returns a template that gives exactly these leaves and registers, on each host that has their
    /// features.
    pub fn exact(entries: &[CpuidEntry], msrs: &[(u32, u64)]) -> CpuTemplate {
        let leaf = |entry: &CpuidEntry| LeafRule {
            leaf: entry.function,
            subleaf: entry.index,
            eax: Rule::exactly(entry.eax),
            ebx: Rule::exactly(entry.ebx),
            ecx: Rule::exactly(entry.ecx),
            edx: Rule::exactly(entry.edx),
        };
        CpuTemplate {
            other_leaves: OtherLeaves::Hide,
            cpuid: entries.iter().map(leaf).collect(),
            msrs: msrs.iter().map(|&(msr, value)| MsrRule { msr, value: Rule::exactly(value) }).collect(),
        }
    }

    /// Returns the part of `supported`, KVM's own list, that the guest may see. Leaves that describe the
    /// machine rather than the CPU (topology, frequencies, the hypervisor's signature) stay: rules for them
    /// have no effect.
    ///
    /// # Errors
    /// The template wants a feature that the host lacks.
    pub fn apply(&self, supported: &[CpuidEntry]) -> Result<Vec<CpuidEntry>, CpuTemplateError> {
        let mut entries = Vec::with_capacity(supported.len());
        for entry in supported {
            match self.cpuid.iter().find(|rule| rule.is_for(entry)) {
                _ if is_of_the_machine(entry.function) => entries.push(*entry),
                Some(rule) => entries.push(rule.apply(*entry)?),
                None if self.other_leaves == OtherLeaves::Keep => entries.push(*entry),
                None => {}
            }
        }
        for rule in &self.cpuid {
            if is_of_the_machine(rule.leaf) || supported.iter().any(|entry| rule.is_for(entry)) {
                continue;
            }
            // The host lacks this leaf, so it starts as zeros.
            let index_significant =
                rule.subleaf != 0 || supported.iter().any(|e| e.function == rule.leaf && e.index_significant);
            let absent = CpuidEntry {
                function: rule.leaf,
                index: rule.subleaf,
                index_significant,
                ..CpuidEntry::default()
            };
            let made = rule.apply(absent)?;
            if made != absent {
                entries.push(made);
            }
        }
        Ok(entries)
    }

    /// Returns the values of the registers that have rules, given their values in a new vCPU.
    pub fn msr_values(&self, initial: impl Fn(u32) -> u64) -> Vec<(u32, u64)> {
        self.msrs.iter().map(|rule| (rule.msr, rule.value.apply(initial(rule.msr)))).collect()
    }
}

impl LeafRule {
    fn is_for(&self, entry: &CpuidEntry) -> bool {
        self.leaf == entry.function && self.subleaf == entry.index
    }

    fn apply(&self, entry: CpuidEntry) -> Result<CpuidEntry, CpuTemplateError> {
        let made = CpuidEntry {
            eax: self.eax.apply(entry.eax),
            ebx: self.ebx.apply(entry.ebx),
            ecx: self.ecx.apply(entry.ecx),
            edx: self.edx.apply(entry.edx),
            ..entry
        };
        let features = features_of(self.leaf, self.subleaf);
        let registers = [
            ("EAX", entry.eax, made.eax),
            ("EBX", entry.ebx, made.ebx),
            ("ECX", entry.ecx, made.ecx),
            ("EDX", entry.edx, made.edx),
        ];
        for ((register, host, wanted), features) in registers.into_iter().zip(features) {
            let bits = wanted & !host & features;
            if bits != 0 {
                return Err(CpuTemplateError::Unsupported {
                    leaf: self.leaf,
                    subleaf: self.subleaf,
                    register,
                    bits,
                });
            }
        }
        Ok(made)
    }
}

/// Returns whether a leaf describes the machine, the host's clock or the hypervisor. Coracle fills these for
/// each vCPU.
fn is_of_the_machine(leaf: u32) -> bool {
    matches!(leaf, 0xb | 0x15 | 0x16 | 0x1f | 0x4000_0000 | 0x4000_0010)
}

/// Returns the bits of EAX, EBX, ECX and EDX that announce a feature, so that a template must not invent
/// them. Bits that KVM does not list because Coracle or the CPU decides them are left out: TSC-deadline,
/// OSXSAVE, x2APIC and hypervisor in leaf 1 ECX, and HTT in leaf 1 EDX.
pub(super) fn features_of(leaf: u32, subleaf: u32) -> [u32; 4] {
    const ALL: u32 = u32::MAX;
    match (leaf, subleaf) {
        (0x1, _) => [0, 0, !(1 << 21 | 1 << 24 | 1 << 27 | 1 << 31), !(1 << 28)],
        // EAX of sub-leaf 0 is the number of the last sub-leaf.
        (0x7, 0) | (0x19 | 0x24, _) => [0, ALL, ALL, ALL],
        (0x7, _) => [ALL; 4],
        // These are the user states in XCR0. Sizes follow from them.
        (0xd, 0) => [ALL, 0, 0, ALL],
        (0xd, 1) => [ALL, 0, ALL, ALL],
        (0x4000_0001 | 0x8000_0021, _) => [ALL, 0, 0, 0],
        // ECX bit 1 (CmpLegacy) is topology.
        (0x8000_0001, _) => [0, 0, !(1 << 1), ALL],
        (0x8000_0008, _) => [0, ALL, 0, 0],
        (0x8000_0007 | 0x8000_000a, _) => [0, 0, 0, ALL],
        _ => [0; 4],
    }
}

fn limit(what: &'static str, count: usize, max: usize) -> Result<(), CpuTemplateError> {
    if count > max { Err(CpuTemplateError::TooMany { what, count, max }) } else { Ok(()) }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests;

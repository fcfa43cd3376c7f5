//! CPU templates: which of the host's CPUID bits and model-specific registers a guest may see.
//!
//! A template is read from JSON, or is the [`CpuTemplate::baseline`] that Coracle brings. It is applied to what KVM
//! supports, before [`crate::x86_64::cpuid::for_vcpu`] adds identity and topology. A template never makes a guest
//! believe in a feature that the host lacks: that is an error which names the bits.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use rule::Rule;

use super::cpuid::CpuidEntry;

mod baseline;
mod rule;

/// What to make of the host's CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTemplate {
    /// What becomes of the leaves of the host that `cpuid` does not name.
    #[serde(default)]
    pub other_leaves: OtherLeaves,
    /// Rules for CPUID leaves.
    #[serde(default)]
    pub cpuid: Vec<LeafRule>,
    /// Rules for model-specific registers.
    #[serde(default)]
    pub msrs: Vec<MsrRule>,
}

/// Whether leaves without a rule are passed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherLeaves {
    /// As the host has them.
    #[default]
    Keep,
    /// Not at all: the guest reads zeros.
    Hide,
}

/// The rules for one CPUID leaf. A register without a rule stays as the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafRule {
    /// EAX of the question.
    #[serde(with = "rule::hex32")]
    pub leaf: u32,
    /// ECX of the question, for leaves whose answer depends on it.
    #[serde(default, with = "rule::hex32", skip_serializing_if = "is_zero")]
    pub subleaf: u32,
    /// EAX of the answer.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub eax: Rule<u32>,
    /// EBX of the answer.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub ebx: Rule<u32>,
    /// ECX of the answer.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub ecx: Rule<u32>,
    /// EDX of the answer.
    #[serde(default, skip_serializing_if = "Rule::keeps_all")]
    pub edx: Rule<u32>,
}

/// The rule for one model-specific register, applied to the value that a new vCPU has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrRule {
    /// Number of the register.
    #[serde(with = "rule::hex32")]
    pub msr: u32,
    /// What becomes of its value.
    pub value: Rule<u64>,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuTemplateError {
    /// The text is not a template.
    #[error("it is no CPU template: {reason}; `coracle cpu dump` prints one")]
    Syntax {
        /// What is wrong, and where.
        reason: String,
    },
    /// More rules than CPUID can have leaves.
    #[error("it has {count} rules for {what}, and at most {most} are possible")]
    TooMany {
        /// CPUID leaves or model-specific registers.
        what: &'static str,
        /// As given.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// Two rules for one thing.
    #[error("it has two rules for {what}: leave one out")]
    Twice {
        /// The leaf or register.
        what: String,
    },
    /// The guest would be told of features that this host's KVM does not support.
    #[error(
        "it wants bits {bits:#x} of {register} in CPUID leaf {leaf:#x}.{subleaf}, which this host does not support: \
         another host or another --cpu has to do"
    )]
    Unsupported {
        /// EAX of the question.
        leaf: u32,
        /// ECX of the question.
        subleaf: u32,
        /// EAX, EBX, ECX or EDX of the answer.
        register: &'static str,
        /// The bits that the host lacks.
        bits: u32,
    },
}

impl CpuTemplate {
    /// The most rules for model-specific registers.
    pub const MOST_MSRS: usize = 64;
    /// The most rules for CPUID leaves: as many as KVM takes leaves (KVM_MAX_CPUID_ENTRIES).
    pub const MOST_LEAVES: usize = 256;

    /// Everything that the host has.
    pub fn host() -> CpuTemplate {
        CpuTemplate { other_leaves: OtherLeaves::Keep, cpuid: Vec::new(), msrs: Vec::new() }
    }

    /// The instructions of x86-64-v2, and nothing newer: what every server CPU since about 2010 has.
    pub fn baseline() -> CpuTemplate {
        baseline::template()
    }

    /// Reads a template.
    ///
    /// # Errors
    /// The text is no JSON, has an unknown key, or has two rules for one thing.
    pub fn from_json(text: &str) -> Result<CpuTemplate, CpuTemplateError> {
        // serde would take an array for the values of the fields in their order.
        if text.trim_start().starts_with('[') {
            let reason = "it is an array, and has to be an object".to_owned();
            return Err(CpuTemplateError::Syntax { reason });
        }
        let template: CpuTemplate = serde_json::from_str(text)
            .map_err(|error| CpuTemplateError::Syntax { reason: error.to_string() })?;
        limit("CPUID leaves", template.cpuid.len(), Self::MOST_LEAVES)?;
        limit("model-specific registers", template.msrs.len(), Self::MOST_MSRS)?;
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

    /// A template that gives exactly these leaves and registers on every host that can.
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

    /// What of `supported`, KVM's own list, the guest may see. Leaves that describe the machine and not the CPU
    /// (topology, frequencies, the hypervisor's signature) stay: rules for them have no effect.
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
            // A leaf that the host does not have: it is made of zeros.
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

    /// The values for the registers that the template has rules for, from those of a new vCPU.
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

/// Leaves that tell of the machine, the host's clock and the hypervisor: Coracle makes them for each vCPU.
fn is_of_the_machine(leaf: u32) -> bool {
    matches!(leaf, 0xb | 0x15 | 0x16 | 0x1f | 0x4000_0000 | 0x4000_0010)
}

/// The bits of EAX, EBX, ECX and EDX that announce a feature, so that they must not be invented. In leaf 1 ECX
/// those that KVM does not list and Coracle or the CPU decides are left out: TSC-deadline, OSXSAVE, x2APIC,
/// hypervisor; in EDX, HTT.
fn features_of(leaf: u32, subleaf: u32) -> [u32; 4] {
    const ALL: u32 = u32::MAX;
    match (leaf, subleaf) {
        (0x1, _) => [0, 0, !(1 << 21 | 1 << 24 | 1 << 27 | 1 << 31), !(1 << 28)],
        // EAX of sub-leaf 0 is the number of the last one.
        (0x7, 0) | (0x19 | 0x24, _) => [0, ALL, ALL, ALL],
        (0x7, _) => [ALL; 4],
        // The user states in XCR0; sizes follow from them.
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

fn limit(what: &'static str, count: usize, most: usize) -> Result<(), CpuTemplateError> {
    if count > most { Err(CpuTemplateError::TooMany { what, count, most }) } else { Ok(()) }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests;

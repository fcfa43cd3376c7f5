//! The rule of a template for one register, and its form in JSON.
//!
//! ```text
//! "0x80000000"                            exactly this value
//! { "keep": "0xf" }                       these bits as the host has them, the others 0
//! { "set": "0x1" }                        this bit 1, the others as the host has them
//! { "keep": "0xf0", "set": "0x1" }        both
//! ```

use std::fmt;
use std::ops::{BitAnd, BitOr};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A rule for one register. The guest sees `host & keep | set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule<T> {
    /// Bits that the guest sees as the host has them.
    pub keep: T,
    /// Bits that the guest sees as 1, whatever the host has.
    pub set: T,
}

impl<T: Word> Rule<T> {
    /// Returns the rule that gives `value`, whatever the host has.
    pub fn exactly(value: T) -> Rule<T> {
        Rule { keep: T::NONE, set: value }
    }

    /// Returns the rule that passes on `bits` of the host and clears all others.
    pub fn keeping(bits: T) -> Rule<T> {
        Rule { keep: bits, set: T::NONE }
    }

    /// Returns whether the rule changes nothing.
    pub fn keeps_all(&self) -> bool {
        self.keep == T::ALL && self.set == T::NONE
    }

    /// Returns the value that the guest sees if the host has `host`.
    pub fn apply(self, host: T) -> T {
        host & self.keep | self.set
    }
}

impl<T: Word> Default for Rule<T> {
    fn default() -> Self {
        Rule { keep: T::ALL, set: T::NONE }
    }
}

impl<T: Word> Serialize for Rule<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.keep == T::NONE {
            return Hex(self.set).serialize(serializer);
        }
        let keep = (self.keep != T::ALL).then_some(Hex(self.keep));
        let set = (self.set != T::NONE).then_some(Hex(self.set));
        Masks { keep, set }.serialize(serializer)
    }
}

impl<'de, T: Word> Deserialize<'de> for Rule<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Word> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Rule<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value such as \"0x1f\", or an object with \"keep\" and \"set\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rule<T>, E> {
                Hex::parse(text).map(|Hex(value)| Rule::exactly(value))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Rule<T>, A::Error> {
                let masks = Masks::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Rule {
                    keep: masks.keep.map_or(T::ALL, |Hex(keep)| keep),
                    set: masks.set.map_or(T::NONE, |Hex(set)| set),
                })
            }
        }

        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// A register that rules are for: 32 bits of CPUID, or 64 bits of a model-specific register.
pub trait Word:
    Copy + Eq + fmt::LowerHex + BitAnd<Output = Self> + BitOr<Output = Self> + TryFrom<u64>
{
    /// A value without any bit set.
    const NONE: Self;
    /// A value with every bit set.
    const ALL: Self;
}

impl Word for u32 {
    const NONE: u32 = 0;
    const ALL: u32 = u32::MAX;
}

impl Word for u64 {
    const NONE: u64 = 0;
    const ALL: u64 = u64::MAX;
}

/// Reads and writes the numbers of leaves and registers in the form of [`Hex`].
pub(super) mod hex32 {
    use super::{Deserialize, Deserializer, Hex, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(in super::super) fn serialize<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        Hex(*value).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        Hex::deserialize(deserializer).map(|Hex(value)| value)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "T: Word")]
struct Masks<T> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<Hex<T>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set: Option<Hex<T>>,
}

/// A number written as `"0x1f"`: JSON has no hexadecimal numbers of its own.
struct Hex<T>(T);

impl<T: Word> Hex<T> {
    fn parse<E: serde::de::Error>(text: &str) -> Result<Hex<T>, E> {
        let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let value = value.and_then(|value| T::try_from(value).ok());
        let bits = size_of::<T>().saturating_mul(8);
        value.map(Hex).ok_or_else(|| {
            E::custom(format_args!("`{text}` is not a hexadecimal number of {bits} bits, as in 0x1f"))
        })
    }
}

impl<T: Word> Serialize for Hex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de, T: Word> Deserialize<'de> for Hex<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer).map_err(D::Error::custom)?;
        Hex::parse(&text)
    }
}

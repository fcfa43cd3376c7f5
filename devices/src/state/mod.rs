//! The saved state of a device, and its encoding, which all devices share.
//!
//! A device keeps its state in a type of its own (`state.rs` beside the device), apart from the types with
//! which it runs, and encodes it as a [`SavedState`]. Restoring takes two steps, so that a machine whose
//! second device has a bad state does not change the first: the device checks the state and returns a
//! [`Restoration`], and applying that cannot fail.
//!
//! A state may come from a file of somebody else, so it counts as hostile. A device accepts only values that
//! it could have had itself, and the error names the field and the value. Nothing here knows a device, and
//! nothing here reads or writes files.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The state of one device: the version of its layout, and its encoding in the postcard format (version 1 of
/// that specification).
///
/// Each kind of device counts its own versions from 1. A device that changes what it saves takes the next
/// version, and still reads the older ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    version: u16,
    bytes: Vec<u8>,
}

impl SavedState {
    /// Encodes `state`, whose layout has the number `version`, from 1.
    ///
    /// A type that postcard cannot encode, such as a sequence whose length is not known, is a defect of the
    /// device. Then the result has version 0, which every [`decode`](Self::decode) refuses.
    pub fn encode(version: u16, state: &impl Serialize) -> Self {
        let encoded = postcard::to_allocvec(state);
        encoded.map_or(Self { version: 0, bytes: Vec::new() }, |bytes| Self { version, bytes })
    }

    /// Makes a state of its parts, which may be anybody's. [`decode`](Self::decode) checks them.
    pub fn from_parts(version: u16, bytes: Vec<u8>) -> Self {
        Self { version, bytes }
    }

    /// Returns the version of the layout. A device that knows several chooses the type by it.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Returns the encoded state.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes the state. `newest_version` is the newest that the caller knows.
    ///
    /// No length in the bytes is believed before the bytes themselves are there. So the memory is at most
    /// twice the number of bytes, multiplied by the size of the largest element of a list in `T`. `T` must
    /// not have a map, or a list whose elements take no bytes. The caller checks the values.
    ///
    /// # Errors
    /// The version is 0 or above `newest_version`, or the bytes are not exactly one `T`.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self, newest_version: u16) -> Result<T, StateError> {
        let Self { version, bytes } = self;
        if !(1..=newest_version).contains(version) {
            return Err(StateError::Version { version: *version, newest: newest_version });
        }
        let (state, rest) = postcard::take_from_bytes(bytes)
            .map_err(|reason| StateError::Encoding { len: bytes.len(), reason: reason.to_string() })?;
        if rest.is_empty() { Ok(state) } else { Err(StateError::TrailingBytes { extra: rest.len() }) }
    }
}

/// The step that puts a device into a state that the device has checked. Nothing has changed before.
#[must_use = "a device is restored only when its restoration is applied"]
pub struct Restoration<'a>(Box<dyn FnOnce() + 'a>);

impl<'a> Restoration<'a> {
    /// Makes a restoration of a step that cannot fail.
    pub fn new(step: impl FnOnce() + 'a) -> Self {
        Self(Box::new(step))
    }

    /// Makes the restoration of a device without state.
    pub fn nothing() -> Self {
        Self::new(|| ())
    }

    /// Puts the device into the state.
    pub fn apply(self) {
        (self.0)();
    }
}

/// The reason why a saved state cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state of one device is refused.
    #[error("{device}: {source}")]
    Device {
        /// The device's name in its machine.
        device: Cow<'static, str>,
        /// The reason.
        r#source: Box<StateError>,
    },
    /// There is a state for a device that the machine lacks.
    #[error("there is a state of a device '{device}', which this machine does not have")]
    UnknownDevice {
        /// The start of the name, without control characters.
        device: String,
    },
    /// A device of the machine has no state.
    #[error("the state of {device} is missing; a machine is restored with the states of all its devices")]
    MissingDevice {
        /// The device's name in its machine.
        device: Cow<'static, str>,
    },
    /// A device has more than one state.
    #[error("{device} has two states; it takes one")]
    SecondState {
        /// The device's name in its machine.
        device: Cow<'static, str>,
    },
    /// The layout of the state is not known.
    #[error("its state has version {version}; this build reads versions from 1 to {newest}")]
    Version {
        /// The version of the state.
        version: u16,
        /// The newest version that this build knows.
        newest: u16,
    },
    /// The device is of a kind whose state cannot be restored.
    #[error("a device of this kind takes no state in this version")]
    Unsupported,
    /// The bytes do not encode a state.
    #[error("the {len} bytes of its state cannot be decoded: {reason}")]
    Encoding {
        /// The number of bytes.
        len: usize,
        /// The decoder's reason.
        reason: String,
    },
    /// There are bytes after the state.
    #[error("{extra} bytes follow the end of its state")]
    TrailingBytes {
        /// The number of bytes.
        extra: usize,
    },
    /// A field has a value that the device cannot have.
    #[error("field `{field}` is {value:#x}: {allowed}")]
    Field {
        /// The field's name, with the index of an entry of a table.
        field: Cow<'static, str>,
        /// The value.
        value: u64,
        /// The values that the device can have.
        allowed: Cow<'static, str>,
    },
    /// A list has a length that the device cannot have.
    #[error("field `{field}` has {len} entries: {allowed}")]
    Length {
        /// The field's name.
        field: &'static str,
        /// The number of entries.
        len: usize,
        /// The lengths that the device can have.
        allowed: Cow<'static, str>,
    },
}

impl StateError {
    /// Adds the name of the device.
    pub fn of_device(self, device: impl Into<Cow<'static, str>>) -> Self {
        Self::Device { device: device.into(), r#source: Box::new(self) }
    }

    /// Adds the index of the entry to the name of a field that is a table.
    pub fn of_entry(self, index: impl Into<usize>) -> Self {
        match self {
            Self::Field { field, value, allowed } => {
                Self::Field { field: format!("{field}[{}]", index.into()).into(), value, allowed }
            }
            other => other,
        }
    }

    /// Makes the error of a state for a device named `device`, which may be any text.
    pub fn unknown_device(device: &str) -> Self {
        let start: String = device.chars().take(MAX_SHOWN).collect();
        Self::UnknownDevice { device: start.escape_debug().to_string() }
    }

    /// Makes the error of a field with a bad value. `allowed` describes the good ones.
    pub fn field(field: &'static str, value: impl Into<u64>, allowed: impl Into<Cow<'static, str>>) -> Self {
        Self::Field { field: field.into(), value: value.into(), allowed: allowed.into() }
    }
}

/// Checks that the value of `field` is at most `most`.
///
/// # Errors
/// The value is larger.
pub fn at_most<N: Into<u64> + Copy>(field: &'static str, value: N, most: N) -> Result<(), StateError> {
    let most = most.into();
    if value.into() <= most {
        return Ok(());
    }
    Err(StateError::field(field, value, format!("at most {most:#x}")))
}

/// Checks that the value of `field` has no other bits than `bits`.
///
/// # Errors
/// The value has another bit.
pub fn only_bits<N: Into<u64> + Copy>(field: &'static str, value: N, bits: N) -> Result<(), StateError> {
    let bits = bits.into();
    if value.into() & !bits == 0 {
        return Ok(());
    }
    Err(StateError::field(field, value, format!("only the bits of {bits:#x} can be set")))
}

/// Checks that the value of `field` is `only`.
///
/// # Errors
/// The value is another one.
pub fn exactly<N: Into<u64> + Copy>(field: &'static str, value: N, only: N) -> Result<(), StateError> {
    let only = only.into();
    if value.into() == only {
        return Ok(());
    }
    Err(StateError::field(field, value, format!("always {only:#x} here")))
}

/// The version of the state of a device without state, which has no bytes.
pub const NO_STATE_VERSION: u16 = 1;

/// Returns the state of a device that has none. It has a version all the same, for the day on which the
/// device gets one.
pub fn no_state() -> SavedState {
    SavedState::encode(NO_STATE_VERSION, &())
}

/// Checks the state of a device that has none.
///
/// # Errors
/// It has another version than [`no_state`], or bytes.
pub fn prepare_no_state(state: &SavedState) -> Result<Restoration<'static>, StateError> {
    state.decode::<()>(NO_STATE_VERSION).map(|()| Restoration::nothing())
}

/// The number of characters of an unknown device's name in an error: more than any name of a device has.
const MAX_SHOWN: usize = 32;

#[cfg(test)]
mod tests;

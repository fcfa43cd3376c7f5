//! Error types that this library's errors contain and that are not exported beside their subject, so that a
//! program can name and match each of them; and how an error is shown with its causes.

use std::error::Error;
use std::fmt;

pub use coracle_agent::protocol::agent::{OpenError, ProtocolError, SessionError, Step, Stream};
pub use coracle_arch::field;
pub use coracle_arch::x86_64::acpi::AcpiError;
pub use coracle_arch::x86_64::cpu_template::CpuTemplateError;
pub use coracle_arch::x86_64::cpuid::CpuFeature;
pub use coracle_arch::x86_64::image::ImageError as KernelImageError;
pub use coracle_arch::x86_64::input_file::InputFileError;
pub use coracle_arch::x86_64::load::LoadError;
pub use coracle_arch::x86_64::mptable::MpTableError;
pub use coracle_arch::x86_64::vcpu_state::VcpuStateError as VcpuFieldError;
pub use coracle_devices::backend::disk::{DiskOpenError, OverlayError};
pub use coracle_devices::backend::net::NetOpenError;
pub use coracle_devices::bus::BusError;
pub use coracle_devices::state::StateError as DeviceStateError;
pub use coracle_image::compression::{Compression, DecompressError};
pub use coracle_image::initramfs::{ArchiveError, InitrdError, LoaderError, ModulesError};
pub use coracle_image::kernel_image::{KernelError, UnpackError as KernelUnpackError};

/// Formats an error with its causes in one line: `error: cause: its cause`. A cause that an error's own
/// message already contains is not repeated.
///
/// ```
/// let error = coracle::Vm::builder().kernel("/no/such/kernel").build().err().unwrap();
/// // The messages of this library's errors contain their causes.
/// assert_eq!(coracle::error::whole(&error), error.to_string());
/// ```
pub fn whole(error: &dyn Error) -> String {
    Whole(error).to_string()
}

/// Displays an error as [`whole`] does.
pub(crate) struct Whole<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Compare between two separators, so that a part of another sentence is not mistaken for the
            // cause.
            if !format!(": {line}: ").contains(&format!(": {text}: ")) {
                line.push_str(": ");
                line.push_str(&text);
            }
            source = cause.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("bottom")]
        Bottom,
        #[error("middle")]
        Silent(#[source] Box<Layer>),
        #[error("top: {0}")]
        Telling(#[source] Box<Layer>),
    }

    #[test]
    fn each_cause_is_said_once() {
        let silent = || Box::new(Layer::Silent(Box::new(Layer::Bottom)));
        assert_eq!(whole(&*silent()), "middle: bottom");
        assert_eq!(whole(&Layer::Telling(silent())), "top: middle: bottom");
        assert_eq!(whole(&Layer::Telling(Box::new(Layer::Bottom))), "top: bottom");
    }
}

//! The builder's methods that only set one field. The list of settings (`src/config/settings.rs`) has their
//! names, types and meanings.

use super::VmBuilder;
// The list says which types it needs.
#[cfg_attr(not(test), expect(clippy::wildcard_imports))]
use crate::config::*;

macro_rules! setters {
    ($($name:ident: $type:ty, $about:literal;)*) => {
        impl VmBuilder {
            $(
                #[doc = concat!("Sets `", stringify!($name), "` of the configuration: ", $about, ".")]
                pub fn $name(self, $name: $type) -> VmBuilder {
                    self.configure(|config| config.$name = $name.into())
                }
            )*
        }
    };
}

builder_methods!(setters);

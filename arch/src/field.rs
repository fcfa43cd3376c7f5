//! The names that error messages use for the settings of a machine: the fields of the library's
//! configuration, or their counterparts in a program, such as the flags of the command.

use std::fmt;
use std::sync::OnceLock;

/// A setting that an error is about. It displays as the field of the configuration, as in `memory` or
/// `disks[0].path`, or under the name that [`name_fields`] gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    name: &'static str,
    setting: &'static str,
    item: Option<(usize, &'static str)>,
}

/// Makes every [`Field`] of this process display as the name that `name_of` returns, if it returns one: for a
/// program whose users know flags or keys of an API instead of fields. Only the first call has an effect, and
/// it must come before the first error. A library that others link does not call it.
pub fn name_fields(name_of: fn(Field) -> Option<String>) {
    // All errors of a process use the same names.
    let _ = NAME_OF.set(name_of);
}

impl Field {
    /// A field with a different name in the config file.
    const fn new(name: &'static str, setting: &'static str) -> Field {
        Field { name, setting, item: None }
    }

    /// A field with the same name in the config file.
    pub const fn same(name: &'static str) -> Field {
        Field::new(name, name)
    }

    /// The field `key` of one item of this list, counted from 0.
    #[must_use]
    pub const fn item(self, index: usize, key: &'static str) -> Field {
        Field { item: Some((index, key)), ..self }
    }

    /// The name of the whole setting in the config file, as in `disks`.
    pub const fn setting(self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = NAME_OF.get().and_then(|name_of| name_of(*self)) {
            return f.write_str(&name);
        }
        f.write_str(self.name)?;
        self.item.map_or(Ok(()), |(index, key)| write!(f, "[{index}].{key}"))
    }
}

static NAME_OF: OnceLock<fn(Field) -> Option<String>> = OnceLock::new();

/// Defines the fields, and [`ALL`] of them. A device that is counted (CONTRIBUTING.md, "Counts") has its
/// field in its own file.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: Field = $value;)*

        /// Every field of this file.
        pub const ALL: &[Field] = &[$($name),*];
    };
}

fields! {
    /// The host that the guest may run on.
    ACCEL = Field::same("accel");
    /// Parameters for the kernel command line.
    APPEND = Field::same("append");
    /// The time that an emulated host may take to come up.
    BOOT_LIMIT = Field::new("boot_limit", "host_timeout");
    /// The time that the guest may take to its init.
    BOOT_TIMEOUT = Field::same("boot_timeout");
    /// The CPU model.
    CPU = Field::same("cpu");
    /// The host's CPUs for the vCPUs.
    CPU_AFFINITY = Field::same("cpu_affinity");
    /// The CPU time that the vCPUs may take.
    CPU_QUOTA = Field::same("cpu_quota");
    /// The number of vCPUs.
    VCPUS = Field::new("vcpus", "cpus");
    /// The disks.
    DISKS = Field::same("disks");
    /// The time that the guest may have nothing to do.
    IDLE_TIMEOUT = Field::same("idle_timeout");
    /// The initrds.
    INITRDS = Field::same("initrds");
    /// Whether the kernel chooses its address.
    KASLR = Field::same("kaslr");
    /// The kernel.
    KERNEL = Field::same("kernel");
    /// The time that a DHCP server may take.
    LEASE_LIMIT = Field::new("NetworkSettings::lease_limit", "lease_limit");
    /// The size of RAM and what backs it.
    MEMORY = Field::same("memory");
    /// The directory of the kernel's modules.
    MODULES = Field::same("modules");
    /// The network cards.
    NETS = Field::same("nets");
    /// How the kernel is entered.
    PROTOCOL = Field::same("protocol");
    /// The root file system.
    ROOT = Field::same("root");
    /// The serial port.
    SERIAL = Field::same("serial");
    /// The time that the guest may run.
    TIMEOUT = Field::same("timeout");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_shown_as_in_the_configuration_until_a_program_names_it() {
        let shown = || [MEMORY, VCPUS, DISKS, DISKS.item(1, "path")].map(|field| field.to_string());
        assert_eq!(shown(), ["memory", "vcpus", "disks", "disks[1].path"]);
    }
}

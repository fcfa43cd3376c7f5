//! The forms in which `root=` names a device. A guest's loader looks for them, and the machine refuses wrong
//! ones before it boots (Linux, Documentation/admin-guide/kernel-parameters.txt, and the forms of
//! `fstab(5)`).

/// A device in one of the forms of `root=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDevice {
    /// `/dev/NAME`.
    Path(String),
    /// `MAJOR:MINOR`.
    Numbers(u32, u32),
    /// `PARTLABEL=NAME`: the name of a partition in a GPT.
    PartitionLabel(String),
    /// `PARTUUID=ID`: the identity of a partition, in lower case. For an MBR, it is the signature and number:
    /// `0123abcd-01`.
    PartitionUuid(String),
    /// `UUID=ID`: the identity of a file system, in lower case.
    Uuid(String),
    /// `LABEL=NAME`: the name of a file system.
    Label(String),
}

impl RootDevice {
    /// The known forms, for messages.
    pub const FORMS: &str = "/dev/NAME, UUID=, LABEL=, PARTUUID= or PARTLABEL= with a value, or MAJOR:MINOR";

    /// Reads the value of `root=`; `None` for a form that is not known.
    pub fn parse(root: &str) -> Option<Self> {
        if root.strip_prefix("/dev/").is_some_and(|name| !name.is_empty()) {
            return Some(Self::Path(root.to_owned()));
        }
        if let Some((kind, value)) = root.split_once('=') {
            let is_id = value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
            return match kind {
                _ if value.is_empty() => None,
                "PARTLABEL" => Some(Self::PartitionLabel(value.to_owned())),
                "LABEL" => Some(Self::Label(value.to_owned())),
                "PARTUUID" if is_id => Some(Self::PartitionUuid(value.to_ascii_lowercase())),
                "UUID" if is_id => Some(Self::Uuid(value.to_ascii_lowercase())),
                _ => None,
            };
        }
        let (major, minor) = root.split_once(':')?;
        Some(Self::Numbers(major.parse().ok()?, minor.parse().ok()?))
    }

    /// Returns whether Linux itself does not know this form, so that only an initramfs can find the device.
    pub fn needs_initramfs(&self) -> bool {
        matches!(self, Self::Uuid(_) | Self::Label(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_apart() {
        for (root, device) in [
            ("/dev/vda1", RootDevice::Path("/dev/vda1".into())),
            ("254:1", RootDevice::Numbers(254, 1)),
            ("PARTLABEL=my root", RootDevice::PartitionLabel("my root".into())),
            ("PARTUUID=0123ABCD-01", RootDevice::PartitionUuid("0123abcd-01".into())),
            ("UUID=0A-b", RootDevice::Uuid("0a-b".into())),
            ("LABEL=a=b", RootDevice::Label("a=b".into())),
        ] {
            assert_eq!(RootDevice::parse(root), Some(device), "{root}");
        }
        for unknown in
            ["vda", "/dev/", "/dev", "UUID=", "UUID=xyz", "PARTUUID=0/PARTNROFF=1", "ID=1", "254:", "a:b", ""]
        {
            assert_eq!(RootDevice::parse(unknown), None, "{unknown}");
        }
    }
}

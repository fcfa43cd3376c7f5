//! A guest's RAM: its size, and what backs it on the host.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{ConfigError, MemorySize};

/// A size and a backing that are compatible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct MemoryConfig {
    size: MemorySize,
    backing: MemoryBacking,
}

/// The backing of the guest's RAM on the host. In each case, a page is allocated when it is first touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryBacking {
    /// Memory of the process, in transparent huge pages if the host has them.
    #[default]
    Anonymous,
    /// Huge pages that the administrator has reserved. The guest's are all claimed when the machine is built,
    /// so that the guest never runs out of them.
    HugePages(HugePageSize),
    /// A memory file (memfd_create), which other processes can map too.
    Memfd,
}

/// The sizes of huge pages on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl MemoryConfig {
    /// Creates the configuration of `size` bytes of RAM in `backing`.
    ///
    /// # Errors
    /// The size is not a multiple of the huge page size.
    pub fn new(size: MemorySize, backing: MemoryBacking) -> Result<MemoryConfig, ConfigError> {
        if let MemoryBacking::HugePages(page) = backing
            && !size.bytes().is_multiple_of(page.bytes())
        {
            return Err(ConfigError::HugePageMultiple { size, page });
        }
        Ok(MemoryConfig { size, backing })
    }

    /// Returns the size.
    pub fn size(self) -> MemorySize {
        self.size
    }

    /// Returns what backs the memory.
    pub fn backing(self) -> MemoryBacking {
        self.backing
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        self.size.bytes()
    }
}

impl HugePageSize {
    /// Returns the size of a page in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            HugePageSize::Size2M => 2 << 20,
            HugePageSize::Size1G => 1 << 30,
        }
    }
}

impl From<MemorySize> for MemoryConfig {
    /// Creates the configuration of anonymous memory of this size.
    fn from(size: MemorySize) -> Self {
        MemoryConfig { size, backing: MemoryBacking::Anonymous }
    }
}

impl FromStr for MemoryConfig {
    type Err = ConfigError;

    /// Parses a size, as in `512M`, or `size=4G,hugepages=2M` or `size=4G,memfd`. The size may be omitted.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let syntax = || ConfigError::Memory { text: text.into() };
        if !text.contains(['=', ',']) && text != "memfd" {
            return Ok(text.parse::<MemorySize>()?.into());
        }
        let (mut size, mut backing) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("size", value)) if size.is_none() => size = Some(value.parse()?),
                Some(("hugepages", value)) if backing.is_none() => {
                    backing = Some(MemoryBacking::HugePages(huge_page_size(value).ok_or_else(syntax)?));
                }
                None if part == "memfd" && backing.is_none() => backing = Some(MemoryBacking::Memfd),
                _ => return Err(syntax()),
            }
        }
        Self::new(size.unwrap_or_default(), backing.unwrap_or_default())
    }
}

impl TryFrom<String> for MemoryConfig {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<MemoryConfig> for String {
    fn from(memory: MemoryConfig) -> String {
        memory.to_string()
    }
}

impl fmt::Display for MemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backing {
            MemoryBacking::Anonymous => self.size.fmt(f),
            MemoryBacking::HugePages(page) => write!(f, "size={},hugepages={page}", self.size),
            MemoryBacking::Memfd => write!(f, "size={},memfd", self.size),
        }
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HugePageSize::Size2M => "2M",
            HugePageSize::Size1G => "1G",
        })
    }
}

fn huge_page_size(text: &str) -> Option<HugePageSize> {
    match text {
        "2M" => Some(HugePageSize::Size2M),
        "1G" => Some(HugePageSize::Size1G),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_backing_are_read_in_any_order() {
        let huge = MemoryBacking::HugePages;
        let cases = [
            ("512M", 512, MemoryBacking::Anonymous),
            ("size=512M", 512, MemoryBacking::Anonymous),
            ("size=4G,hugepages=2M", 4096, huge(HugePageSize::Size2M)),
            ("hugepages=1G,size=4G", 4096, huge(HugePageSize::Size1G)),
            ("hugepages=2M", 256, huge(HugePageSize::Size2M)),
            ("size=1G,memfd", 1024, MemoryBacking::Memfd),
            ("memfd", 256, MemoryBacking::Memfd),
        ];
        for (text, mib, backing) in cases {
            let memory: MemoryConfig = text.parse().unwrap();
            assert_eq!((memory.size().mib(), memory.backing()), (mib, backing), "{text}");
            let json = serde_json::to_string(&memory).unwrap();
            assert_eq!(serde_json::from_str::<MemoryConfig>(&json).unwrap(), memory, "{json}");
        }
    }

    #[test]
    fn sizes_that_huge_pages_cannot_make_up_are_refused() {
        for text in ["size=3M,hugepages=2M", "size=1536M,hugepages=1G"] {
            assert!(
                matches!(text.parse::<MemoryConfig>(), Err(ConfigError::HugePageMultiple { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn other_words_are_refused() {
        for text in
            ["size=", "size=1G,hugepages=4K", "size=1G,size=1G", "1G,memfd", "hugepages=2M,memfd", ",", "a=b"]
        {
            assert!(text.parse::<MemoryConfig>().is_err(), "{text}");
        }
    }
}

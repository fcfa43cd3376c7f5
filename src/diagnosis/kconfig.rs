//! The options that a Linux kernel was built with. They come from the copy that `CONFIG_IKCONFIG` leaves in
//! its image, or else from a file beside the image.
//!
//! They are read only for a kernel that has failed. The copy is searched in guest RAM, where the kernel lies
//! unpacked whatever its compression. RAM and files are untrusted, so every size has a limit.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use coracle_arch::regular_file;
use coracle_image::compression::Compression;
use memchr::memmem;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The options of one kernel.
#[derive(Debug, Clone)]
pub(super) struct KernelConfig {
    text: String,
    source: ConfigSource,
}

/// The source of a kernel's options.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigSource {
    /// In the kernel itself (`CONFIG_IKCONFIG`).
    Kernel,
    /// A file beside the kernel's image, which is assumed to belong to it.
    File(PathBuf),
}

impl std::fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConfigSource::Kernel => write!(f, "its own configuration"),
            ConfigSource::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The setting of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    BuiltIn,
    Module,
    Off,
}

impl KernelConfig {
    /// Searches `ranges` of guest RAM, to which the kernel at `path` was loaded, and then the directory of
    /// `path`.
    pub(super) fn find(ram: &GuestMemoryMmap, ranges: &[Range<u64>], path: &Path) -> Option<KernelConfig> {
        let in_kernel = || search(ram, ranges, IN_KERNEL_START, IN_KERNEL_MAX, unpack);
        let release = || search(ram, ranges, BANNER, RELEASE_MAX, release);
        match in_kernel() {
            Some(text) => Some(KernelConfig { text, source: ConfigSource::Kernel }),
            None => beside(path, release().as_deref()),
        }
    }

    pub(super) fn source(&self) -> &ConfigSource {
        &self.source
    }

    /// Returns the setting of an option by its name with `CONFIG_`. An option that the text lacks is off.
    pub(super) fn setting(&self, option: &str) -> Setting {
        match self.value(option) {
            Some("y") => Setting::BuiltIn,
            Some("m") => Setting::Module,
            _ => Setting::Off,
        }
    }

    /// Returns the text after the equals sign, without quotes.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        let value =
            self.text.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('=')).map(str::trim)?;
        Some(value.trim_matches('"'))
    }

    #[cfg(test)]
    pub(super) fn of_text(text: &str) -> KernelConfig {
        KernelConfig { text: text.to_owned(), source: ConfigSource::Kernel }
    }
}

/// Finds `mark` in `ranges` of RAM and passes at most `length` bytes after it to `read`. Returns the first
/// result, among the first few marks.
fn search<T>(
    ram: &GuestMemoryMmap,
    ranges: &[Range<u64>],
    mark: &[u8],
    length: usize,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let finder = memmem::Finder::new(mark);
    let mut buffer = vec![0; SEARCH_CHUNK];
    let mut tries = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(SEARCH_CHUNK);
            let chunk = buffer.get_mut(..wanted)?;
            if ram.read_slice(chunk, GuestAddress(at)).is_err() {
                break;
            }
            for offset in finder.find_iter(chunk) {
                let after = at + (offset + mark.len()) as u64;
                if let Some(found) = read(&bytes_at(ram, after, range.end, length)) {
                    return Some(found);
                }
                tries += 1;
                if tries == MAX_TRIES {
                    return None;
                }
            }
            // The next chunk begins so that a mark across the border lies in it completely.
            let step = wanted.saturating_sub(mark.len().saturating_sub(1)).max(1);
            at += step as u64;
        }
    }
    None
}

fn bytes_at(ram: &GuestMemoryMmap, start: u64, end: u64, most: usize) -> Vec<u8> {
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(most);
    let mut bytes = vec![0; length];
    match ram.read_slice(&mut bytes, GuestAddress(start)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// Unpacks the text after the mark: a gzip stream (Linux, kernel/configs.c).
fn unpack(bytes: &[u8]) -> Option<String> {
    as_config(Compression::Gzip.decompress(bytes, TEXT_MAX).ok()?)
}

/// Returns the release after the banner's first words, such as 6.1.0-56-cloud-amd64.
fn release(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == b' ').next()?;
    let valid = text.first()?.is_ascii_digit()
        && text.len() < RELEASE_MAX
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_+~".contains(byte));
    valid.then(|| String::from_utf8_lossy(text).into_owned())
}

/// Reads a configuration in the directory of the kernel, as installed by distributions or left by a build.
fn beside(kernel: &Path, release: Option<&str>) -> Option<KernelConfig> {
    files_beside(kernel, release).into_iter().find_map(|path| {
        let text = read_file(&path)?;
        Some(KernelConfig { text, source: ConfigSource::File(path) })
    })
}

/// Returns the file beside a kernel that has its options.
pub(crate) fn config_beside(kernel: &Path, release: Option<&str>) -> Option<PathBuf> {
    files_beside(kernel, release).into_iter().find(|path| read_file(path).is_some())
}

/// Returns the files that may have the options of a kernel.
fn files_beside(kernel: &Path, release: Option<&str>) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (kernel.parent(), kernel.file_name()) else { return Vec::new() };
    let name = name.to_string_lossy();
    let suffix = ["vmlinuz-", "vmlinux-", "bzImage-"].iter().find_map(|start| name.strip_prefix(start));
    let named = release.into_iter().chain(suffix).map(|suffix| format!("config-{suffix}"));
    named.chain([".config".to_owned(), "config".to_owned()]).map(|file| folder.join(file)).collect()
}

fn read_file(path: &Path) -> Option<String> {
    let (file, _) = regular_file::open(path).ok()?;
    let mut text = Vec::new();
    file.take(TEXT_MAX as u64).read_to_end(&mut text).ok()?;
    as_config(text)
}

fn as_config(text: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(text).ok()?;
    text.lines().any(|line| line.starts_with("CONFIG_")).then_some(text)
}

/// The mark before the packed text in a kernel (kernel/configs.c).
const IN_KERNEL_START: &[u8] = b"IKCFG_ST";
const BANNER: &[u8] = b"Linux version ";
/// The largest number of packed bytes that are read. A configuration with all options takes some 70 KiB.
const IN_KERNEL_MAX: usize = 512 * 1024;
/// The largest number of bytes of a configuration's text: ten times the largest that exists.
const TEXT_MAX: usize = 4 << 20;
/// `utsname.release` has 64 characters and its NUL.
const RELEASE_MAX: usize = 65;
const SEARCH_CHUNK: usize = 256 * 1024;
/// The largest number of marks that are tried: they may occur by chance, or by a guest's design.
const MAX_TRIES: u32 = 8;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    const RAM: u64 = 2 << 20;

    fn ram(pieces: &[(u64, &[u8])]) -> GuestMemoryMmap {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        for (address, bytes) in pieces {
            ram.write_slice(bytes, GuestAddress(*address)).unwrap();
        }
        ram
    }

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        [IN_KERNEL_START, &encoder.finish().unwrap(), b"IKCFG_ED"].concat()
    }

    fn found(ram: &GuestMemoryMmap, path: &Path) -> Option<KernelConfig> {
        KernelConfig::find(ram, std::slice::from_ref(&(0x1000..RAM)), path)
    }

    #[test]
    fn options_are_read_as_kconfig_writes_them() {
        let config = KernelConfig::of_text(
            "# Linux/x86 6.1 Kernel Configuration\nCONFIG_TTY=y\nCONFIG_TTY_PRINTK=m\n\
             # CONFIG_SERIAL_8250 is not set\nCONFIG_INITRAMFS_SOURCE=\"a b\"\n",
        );
        assert_eq!(config.setting("CONFIG_TTY"), Setting::BuiltIn);
        assert_eq!(config.setting("CONFIG_TTY_PRINTK"), Setting::Module);
        assert_eq!(config.setting("CONFIG_SERIAL_8250"), Setting::Off);
        assert_eq!(config.setting("CONFIG_NO_SUCH"), Setting::Off);
        assert_eq!(config.value("CONFIG_INITRAMFS_SOURCE"), Some("a b"));
    }

    #[test]
    fn copy_in_the_kernel_is_found_across_chunks() {
        let border = 0x1000 + SEARCH_CHUNK as u64;
        for start in [0x1000, border - 4, border, RAM - 200] {
            let ram = ram(&[(start, &packed("CONFIG_A=y\n"))]);
            let config = found(&ram, Path::new("/none/kernel")).unwrap_or_else(|| panic!("at {start:#x}"));
            assert_eq!(config.setting("CONFIG_A"), Setting::BuiltIn);
            assert_eq!(config.source(), &ConfigSource::Kernel);
        }
    }

    #[test]
    fn mark_without_a_configuration_is_passed_over_a_few_times() {
        let good = packed("CONFIG_A=y\n");
        let once = ram(&[(0x1000, b"IKCFG_ST by chance"), (0x8000, &good)]);
        assert!(found(&once, Path::new("/none/kernel")).is_some());
        let hostile = b"IKCFG_ST".repeat(20);
        let often = ram(&[(0x1000, &hostile), (0x8000, &good)]);
        assert!(found(&often, Path::new("/none/kernel")).is_none());
    }

    #[test]
    fn stream_that_unpacks_without_end_is_refused() {
        for start in ["", "CONFIG_A=y\n"] {
            let bomb = packed(&(start.to_owned() + &"\n".repeat(64 << 20)));
            assert!(bomb.len() < IN_KERNEL_MAX);
            assert!(found(&ram(&[(0x1000, &bomb)]), Path::new("/none/kernel")).is_none(), "{start:?}");
        }
    }

    #[test]
    fn file_beside_the_kernel_is_found_by_its_release() {
        let folder = TempDir::new().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.as_path().join(name), text).unwrap();
        file("config", "CONFIG_A=y\n");
        file("config-6.1.0-7-amd64", "CONFIG_B=y\n");
        let with_banner = ram(&[(0x2000, b"Linux version %s\0Linux version 6.1.0-7-amd64 (gcc)")]);
        let config = found(&with_banner, &folder.as_path().join("vmlinux")).unwrap();
        assert_eq!(config.setting("CONFIG_B"), Setting::BuiltIn);
        let by_name = found(&ram(&[]), &folder.as_path().join("vmlinuz-6.1.0-7-amd64")).unwrap();
        assert_eq!(by_name.setting("CONFIG_B"), Setting::BuiltIn);
        let plain = found(&ram(&[]), &folder.as_path().join("vmlinux")).unwrap();
        assert_eq!(plain.source(), &ConfigSource::File(folder.as_path().join("config")));
    }

    #[test]
    fn file_that_is_no_configuration_is_ignored() {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.as_path().join("config"), "[core]\nrepositoryformatversion = 0\n").unwrap();
        std::fs::create_dir(folder.as_path().join(".config")).unwrap();
        assert!(found(&ram(&[]), &folder.as_path().join("vmlinux")).is_none());
    }

    #[test]
    fn release_of_a_hostile_banner_stays_in_its_folder() {
        assert_eq!(release(b"6.1.0/../../etc/shadow "), None);
        assert_eq!(release(b"6.1.0-56-cloud-amd64 (debian)").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(release(b"%s version %s"), None);
        assert_eq!(release(&[b'6'; RELEASE_MAX]), None);
    }
}

//! The guest's description of its machine: kernel, processors, memory and devices, one line each.

use std::fs;
use std::path::Path;

/// Prints the report on the console.
pub(super) fn print() {
    println!("coracle guest");
    println!("  kernel   {}", read("/proc/sys/kernel/osrelease"));
    println!("  cpus     {}", processors());
    println!("  memory   {}", memory(&read("/proc/meminfo")));
    println!("  console  {}", read("/sys/class/tty/console/active"));
    println!("  block    {}", listed("/sys/block"));
    println!("  network  {}", listed("/sys/class/net"));
    println!("  virtio   {}", virtio_devices());
    println!("  rtc      {}", listed("/sys/class/rtc"));
}

fn processors() -> String {
    let online = read("/sys/devices/system/cpu/online");
    match count_of_ranges(&online) {
        Some(count) => format!("{count} online"),
        None => format!("unknown ({online})"),
    }
}

/// Returns the count of numbers in a kernel list such as `0-3,8`
/// (`Documentation/admin-guide/cputopology.rst`).
fn count_of_ranges(list: &str) -> Option<u64> {
    list.split(',')
        .map(|range| match range.split_once('-') {
            None => range.parse::<u64>().ok().map(|_| 1),
            Some((first, last)) => {
                let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                last.checked_sub(first)?.checked_add(1)
            }
        })
        .sum()
}

/// Returns the total of `/proc/meminfo` in MiB.
fn memory(meminfo: &str) -> String {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    total.map_or_else(|| "unknown".to_owned(), |kib| format!("{} MiB", kib / 1024))
}

fn virtio_devices() -> String {
    let devices = entries("/sys/bus/virtio/devices").into_iter().map(|name| {
        let driver = fs::read_link(format!("/sys/bus/virtio/devices/{name}/driver"));
        match driver.ok().as_deref().and_then(Path::file_name) {
            Some(driver) => format!("{name} ({})", driver.to_string_lossy()),
            None => format!("{name} (no driver)"),
        }
    });
    joined(&devices.collect::<Vec<_>>())
}

fn listed(directory: &str) -> String {
    joined(&entries(directory))
}

fn joined(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

fn entries(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| format!("unknown ({error})"), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_processors_are_counted() {
        assert_eq!(count_of_ranges("0"), Some(1));
        assert_eq!(count_of_ranges("0-3,8"), Some(5));
        assert_eq!(count_of_ranges("unknown"), None);
        assert_eq!(count_of_ranges("3-0"), None);
    }

    #[test]
    fn memory_is_told_in_mebibytes() {
        assert_eq!(memory("MemTotal:         250880 kB\nMemFree: 1 kB\n"), "245 MiB");
        assert_eq!(memory(""), "unknown");
    }
}

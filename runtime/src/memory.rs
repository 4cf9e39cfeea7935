//! What Linux says of this process's memory, and is told of it. Elsewhere it says nothing and is told nothing.

use std::fs;

use marionette_models::bundle::WEIGHTS;

/// What a process holds in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Now.
    pub now: u64,
    /// The most that it ever was.
    pub peak: u64,
}

impl Resident {
    /// As it will be once all of a bundle's mapped weights were read.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { now: self.now.saturating_add(mapped_only(WEIGHTS)), ..self }
    }
}

/// What this process holds: `VmRSS` and `VmHWM` of Linux's `/proc/self/status`.
pub fn resident() -> Option<Resident> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(Resident { now: kib(&status, "VmRSS:")?, peak: kib(&status, "VmHWM:")? })
}

/// The memory of the whole system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    /// All of it.
    pub total: u64,
    /// What a program may take without others going to disk.
    pub available: u64,
}

/// What the system has: `MemTotal` and `MemAvailable` of Linux's `/proc/meminfo`.
pub fn system() -> Option<System> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    Some(System { total: kib(&info, "MemTotal:")?, available: kib(&info, "MemAvailable:")? })
}

/// How many bytes of the file of this name are mapped and not in memory: they will be once they are read.
fn mapped_only(file_name: &str) -> u64 {
    fs::read_to_string("/proc/self/smaps").map_or(0, |maps| mapped_only_of(&maps, file_name))
}

fn mapped_only_of(maps: &str, file_name: &str) -> u64 {
    let end = format!("/{file_name}");
    let (mut is_of_file, mut bytes) = (false, 0_u64);
    for line in maps.lines() {
        // A mapping's first line begins with its addresses; the others with a name and a colon.
        if line.split_ascii_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            is_of_file = line.ends_with(&end);
        } else if is_of_file {
            bytes = bytes.saturating_add(kib(line, "Size:").unwrap_or(0));
            bytes = bytes.saturating_sub(kib(line, "Rss:").unwrap_or(0));
        }
    }
    bytes
}

/// The number of KiB that a line of this name gives, in bytes.
fn kib(lines: &str, name: &str) -> Option<u64> {
    let value = lines.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Asks for this process's anonymous memory in huge pages, wherever a whole one is in use already: nothing grows. A token reads every
/// weight once; with pages of 4 KiB, finding them takes a twentieth of the time where a machine is virtual (two levels of page
/// tables).
pub fn collapse() {
    #[cfg(target_os = "linux")]
    linux::collapse();
}

/// Gives back what the allocator keeps of freed memory: between blocks in use too, where nothing else would ever give it back. Opening
/// a graph leaves a lot of it, from weights that were turned or packed.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointers, and gives back only what nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    /// Of x86-64, and of 64-bit ARM with pages of 4 KiB.
    const HUGE: usize = 2 << 20;

    pub(super) fn collapse() {
        let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
        for range in maps.lines().filter_map(anonymous) {
            let (mut at, end) = (range.0.next_multiple_of(HUGE), range.1);
            while at + HUGE <= end {
                // Neighbours that are in use are asked for together.
                let mut stop = at;
                while stop + HUGE <= end && is_resident(stop) {
                    stop += HUGE;
                }
                if stop > at {
                    // SAFETY: the advice changes where the pages lie, not what they hold.
                    unsafe { libc::madvise(at as *mut libc::c_void, stop - at, libc::MADV_COLLAPSE) };
                }
                at = stop.max(at + HUGE);
            }
        }
    }

    fn page_size() -> usize {
        // SAFETY: it takes no pointers.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(HUGE).max(4096)
    }

    /// The first and last address of a writable private mapping without a file, of a line of `/proc/self/maps`.
    pub(super) fn anonymous(line: &str) -> Option<(usize, usize)> {
        let mut fields = line.split_ascii_whitespace();
        let (range, access) = (fields.next()?, fields.next()?);
        let file = fields.nth(3);
        if access != "rw-p" || file.is_some_and(|file| file != "[heap]") {
            return None;
        }
        let (first, last) = range.split_once('-')?;
        Some((usize::from_str_radix(first, 16).ok()?, usize::from_str_radix(last, 16).ok()?))
    }

    /// Whether every page of a huge page's range is in memory.
    fn is_resident(at: usize) -> bool {
        let mut pages = [0_u8; HUGE / 4096];
        // SAFETY: one byte a page is written, and a page has at least 4096 bytes.
        let known = unsafe { libc::mincore(at as *mut libc::c_void, HUGE, pages.as_mut_ptr()) };
        known == 0 && pages.iter().take(HUGE / page_size()).all(|page| page & 1 == 1)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn anonymous_mappings_are_told_from_others() {
        let line = "7f1200000000-7f1200400000 rw-p 00000000 00:00 0 ";
        assert_eq!(linux::anonymous(line), Some((0x7f12_0000_0000, 0x7f12_0040_0000)));
        assert!(linux::anonymous("55d0-55e0 rw-p 00000000 00:00 0    [heap]").is_some());
        for other in [
            "7f12-7f13 r--p 00000000 00:00 0",
            "7f12-7f13 rw-p 00000000 08:01 77   /usr/lib/libc.so.6",
            "7ffd-7ffe rw-p 00000000 00:00 0    [stack]",
            "",
        ] {
            assert_eq!(linux::anonymous(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_held_is_told_from_what_is_only_mapped() {
        let resident = resident().unwrap();
        assert!(resident.now > 1 << 20 && resident.now <= resident.peak, "{resident:?}");
        let maps = "7f00-7f10 r--p 00000000 08:01 7    /b/weights.bin\nSize:   100 kB\nRss:    40 kB\nPss:   40 kB\n\
                    7f10-7f20 r--p 00019000 08:01 8    /b/other.bin\nSize:    100 kB\nRss:      0 kB\n\
                    7f20-7f30 rw-p 00000000 00:00 0\nSize:    100 kB\nRss:      0 kB\n\
                    7f30-7f40 r--p 00032000 08:01 7    /a b/weights.bin\nSize:     8 kB\nRss:       0 kB\n";
        assert_eq!(mapped_only_of(maps, "weights.bin"), (60 + 8) * 1024);
        assert_eq!(mapped_only_of(maps, "bin"), 0);
    }

    #[test]
    fn memory_keeps_its_values() {
        let values: Vec<u64> = (0..1 << 20).collect();
        collapse();
        assert!((0..1 << 20).eq(values));
    }
}

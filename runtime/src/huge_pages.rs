//! Larger pages for the memory that a graph reads again and again. A token reads every weight once: with pages of 4 KiB, finding the
//! pages costs a fifth of the time where a machine is virtual (two levels of page tables).

/// Asks Linux to put this process's anonymous memory into huge pages, now, wherever a whole one is in use already: nothing
/// grows. Elsewhere, and where Linux will not, it does nothing.
pub fn collapse() {
    #[cfg(target_os = "linux")]
    linux::collapse();
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
        // SAFETY: it takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(HUGE).max(4096);
        known == 0 && pages.iter().take(HUGE / page).all(|page| page & 1 == 1)
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
    fn memory_keeps_its_values() {
        let values: Vec<u64> = (0..1 << 20).collect();
        collapse();
        assert!((0..1 << 20).eq(values));
    }
}

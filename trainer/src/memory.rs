//! Memory that the process gives back to the system, or keeps.

/// Keeps freed blocks for the next tensor of their size instead of giving them back to the system, which would have to
/// clear each page again. To be called when a program begins; it has no effect but with glibc.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The largest that glibc takes; larger blocks are always given back.
        const LARGEST: libc::c_int = 32 << 20;
        // SAFETY: mallopt only sets numbers that malloc reads; what it refuses stays as it was.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}

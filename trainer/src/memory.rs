//! How the libraries below handle memory.

/// To be called when a program begins. Lets memory that malloc got back serve the next step, up to
/// 256 MiB of it, instead of giving it to the system after each, which would have to clear every page again (with glibc alone);
/// and lets oneDNN keep 64 compiled programs of about a megabyte each instead of 1024, unless the environment says a
/// number: it compiles one for each number of rows that a matrix has, and those of one task are enough.
///
/// # Safety
/// This process has no other thread: the environment is written, and C's `getenv`, which libraries call whenever they like, reads it
/// without a lock. (oneDNN inside libtorch has no other way to be told.)
pub unsafe fn prepare() {
    const PROGRAMS: &str = "ONEDNN_PRIMITIVE_CACHE_CAPACITY";
    if std::env::var_os(PROGRAMS).is_none() {
        // SAFETY: no other thread reads or writes the environment, as the caller grants.
        unsafe { std::env::set_var(PROGRAMS, "64") };
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The largest blocks that glibc takes from memory that it keeps.
        const LARGEST: libc::c_int = 32 << 20;
        const KEPT: libc::c_int = 256 << 20;
        // SAFETY: mallopt only sets numbers that malloc reads; what it refuses stays as it was.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

/// Gives the memory that malloc got back, and keeps, to the system (with glibc alone): for when something large that was held only while a
/// program began is gone.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

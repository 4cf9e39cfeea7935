//! SIGINT and SIGTERM, for all three programs: work in hand is ended cleanly, and everything else at once.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of an interrupted program.
pub const EXIT_CODE: u8 = 130;

static WORKING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes over SIGINT and SIGTERM. While there is [`Work`] in hand, the first one asks it to stop, which `note` tells the user;
/// otherwise, and the second time, the program exits with 130.
///
/// # Errors
/// The system refuses, or they were taken over before.
pub fn take_over(note: Option<&'static str>) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        if !WORKING.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
            exit();
        }
        if let Some(note) = note {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "\n{note}");
        }
    })
}

/// Ends the process as an interrupt at a prompt does.
pub fn leave() -> ! {
    exit()
}

/// Ends the process at once. What usually runs at an exit tears libraries down under the threads that still compute with them: a
/// second signal could end in a crash instead of 130.
fn exit() -> ! {
    #[cfg(unix)]
    // SAFETY: it asks for nothing, and never comes back.
    unsafe {
        libc::_exit(i32::from(EXIT_CODE))
    }
    #[cfg(not(unix))]
    std::process::exit(i32::from(EXIT_CODE))
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// The same, for those who look at it again and again.
pub fn flag() -> &'static AtomicBool {
    &ASKED
}

/// Work that is ended cleanly when the user interrupts.
#[must_use = "it is in hand until it is dropped"]
pub struct Work(());

impl Work {
    /// From now until it is dropped, a first signal only asks.
    pub fn begin() -> Self {
        ASKED.store(false, Ordering::SeqCst);
        WORKING.store(true, Ordering::SeqCst);
        Self(())
    }

    /// Whether the user asked to stop.
    pub fn is_interrupted(&self) -> bool {
        asked()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::SeqCst);
        ASKED.store(false, Ordering::SeqCst);
    }
}

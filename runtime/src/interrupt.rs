//! SIGINT and SIGTERM: work in hand is ended cleanly, and everything else at once.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// The exit code of an interrupted program.
pub const EXIT_CODE: i32 = 130;

static WORKING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes over SIGINT and SIGTERM. While there is [`Work`] in hand, the first one asks it to stop; otherwise, and the second
/// time, the program exits with 130.
///
/// # Errors
/// The system refuses, or they were taken over before.
pub fn take_over() -> Result<()> {
    ctrlc::set_handler(|| {
        if !WORKING.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
            process::exit(EXIT_CODE);
        }
    })
    .map_err(|error| Error::Impossible(format!("SIGINT cannot be handled: {error}")))
}

/// Work that is ended cleanly when the user interrupts.
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
        ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::SeqCst);
        ASKED.store(false, Ordering::SeqCst);
    }
}

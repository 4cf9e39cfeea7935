//! Ctrl-C and SIGTERM: the first asks to finish the step and save, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of an interrupted program.
pub const EXIT_CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen. A program calls it once.
pub fn listen() {
    // Where no handler can be set, the signal does what it does by default: it ends the program.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        eprintln!("\nfinishing the step; once more to stop at once");
    });
}

/// Whether the program was asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

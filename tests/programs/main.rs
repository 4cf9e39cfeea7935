//! The three programs as a user runs them.

#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails a test.

/// From dialogues to an adapted persona.
mod road;

/// What commands say and keep: data, compare, chat, --check-device, and adapting that goes wrong or is long.
mod commands;

/// Each system call of a save, broken.
#[cfg(target_os = "linux")]
mod everywhere;

/// Versions of personas, and what is done with them.
mod personas;

/// What scripts and shells want.
mod machine;

/// The commands of the pages.
mod docs;

/// What former versions wrote.
mod former;

/// Hostile and broken files and systems.
#[cfg(unix)]
mod faults;

/// Wrong, cut, empty and foreign files, and impossible options: one line, the right exit code, nothing half-written.
mod refusals;

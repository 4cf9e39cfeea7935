//! Files that are watched: what they are told by, and when they have changed.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

/// How often is looked. (That works on every file system, and a phone writes an export once a day.)
const PAUSE: Duration = Duration::from_millis(500);

/// What files are told by: their names, sizes and times, in the order of their names.
pub(super) type State = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The state of files, and of those in folders.
pub(super) fn state(paths: &[PathBuf]) -> State {
    let mut state = State::new();
    let mut see = |path: &Path, found: Metadata| state.push((path.to_owned(), found.len(), found.modified().ok()));
    for path in paths {
        let Ok(found) = fs::metadata(path) else { continue };
        if found.is_dir() {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if let Ok(found) = entry.metadata() {
                    see(&entry.path(), found);
                }
            }
        } else {
            see(path, found);
        }
    }
    state.sort();
    state
}

/// Waits until the files are other ones than they were, and have not changed for a moment: then they are written. Gives their state.
pub(super) fn change(paths: &[PathBuf], seen: &State) -> State {
    let mut last = state(paths);
    loop {
        thread::sleep(PAUSE);
        let now = state(paths);
        if now != *seen && now == last {
            return now;
        }
        last = now;
    }
}

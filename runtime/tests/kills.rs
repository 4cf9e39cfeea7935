//! A process that changes personas is killed at random moments, again and again: what it said to be saved is there, and whole.

#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails a test.
#![cfg(unix)]

mod support;

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use marionette_dialogues::{Dialogue, Exchange};
use marionette_models::LearningRate;
use marionette_models::bundle::Manifest;
use marionette_runtime::persona_name::PersonaName;
use marionette_runtime::personas::{Persona, Record, Store};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Names the home to the process that is killed.
const HOME: &str = "MARIONETTE_TEST_HOME";
const KILLS: u64 = 200;
/// The most versions that are kept.
const VERSIONS: usize = 4;

fn manifest() -> Manifest {
    support::manifest(32, 4, 2, 16)
}

/// A persona whose values and record agree on a number.
fn persona(number: usize) -> Persona {
    let adapters = support::adapters(&manifest(), |_, _| number as f32);
    let record = Record {
        dialogues: number,
        dialogues_sha256: String::new(),
        persona: Vec::new(),
        learning_rate: LearningRate::Shared(0.1),
        losses: vec![1.0],
        loss_after: 0.5,
        held_out: None,
        from: None,
        seconds: None,
    };
    Persona { adapters, record }
}

fn ann() -> PersonaName {
    "ann".parse().unwrap()
}

/// Saves, reverts and removes until it is killed, and says each thing once it is done.
fn change(home: &Path) {
    let store = Store::new(Some(home)).unwrap();
    let dialogues = [Dialogue {
        persona: Vec::new(),
        partner_persona: Vec::new(),
        exchanges: vec![Exchange::new("hello", "hi there")],
        line: 1,
    }];
    let mut out = std::io::stdout();
    loop {
        let lock = store.lock(&ann()).unwrap();
        let next = store.versions(&ann()).map_or(1, |there| there.last().unwrap_or(&0) + 1);
        let saved = lock.save(&persona(next), Some(&dialogues), &manifest(), true).unwrap();
        assert_eq!(saved.version, next);
        // (The harness of tests keeps what is printed.)
        writeln!(out, "current {next}").unwrap();
        let there = store.versions(&ann()).unwrap();
        for &old in there.iter().take(there.len().saturating_sub(VERSIONS)) {
            lock.remove_version(old).unwrap();
        }
        if next.is_multiple_of(3) {
            let back = lock.revert(None).unwrap();
            writeln!(out, "current {back}").unwrap();
        }
    }
}

#[test]
fn what_was_saved_survives_kills_at_random_moments() {
    if let Some(home) = env::var_os(HOME) {
        return change(Path::new(&home));
    }
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(Some(home.path())).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (mut said, mut most) = (0, 0);
    for kill in 0..KILLS {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--nocapture"])
            .env(HOME, home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        let (begun, begins) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let numbers = lines.filter_map(|line| line.strip_prefix("current ")?.parse::<usize>().ok());
            numbers.inspect(|_| begun.send(()).unwrap_or_default()).collect::<Vec<_>>()
        });
        // Half of them around the first change, half some changes later, however fast the machine is.
        if kill.is_multiple_of(2) {
            begins.recv().unwrap();
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        process.kill().unwrap();
        process.wait().unwrap();
        let acknowledged = reading.join().unwrap();
        said += acknowledged.len();
        let Ok(there) = store.versions(&ann()) else {
            assert!(acknowledged.is_empty() && most == 0, "kill {kill}: the persona is gone");
            continue;
        };
        for &number in &there {
            let found = store.load(&ann(), Some(number), &manifest()).unwrap();
            assert_eq!(found, persona(number), "kill {kill}");
            assert_eq!(store.dialogues(&ann(), Some(number)).unwrap().len(), 1, "kill {kill}");
        }
        let current = store.current(&ann()).unwrap();
        assert!(there.contains(&current), "kill {kill}: {current} of {there:?}");
        if let Some(&last) = acknowledged.last() {
            // It was killed before the next change was done, or after that and before it was said.
            let next = [last, there.last().copied().unwrap_or(0)];
            let back = there.iter().copied().rfind(|&number| number < last);
            assert!(
                next.contains(&current) || Some(current) == back,
                "kill {kill}: {current} after {acknowledged:?}, {there:?}"
            );
        }
        most = most.max(there.last().copied().unwrap_or(0));
    }
    assert!(said >= KILLS as usize / 2, "only {said} changes were done before the kills");
    // What they left is gone after the next change.
    let lock = store.lock(&ann()).unwrap();
    lock.save(&persona(most + 1), None, &manifest(), true).unwrap();
    let left: Vec<_> = std::fs::read_dir(home.path().join("personas/ann"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.contains("marionette-tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

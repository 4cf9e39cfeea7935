//! Each system call of a save, killed before it and failing with EIO and ENOSPC: strace counts them and breaks one a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use marionette_tests::{Scratch, binary, copy, persona, tiny};

use crate::road::{one_persona, road};

/// The system calls by which files are changed, and those that say whether they may be.
const CALLS: &str = "openat,open,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,flock,\
                     ftruncate,fchmod,lseek,fstat,newfstatat,statx,getdents64";

/// Those of them that need no room.
const READING: [&str; 7] = ["lseek", "fstat", "newfstatat", "statx", "getdents64", "flock", "unlink"];

/// How a call goes wrong.
const FAULTS: [&str; 3] = ["signal=KILL", "error=EIO", "error=ENOSPC"];

/// A program that saves something in a folder, and what is asked of the folder then.
struct Save<'a> {
    program: &'a str,
    /// Its arguments, for a folder.
    arguments: &'a (dyn Fn(&Path) -> Vec<PathBuf> + Sync),
    /// Fills a new folder with what was there before.
    before: &'a (dyn Fn(&Path) + Sync),
    /// Whether it is one file or folder that is saved: then nothing new is there where it failed.
    at_once: bool,
    /// Whether the names of what is there in the end are the same whatever went wrong before.
    same_names: bool,
    /// What is in a folder, or what is wrong with it.
    found: &'a (dyn Fn(&Path) -> Result<Found, String> + Sync),
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Old,
    New,
}

fn strace(program: &str, options: &[String], arguments: &[PathBuf], folder: &Path) -> Option<i32> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-s", "400", "-o"]).arg(folder.join("strace.log")).args(options);
    command.arg("-e").arg(format!("trace={CALLS}")).arg(binary(program)).args(arguments).current_dir(folder);
    command.env("XDG_DATA_HOME", folder).output().unwrap().status.code()
}

/// The main thread's calls that name something in `place`, or a file that was opened there: which, and the how manieth of its name.
fn calls(log: &str, place: &str) -> Vec<(String, usize)> {
    let main = log.split_whitespace().next().unwrap_or_default().to_owned();
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    let (mut found, mut open) = (Vec::new(), BTreeSet::new());
    for line in log.lines().filter(|line| line.split_whitespace().next() == Some(&main)) {
        let Some((name, rest)) = line[main.len()..].trim_start().split_once('(') else { continue };
        let number = counted.entry(name.to_owned()).or_default();
        *number += 1;
        let names = rest.contains(place);
        let descriptor = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        // What is said when all is done is no part of it.
        let said = name == "write" && ["1", "2"].contains(&descriptor(rest).as_str());
        if !said && (names || open.contains(&descriptor(rest))) {
            found.push((name.to_owned(), *number));
        }
        if let Some((_, opened)) = rest.rsplit_once(" = ").filter(|_| name == "openat") {
            match names {
                true => drop(open.insert(descriptor(opened))),
                // The number is another file's by now.
                false => drop(open.remove(&descriptor(opened))),
            }
        }
    }
    found
}

/// Breaks each call of a save in each way; afterwards the old or the new is there, whole, and where the program said that it failed
/// without being killed, the old one and nothing else.
fn break_each_call(save: &Save<'_>) {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace");
        return;
    }
    let prepared = || {
        let scratch = Scratch::new();
        (save.before)(&scratch.path(""));
        scratch
    };
    let whole = prepared();
    let folder = whole.path("");
    if strace(save.program, &[], &(save.arguments)(&folder), &folder) != Some(0) {
        eprintln!(
            "skipped: strace may not trace here: {}",
            fs::read_to_string(folder.join("strace.log")).unwrap_or_default()
        );
        return;
    }
    assert_eq!((save.found)(&folder), Ok(Found::New));
    let log = fs::read_to_string(folder.join("strace.log")).unwrap();
    let kept = listing(&folder);
    let all = calls(&log, folder.to_str().unwrap().trim_end_matches('/'));
    let names: BTreeSet<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert!(["openat", "write", "fsync"].iter().all(|name| names.contains(name)), "{names:?}");
    let may_be = |name: &str, fault: &str| fault != "error=ENOSPC" || !READING.contains(&name);
    let ways = |call| FAULTS.iter().map(move |fault| (call, *fault));
    let work: Vec<_> = all.iter().flat_map(ways).filter(|((name, _), fault)| may_be(name, fault)).collect();
    eprintln!("{}: {} calls, broken in {} ways", save.program, all.len(), work.len());
    let waiting = Mutex::new(work.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(((name, number), fault)) = {
                    let mut waiting = waiting.lock().unwrap();
                    waiting.next()
                } {
                    let scratch = prepared();
                    let folder = scratch.path("");
                    let inject = format!("inject={name}:{fault}:when={number}");
                    let code =
                        strace(save.program, &["-e".into(), inject.clone()], &(save.arguments)(&folder), &folder);
                    let found = (save.found)(&folder).unwrap_or_else(|error| panic!("{inject}: {error}"));
                    let was_killed = matches!(code, None | Some(137));
                    match code {
                        Some(0) => assert_eq!(found, Found::New, "{inject}: it said that it is saved"),
                        // Killed: the one or the other.
                        _ if was_killed => {}
                        code => {
                            assert_eq!(code, Some(1), "{inject}");
                            assert!(found == Found::Old || !save.at_once, "{inject}: it said that it failed");
                            let left: Vec<_> =
                                listing(&folder).into_iter().filter(|name| name.contains(".marionette-")).collect();
                            let removed = name.starts_with("unlink") || name.starts_with("rmdir");
                            assert!(left.is_empty() || removed, "{inject}: {left:?} is left");
                        }
                    }
                    if !was_killed {
                        continue;
                    }
                    // The next one saves, and removes what was left.
                    let again = strace(save.program, &[], &(save.arguments)(&folder), &folder);
                    assert_eq!((again, (save.found)(&folder)), (Some(0), Ok(Found::New)), "{inject}, again");
                    let now = listing(&folder);
                    assert!(!save.same_names || now == kept, "{inject}, again: {now:?}, expected {kept:?}");
                    assert!(!now.iter().any(|name| name.contains(".marionette-")), "{inject}, again: {now:?}");
                }
            });
        }
    });
}

/// The paths of all that is in a folder.
fn listing(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, into: &mut Vec<String>) {
        // Event files have the time in their names.
        for entry in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.file_name() != "tensorboard") {
            into.push(entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), root, into);
            }
        }
    }
    let mut all = Vec::new();
    walk(folder, folder, &mut all);
    all.sort();
    all
}

/// Whether a file or a folder's files are the one or the other.
fn which(found: Option<Vec<u8>>, old: &Option<Vec<u8>>, new: &Option<Vec<u8>>) -> Result<Found, String> {
    match found {
        found if found == *new => Ok(Found::New),
        found if found == *old => Ok(Found::Old),
        Some(other) => Err(format!("{} bytes that are neither", other.len())),
        None => Err("nothing is there".into()),
    }
}

/// The bytes of the adapters that are ann's in `home`; of a version that is broken, what is wrong with it.
fn adapters(home: &Path) -> Option<Vec<u8>> {
    let folder = home.join("personas/ann");
    if !folder.exists() {
        return None;
    }
    let whole = std::panic::catch_unwind(|| persona(home, "ann").0);
    let values = whole.map(|tensors| tensors.values().flat_map(|tensor| tensor.bytes.clone()).collect());
    Some(values.unwrap_or_else(|_| b"broken".to_vec()))
}

/// Adapts ann in `home`.
fn adapt(dialogues: &Path, home: PathBuf, more: &[&str]) -> Vec<PathBuf> {
    let mut words = vec!["adapt".into(), road().bundle(), "--persona".into(), "ann".into()];
    words.extend(["--dialogues".into(), dialogues.to_owned(), "--home".into(), home]);
    words.extend(
        ["--threads", "1", "--even-if-worse", "--holdout", "0", "--replies", "0"].iter().chain(more).map(PathBuf::from),
    );
    words
}

#[test]
fn a_persona_survives_every_fault_of_a_save() {
    let scratch = Scratch::new();
    let dialogues = one_persona(&scratch);
    let adapt = |steps: &'static str| {
        let dialogues = dialogues.clone();
        move |home: &Path| adapt(&dialogues, home.to_owned(), &["--epochs", steps])
    };
    let made = |steps: &'static str| {
        let scratch = Scratch::new();
        scratch.run("marionette", adapt(steps)(&scratch.path(""))).done();
        (adapters(&scratch.path("")), scratch)
    };
    let ((old, first), (new, _second)) = (made("1"), made("2"));
    assert!(old != new && old.is_some());
    // Over an older persona; the first one, into a folder that is not there yet, is among what `make faults` breaks.
    break_each_call(&Save {
        program: "marionette",
        arguments: &adapt("2"),
        before: &|home| {
            for folder in ["personas/ann/1", "personas/ann"] {
                copy(&first.path(folder), &home.join(folder));
            }
        },
        at_once: true,
        // A version that a kill left unused keeps its number.
        same_names: false,
        found: &|home| which(adapters(home), &old, &new),
    });
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn a_first_persona_survives_every_fault_of_a_save() {
    let scratch = Scratch::new();
    let dialogues = one_persona(&scratch);
    let words = |home: &Path| adapt(&dialogues, home.join("new/home"), &[]);
    let file = |home: &Path| adapters(&home.join("new/home"));
    let whole = Scratch::new();
    scratch.run("marionette", words(&whole.path(""))).done();
    let new = file(&whole.path(""));
    break_each_call(&Save {
        program: "marionette",
        arguments: &words,
        before: &|_| {},
        at_once: true,
        same_names: true,
        found: &|home| which(file(home), &None, &new),
    });
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn a_bundle_survives_every_fault_of_an_export() {
    let words = |seed: &'static str| {
        move |folder: &Path| -> Vec<PathBuf> {
            vec![tiny(), "--out".into(), folder.join("bundle"), "--seed".into(), seed.into()]
        }
    };
    // The manifest has the digests of all: with its own it is the whole bundle.
    let manifest = |folder: &Path| {
        let bundle = folder.join("bundle");
        if !bundle.exists() {
            return None;
        }
        let opened =
            marionette_models::bundle::Bundle::open(&bundle).map(|bundle| fs::read(bundle.path("manifest.json")));
        Some(opened.map_or_else(|error| error.to_string().into_bytes(), Result::unwrap))
    };
    let made = |seed| {
        let scratch = Scratch::new();
        scratch.run("marionette-export", words(seed)(&scratch.path(""))).done();
        (manifest(&scratch.path("")), scratch)
    };
    let ((old, first), (new, _second)) = (made("1"), made("2"));
    assert!(old != new && old.is_some());
    break_each_call(&Save {
        program: "marionette-export",
        arguments: &words("2"),
        before: &|folder| {
            copy(&first.path("bundle"), &folder.join("bundle"));
        },
        at_once: true,
        same_names: true,
        found: &|folder| which(manifest(folder), &old, &new),
    });
}

/// What a run's newest whole checkpoint is; the run goes on from it.
#[test]
#[ignore = "takes minutes: `make faults`"]
fn a_run_survives_every_fault_of_a_checkpoint() {
    let words = |iterations: &'static str| {
        move |folder: &Path| -> Vec<PathBuf> {
            let mut words: Vec<PathBuf> = vec!["run".into(), "--base".into(), tiny(), "--data".into()];
            words.extend([marionette_tests::dialogues("valid"), "--out".into(), folder.join("run")]);
            let more = "--threads 1 --hold-out 0.1 --validate-every 1 --meta-batch 1 --inner-steps 1 --dialogues-per-step 1 \
                        --support-dialogues 1 --query-dialogues 1 --bottleneck 2 --keep 1 --validation-personas 1 --resume --iterations";
            words.extend(more.split_whitespace().map(PathBuf::from));
            words.push(iterations.into());
            words
        }
    };
    let made = Scratch::new();
    made.run("marionette-train", words("1")(&made.path(""))).done();
    let last = |folder: &Path| {
        use marionette_models::run::{Which, checkpoint, verify};
        // Of the newest that is whole.
        let checkpoints = folder.join("run/checkpoints");
        let whole = |step: &str| verify(&checkpoints.join(step)).is_ok();
        match (whole("step-2"), whole("step-1")) {
            (true, _) if checkpoint(&folder.join("run"), Which::Last).is_ok_and(|path| path.ends_with("step-2")) => {
                Ok(Found::New)
            }
            (true, _) | (_, true) => Ok(Found::Old),
            (false, false) => Err("there is no whole checkpoint".into()),
        }
    };
    break_each_call(&Save {
        program: "marionette-train",
        arguments: &words("2"),
        before: &|folder| {
            let status = Command::new("cp").arg("-a").arg(made.path("run")).arg(folder).status().unwrap();
            assert!(status.success());
        },
        at_once: false,
        same_names: true,
        found: &last,
    });
}

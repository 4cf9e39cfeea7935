#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::SystemTime;

use marionette_dialogues::Exchange;
use marionette_models::LearningRate;
use tempfile::TempDir;

use super::*;

fn manifest() -> Manifest {
    support::manifest(4, 1, 2, 2)
}

fn persona(value: f32) -> Persona {
    let adapters = support::adapters(&manifest(), |_, _| value);
    let record = Record {
        dialogues: 3,
        dialogues_sha256: "cd".repeat(32),
        persona: vec!["i like to ski .".into()],
        learning_rate: LearningRate::PerTensor(vec![0.01, 0.0, 2.5e-8]),
        losses: vec![3.5, 2.25],
        loss_after: 1.125,
        held_out: Some(HeldOut { dialogues: 1, before: 3.25, after: 2.5 }),
        from: Some("bob@7".into()),
        seconds: Some(0.125),
    };
    Persona { adapters, record }
}

fn name(name: &str) -> PersonaName {
    name.parse().unwrap()
}

fn store() -> (TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(Some(home.path())).unwrap();
    (home, store)
}

fn save(store: &Store, as_name: &str, value: f32) -> usize {
    let lock = store.lock(&name(as_name)).unwrap();
    let saved = lock.save(&persona(value), None, &manifest(), true).unwrap();
    assert!(saved.is_current && saved.folder == store.folder.join(as_name));
    saved.version
}

fn loaded(store: &Store, as_name: &str, version: Option<usize>) -> Persona {
    store.load(&name(as_name), version, &manifest()).unwrap()
}

/// The file of a version's adapters.
fn file(store: &Store, as_name: &str, version: usize) -> PathBuf {
    store.folder.join(as_name).join(version.to_string()).join(ADAPTERS)
}

/// What is in the folder but for lock files.
fn listing(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&store.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_persona_comes_back_as_it_was_saved() {
    let (_home, store) = store();
    assert!(store.names().is_empty());
    assert_eq!(save(&store, "ann", 0.5), 1);
    assert_eq!(loaded(&store, "ann", None), persona(0.5));
    assert_eq!((save(&store, "ann", 0.25), save(&store, "Bob.2", 1.0), save(&store, "Zoë K", 2.0)), (2, 1, 1));
    assert_eq!(loaded(&store, "ann", None), persona(0.25));
    assert_eq!(loaded(&store, "ann", Some(1)), persona(0.5));
    assert_eq!(store.names(), ["Bob.2", "Zoë K", "ann"]);
    let found = store.version(&name("ann"), None).unwrap();
    assert_eq!((found.number, found.is_current, found.keeps_dialogues), (2, true, false));
    assert_eq!((found.record, found.base_sha256), (persona(0.25).record, "ab".repeat(32)));
    assert_eq!(found.bytes, fs::metadata(file(&store, "ann", 2)).unwrap().len());
    let created: jiff::Timestamp = found.created.unwrap().parse().unwrap();
    assert!((jiff::Timestamp::now() - created).get_seconds().abs() < 600);
}

#[test]
fn versions_go_on_and_back() {
    let (_home, store) = store();
    let ann = name("ann");
    for (value, version) in [(0.5, 1), (0.25, 2), (0.125, 3)] {
        assert_eq!(save(&store, "ann", value), version);
    }
    let revert = |version| store.lock(&ann).unwrap().revert(version);
    assert_eq!((revert(None).unwrap(), store.current(&ann).unwrap()), (2, 2));
    assert_eq!((revert(None).unwrap(), loaded(&store, "ann", None)), (1, persona(0.5)));
    let error = revert(None).unwrap_err().to_string();
    assert!(error.contains("ann has no version 0 (it has 1, 2, 3)"), "{error}");
    // One that got worse is kept and not in use.
    let kept = store.lock(&ann).unwrap().save(&persona(9.0), None, &manifest(), false).unwrap();
    assert_eq!((kept.version, kept.is_current, store.current(&ann).unwrap()), (4, false, 1));
    assert!(!store.version(&ann, Some(4)).unwrap().is_current && store.version(&ann, Some(1)).unwrap().is_current);
    assert_eq!(revert(Some(4)).unwrap(), 4);
    assert_eq!(loaded(&store, "ann", None), persona(9.0));
    let lock = store.lock(&ann).unwrap();
    assert!(matches!(lock.remove_version(4), Err(PersonaError::Current { version: 4, .. })));
    lock.remove_version(2).unwrap();
    assert_eq!(store.versions(&ann).unwrap(), [1, 3, 4]);
    assert!(matches!(store.load(&ann, Some(2), &manifest()), Err(PersonaError::UnknownVersion { version: 2, .. })));
    drop(lock);
    // A number is never given twice while what came after it is there.
    assert_eq!(save(&store, "ann", 0.5), 5);
    // The first one of all is in use, however good.
    let first = store.lock(&name("bob")).unwrap().save(&persona(1.0), None, &manifest(), false).unwrap();
    assert!(first.is_current);
}

#[test]
fn dialogues_are_kept_where_they_may_be() {
    let (_home, store) = store();
    let exchange = |partner, reply, learned| Exchange { learned, ..Exchange::new(partner, reply) };
    let dialogue =
        |exchanges| Dialogue { persona: vec!["i sew .".into()], partner_persona: Vec::new(), exchanges, line: 1 };
    let first = dialogue(vec![exchange("hello", "hi there", false), exchange("again", "and \"again\"", true)]);
    let mut second = dialogue(vec![exchange("やあ", "zoë 🙂", true)]);
    second.line = 2;
    let dialogues = [first, second];
    let lock = store.lock(&name("ann")).unwrap();
    lock.save(&persona(0.5), Some(&dialogues), &manifest(), true).unwrap();
    lock.save(&persona(0.5), None, &manifest(), true).unwrap();
    assert_eq!(store.dialogues(&name("ann"), Some(1)).unwrap(), dialogues);
    let error = store.dialogues(&name("ann"), None).unwrap_err();
    assert!(matches!(error, PersonaError::NoDialogues { version: 2, .. }), "{error}");
    let [with, without] = [1, 2].map(|number| store.version(&name("ann"), Some(number)).unwrap());
    assert!(with.keeps_dialogues && !without.keeps_dialogues && with.bytes > without.bytes);
}

#[test]
fn what_was_taught_waits_until_it_is_learned() {
    let (_home, store) = store();
    let ann = name("ann");
    let dialogue = |words: &str, line| Dialogue {
        persona: Vec::new(),
        partner_persona: Vec::new(),
        exchanges: vec![Exchange::new("hello", words)],
        line,
    };
    assert!(matches!(store.lock(&ann).unwrap().teach(&dialogue("x", 1)), Err(PersonaError::Unknown { .. })));
    save(&store, "ann", 0.5);
    assert_eq!(store.taught(&ann).unwrap(), []);
    let lock = store.lock(&ann).unwrap();
    assert_eq!((lock.teach(&dialogue("one", 1)).unwrap(), lock.teach(&dialogue("two", 2)).unwrap()), (1, 2));
    assert_eq!(store.taught(&ann).unwrap(), [dialogue("one", 1), dialogue("two", 2)]);
    // Learned is what a current version learned.
    let learn = |dialogues: &[Dialogue], current| {
        lock.save(&persona(1.0), Some(dialogues), &manifest(), current).unwrap();
        store.taught(&ann).unwrap()
    };
    assert_eq!(learn(&[dialogue("two", 9)], false).len(), 2);
    assert_eq!(learn(&[dialogue("two", 9), dialogue("three", 1)], true), [dialogue("one", 1)]);
    assert_eq!(learn(&[dialogue("one", 1)], true), []);
    assert!(!store.folder.join("ann").join(TAUGHT).exists());
}

#[test]
fn a_persona_gets_another_name_or_goes() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    save(&store, "ann", 0.25);
    save(&store, "bob", 1.0);
    let rename = |from: &str, to: &str| store.lock(&name(from)).unwrap().rename(&store.lock(&name(to)).unwrap());
    assert!(matches!(rename("ann", "bob"), Err(PersonaError::Taken { .. })));
    assert!(matches!(rename("eve", "dan"), Err(PersonaError::Unknown { .. })));
    rename("ann", "Владимир").unwrap();
    assert_eq!(store.names(), ["bob", "Владимир"]);
    assert_eq!(loaded(&store, "Владимир", Some(1)), persona(0.5));
    assert_eq!(loaded(&store, "Владимир", None), persona(0.25));
    store.lock(&name("bob")).unwrap().remove().unwrap();
    assert!(matches!(store.lock(&name("bob")).unwrap().remove(), Err(PersonaError::Unknown { .. })));
    assert_eq!(listing(&store), ["Владимир"]);
}

#[test]
fn a_persona_of_former_times_is_its_first_version() {
    let (_home, store) = store();
    fs::create_dir_all(&store.folder).unwrap();
    let former = |as_name: &str| {
        let Persona { adapters, record } = persona(0.5);
        let json = |value: serde_json::Value| value.to_string();
        let metadata = BTreeMap::from([
            ("format_version".to_owned(), "1".to_owned()),
            ("name".into(), as_name.into()),
            ("base_sha256".into(), "ab".repeat(32)),
            ("dialogues".into(), record.dialogues.to_string()),
            ("dialogues_sha256".into(), record.dialogues_sha256),
            ("persona".into(), json(serde_json::json!(record.persona))),
            ("learning_rate".into(), json(serde_json::json!(record.learning_rate))),
            ("steps".into(), "2".into()),
            ("losses".into(), json(serde_json::json!(record.losses))),
            ("loss_after".into(), record.loss_after.to_string()),
        ]);
        checkpoint::write_adapters(&store.former_of(&name(as_name)), &adapters, &metadata).unwrap();
    };
    let mut then = persona(0.5);
    (then.record.held_out, then.record.from, then.record.seconds) = (None, None, None);
    for as_name in ["ann", "bob", "eve", "dan"] {
        former(as_name);
        assert_eq!((loaded(&store, as_name, None), loaded(&store, as_name, Some(1))), (then.clone(), then.clone()));
    }
    assert!(matches!(store.load(&name("ann"), Some(2), &manifest()), Err(PersonaError::UnknownVersion { .. })));
    let found = store.version(&name("ann"), None).unwrap();
    assert_eq!((found.created, found.is_current, found.keeps_dialogues), (None, true, false));
    // Each change makes a folder of it.
    assert_eq!(save(&store, "ann", 0.25), 2);
    assert_eq!((loaded(&store, "ann", None), loaded(&store, "ann", Some(1))), (persona(0.25), then.clone()));
    assert_eq!(store.lock(&name("bob")).unwrap().revert(Some(1)).unwrap(), 1);
    store.lock(&name("eve")).unwrap().rename(&store.lock(&name("eva")).unwrap()).unwrap();
    assert_eq!((loaded(&store, "bob", None), loaded(&store, "eva", None)), (then.clone(), then.clone()));
    store.lock(&name("dan")).unwrap().remove().unwrap();
    assert_eq!(listing(&store), ["ann", "bob", "eva"]);
    // A file that a kill left beside the folder that was made of it counts no more.
    former("ann");
    assert_eq!(loaded(&store, "ann", None), persona(0.25));
    assert_eq!(save(&store, "ann", 1.0), 3);
    assert_eq!(listing(&store), ["ann", "bob", "eva"]);
}

#[test]
fn a_file_that_was_exported_comes_back_as_a_version() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let exported = store.folder.join("../exported.safetensors");
    store.export(&name("ann"), None, Format::Safetensors, &exported).unwrap();
    let bob = store.lock(&name("bob")).unwrap();
    assert_eq!(bob.import(&exported).unwrap().version, 1);
    assert_eq!(bob.import(&exported).unwrap().version, 2);
    assert_eq!(loaded(&store, "bob", None), persona(0.5));
    for wrong in [&b"no persona"[..], b""] {
        fs::write(&exported, wrong).unwrap();
        assert!(bob.import(&exported).is_err());
    }
    // Adapters without a word of where they come from.
    checkpoint::write_adapters(&exported, &persona(0.5).adapters, &BTreeMap::new()).unwrap();
    let error = bob.import(&exported).unwrap_err().to_string();
    assert!(error.contains("format_version"), "{error}");
    assert_eq!(store.versions(&name("bob")).unwrap(), [1, 2]);
}

#[test]
fn a_current_version_that_nobody_can_read_is_named_with_the_remedy() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    for wrong in ["", "x", "-1", "1 2", &"1".repeat(100)] {
        fs::write(store.folder.join("ann").join(CURRENT), wrong).unwrap();
        let error = store.load(&name("ann"), None, &manifest()).unwrap_err().to_string();
        assert!(error.contains("current") && !error.contains('\n'), "{error}");
    }
    fs::write(store.folder.join("ann").join(CURRENT), "7").unwrap();
    assert!(matches!(store.load(&name("ann"), None, &manifest()), Err(PersonaError::UnknownVersion { .. })));
    assert_eq!(store.lock(&name("ann")).unwrap().revert(Some(1)).unwrap(), 1);
    assert_eq!(loaded(&store, "ann", None), persona(0.5));
}

#[test]
fn another_base_is_refused_even_with_equal_shapes() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let other = Manifest { base_sha256: "ef".repeat(32), ..manifest() };
    let error = store.load(&name("ann"), None, &other).unwrap_err().to_string();
    assert!(
        error.contains("another base model") && error.contains("abababababab…") && error.contains("efefefefefef…"),
        "{error}"
    );
}

#[test]
fn an_unknown_persona_is_refused_and_the_others_are_named() {
    let (_home, store) = store();
    let error = store.load(&name("ann"), None, &manifest()).unwrap_err().to_string();
    assert!(error.contains("there are none"), "{error}");
    save(&store, "bob", 0.5);
    let error = store.load(&name("ann"), None, &manifest()).unwrap_err().to_string();
    assert!(error.contains("there are: bob"), "{error}");
}

#[test]
fn names_that_differ_only_in_case_are_refused() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let error = store.lock(&name("Ann")).map(drop).unwrap_err().to_string();
    assert!(error.contains("only in case"), "{error}");
    assert!(matches!(store.load(&name("Ann"), None, &manifest()), Err(PersonaError::Unknown { .. })));
    assert!(store.lock(&name("ann")).is_ok());
    // Begun at once: neither is there yet, and one of them waits for nobody.
    let _held = store.lock(&name("Fox")).unwrap();
    assert!(matches!(store.lock(&name("fox")), Err(PersonaError::Busy { .. })));
    // Where both are there, from a time when that was possible, each can still be used.
    fs::create_dir_all(file(&store, "ANN", 1).parent().unwrap()).unwrap();
    fs::copy(file(&store, "ann", 1), file(&store, "ANN", 1)).unwrap();
    for there in ["ann", "ANN"] {
        save(&store, there, 0.5);
    }
}

#[test]
fn a_second_one_hears_busy_until_the_first_is_gone() {
    let (_home, store) = store();
    let first = store.lock(&name("ann")).unwrap();
    assert!(matches!(store.lock(&name("ann")), Err(PersonaError::Busy { .. })));
    // Others are free, and reading needs no lock.
    assert!(store.lock(&name("bob")).is_ok());
    first.save(&persona(0.5), None, &manifest(), true).unwrap();
    assert!(store.load(&name("ann"), None, &manifest()).is_ok());
    drop(first);
    assert!(store.lock(&name("ann")).is_ok());
    // A lock file that a dead process left is no lock.
    assert!(store.folder.join(".ann.lock").exists());
}

#[test]
fn not_a_number_is_never_saved() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let lock = store.lock(&name("ann")).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut persona = persona(0.25);
        persona.adapters.get_mut("h.0.mlp_adapter.up.bias").unwrap().values[3] = bad;
        let error = lock.save(&persona, None, &manifest(), true).unwrap_err().to_string();
        assert!(error.contains("h.0.mlp_adapter.up.bias"), "{error}");
    }
    assert_eq!(store.load(&name("ann"), None, &manifest()).unwrap(), persona(0.5));
    assert_eq!(listing(&store), ["ann"]);
    assert_eq!(store.versions(&name("ann")).unwrap(), [1]);
}

#[test]
fn a_process_killed_before_the_rename_leaves_the_old_persona() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    // What the kill leaves: a temporary folder with part of the new version.
    let left = store.folder.join(format!("ann/{}left", files::TEMPORARY_PREFIX));
    fs::create_dir(&left).unwrap();
    fs::write(left.join(ADAPTERS), b"half").unwrap();
    // What another process is writing; by its clock, long ago.
    let live = store.folder.join(format!("ann/{}live", files::TEMPORARY_PREFIX));
    let held = File::create(&live).unwrap();
    held.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    held.lock().unwrap();
    assert_eq!((store.names(), store.versions(&name("ann")).unwrap()), (vec!["ann".to_owned()], vec![1]));
    assert_eq!(loaded(&store, "ann", None), persona(0.5));
    // The next change cleans up what no living process can be writing.
    save(&store, "ann", 0.25);
    assert!(!left.exists() && live.exists());
    assert_eq!(loaded(&store, "ann", None), persona(0.25));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let path = file(&store, "ann", 1);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        let error = store.load(&name("ann"), None, &manifest()).unwrap_err().to_string();
        assert!(
            error.contains("ann/1/adapters.safetensors") && error.contains(expected) && !error.contains('\n'),
            "{error}"
        );
    };
    for length in [0, 7, 8, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..length], "");
    }
    refused(&[whole.as_slice(), b"x"].concat(), "bytes");
    refused(b"not a persona at all", "");
    let replace = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    refused(
        &replace("h.0.mlp_adapter.up.bias", "h.0.mlp_adapter.up.bias".replace("up", "xp").as_str()),
        "h.0.mlp_adapter.up.bias",
    );
    refused(&replace("\"shape\":[4,2]", "\"shape\":[2,4]"), "shape");
    refused(&replace("base_sha256", "base_sha257"), "metadata base_sha256");
    refused(&replace("\\\"format_version\\\":\\\"2\\\"", "\\\"format_version\\\":\\\"3\\\""), "format_version");
    // NaN among the values: the last four bytes are one of them.
    let mut nan = whole.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&nan, "NaN");
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let lock = store.lock(&name("ann")).unwrap();
    let permissions = |mode| {
        for folder in [store.folder.join("ann"), store.folder.clone()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    permissions(0o500);
    if fs::write(store.folder.join("probe"), b"").is_ok() {
        eprintln!("skipped: this user may write anywhere");
        permissions(0o700);
        return;
    }
    assert!(lock.save(&persona(0.25), None, &manifest(), true).is_err());
    assert!(store.lock(&name("new")).is_err());
    permissions(0o700);
    assert_eq!(store.load(&name("ann"), None, &manifest()).unwrap(), persona(0.5));
}

#[test]
fn a_home_that_is_a_file_is_an_error() {
    let home = tempfile::NamedTempFile::new().unwrap();
    let store = Store::new(Some(home.path())).unwrap();
    let error = store.lock(&name("ann")).map(drop).unwrap_err().to_string();
    assert!(error.contains("the folder cannot be made"), "{error}");
}

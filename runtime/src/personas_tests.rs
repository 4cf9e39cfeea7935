use std::time::SystemTime;

use marionette_models::bundle::{Operators, Precision};
use marionette_models::{AdapterConfig, Gpt2Shape, HostTensor, InnerLoop, PromptForm, params};
use tempfile::TempDir;

use super::*;

fn manifest() -> Manifest {
    Manifest {
        format_version: 2,
        producer: "test".into(),
        model: Gpt2Shape { vocab_size: 10, n_positions: 8, n_embd: 4, n_layer: 1, n_head: 2 }.into(),
        prompt: PromptForm::plain(9),
        adapter: AdapterConfig { bottleneck: 2 },
        base_sha256: "ab".repeat(32),
        precision: Precision::Fp32,
        operators: Operators::Ort,
        inner_loop: InnerLoop { steps: 1, dialogues_per_step: 1, learning_rate: LearningRate::Shared(0.1) },
        persona_text: false,
        files: BTreeMap::new(),
        graphs: BTreeMap::new(),
    }
}

fn persona(value: f32) -> Persona {
    let manifest = manifest();
    let adapters = params::adapter_table(&manifest.model, &manifest.adapter)
        .into_iter()
        .map(|spec| (spec.name.clone(), HostTensor { values: vec![value; spec.len()], shape: spec.shape }))
        .collect();
    let record = Record {
        dialogues: 3,
        dialogues_sha256: "cd".repeat(32),
        persona: vec!["i like to ski .".into()],
        learning_rate: LearningRate::PerTensor(vec![0.01, 0.0, 2.5e-8]),
        losses: vec![3.5, 2.25],
        loss_after: 1.125,
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

fn save(store: &Store, as_name: &str, value: f32) -> PathBuf {
    store.lock(&name(as_name)).unwrap().save(&persona(value), &manifest()).unwrap()
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
    let path = save(&store, "ann", 0.5);
    assert_eq!(path, store.path(&name("ann")));
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.5));
    save(&store, "ann", 0.25);
    save(&store, "Bob.2", 1.0);
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.25));
    assert_eq!(store.names(), ["Bob.2", "ann"]);
}

#[test]
fn the_same_persona_is_the_same_bytes() {
    let (_home, store) = store();
    let path = save(&store, "ann", 0.5);
    let first = fs::read(&path).unwrap();
    save(&store, "ann", 0.5);
    assert_eq!(fs::read(&path).unwrap(), first);
}

#[test]
fn another_base_is_refused_even_with_equal_shapes() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let other = Manifest { base_sha256: "ef".repeat(32), ..manifest() };
    let error = store.load(&name("ann"), &other).unwrap_err().to_string();
    assert!(
        error.contains("another base model") && error.contains("abababababab…") && error.contains("efefefefefef…"),
        "{error}"
    );
}

#[test]
fn an_unknown_persona_is_refused_and_the_others_are_named() {
    let (_home, store) = store();
    let error = store.load(&name("ann"), &manifest()).unwrap_err().to_string();
    assert!(error.contains("there are none"), "{error}");
    save(&store, "bob", 0.5);
    let error = store.load(&name("ann"), &manifest()).unwrap_err().to_string();
    assert!(error.contains("there are: bob"), "{error}");
}

#[test]
fn names_that_differ_only_in_case_are_refused() {
    let (_home, store) = store();
    save(&store, "ann", 0.5);
    let error = store.lock(&name("Ann")).map(drop).unwrap_err().to_string();
    assert!(error.contains("only in case"), "{error}");
    assert!(matches!(store.load(&name("Ann"), &manifest()), Err(PersonaError::Unknown { .. })));
    assert!(store.lock(&name("ann")).is_ok());
    // Begun at once: neither is there yet, and one of them waits for nobody.
    let _held = store.lock(&name("Fox")).unwrap();
    assert!(matches!(store.lock(&name("fox")), Err(PersonaError::Busy { .. })));
    // Where both are there, from a time when that was possible, each can still be used.
    fs::copy(store.path(&name("ann")), store.path(&name("ANN"))).unwrap();
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
    first.save(&persona(0.5), &manifest()).unwrap();
    assert!(store.load(&name("ann"), &manifest()).is_ok());
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
        let error = lock.save(&persona, &manifest()).unwrap_err().to_string();
        assert!(error.contains("h.0.mlp_adapter.up.bias"), "{error}");
    }
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.5));
    assert_eq!(listing(&store), ["ann.safetensors"]);
}

#[test]
fn a_process_killed_before_the_rename_leaves_the_old_persona() {
    let (_home, store) = store();
    let path = save(&store, "ann", 0.5);
    let whole = fs::read(&path).unwrap();
    // What the kill leaves: a temporary file with part of the new persona.
    let left = store.folder.join(format!("{}left", files::TEMPORARY_PREFIX));
    fs::write(&left, &whole[..whole.len() / 2]).unwrap();
    // What another process is writing; by its clock, long ago.
    let live = store.folder.join(format!("{}live", files::TEMPORARY_PREFIX));
    let held = File::create(&live).unwrap();
    held.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    held.lock().unwrap();
    assert_eq!(store.names(), ["ann"]);
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.5));
    // The next change cleans up what no living process can be writing.
    save(&store, "ann", 0.25);
    assert!(!left.exists() && live.exists());
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.25));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let (_home, store) = store();
    let path = save(&store, "ann", 0.5);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        let error = store.load(&name("ann"), &manifest()).unwrap_err().to_string();
        assert!(error.contains("ann.safetensors") && error.contains(expected) && !error.contains('\n'), "{error}");
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
    refused(&replace("\\\"format_version\\\":\\\"1\\\"", "\\\"format_version\\\":\\\"2\\\""), "format_version");
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
    let permissions = |mode| fs::set_permissions(&store.folder, fs::Permissions::from_mode(mode)).unwrap();
    permissions(0o500);
    if fs::write(store.folder.join("probe"), b"").is_ok() {
        eprintln!("skipped: this user may write anywhere");
        permissions(0o700);
        return;
    }
    assert!(lock.save(&persona(0.25), &manifest()).is_err());
    assert!(store.lock(&name("new")).is_err());
    permissions(0o700);
    assert_eq!(store.load(&name("ann"), &manifest()).unwrap(), persona(0.5));
}

#[test]
fn a_home_that_is_a_file_is_an_error() {
    let home = tempfile::NamedTempFile::new().unwrap();
    let store = Store::new(Some(home.path())).unwrap();
    let error = store.lock(&name("ann")).map(drop).unwrap_err().to_string();
    assert!(error.contains("the folder cannot be made"), "{error}");
}

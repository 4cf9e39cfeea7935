//! Bundles: written whole, opened only when everything is what the manifest says.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

mod support;

use std::fs;
use std::path::Path;

use marionette_models::bundle::{self, Bundle, BundleWriter};
use marionette_models::digest;
use support::{graph, manifest, write};

fn bundle() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("bundle");
    write(&dir, &graph(), manifest()).unwrap();
    (folder, dir)
}

/// The error of opening a bundle after `change`.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let (_folder, dir) = bundle();
    change(&dir);
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(dir.to_str().unwrap()), "{error}");
    error
}

fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join(bundle::MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
    bundle::seal(dir).unwrap();
}

#[test]
fn a_bundle_round_trips() {
    let (folder, dir) = bundle();
    let opened = Bundle::open(&dir).unwrap();
    assert_eq!(opened.manifest().model, manifest().model);
    assert_eq!(opened.adapters().unwrap().len(), 8);
    assert!(opened.probe().unwrap().is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    // Over an old bundle, the same again.
    write(&dir, &graph(), manifest()).unwrap();
    assert_eq!(Bundle::open(&dir).unwrap().manifest(), opened.manifest());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_leaves_nothing_and_foreign_folders_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("b");
    let mut writer = BundleWriter::create(&dir).unwrap();
    assert!(writer.file(bundle::WEIGHTS, |_| Err(std::io::Error::other("disk full"))).is_err());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "mine").unwrap();
    assert!(write(&dir, &graph(), manifest()).unwrap_err().to_string().contains("no bundle"));
    assert_eq!(fs::read_to_string(dir.join("thesis.txt")).unwrap(), "mine");
}

#[test]
fn cut_changed_missing_and_extra_files_are_refused() {
    let (_folder, dir) = bundle();
    let names: Vec<String> = Bundle::open(&dir).unwrap().manifest().files.keys().cloned().collect();
    for name in names {
        let cut = refusal(|dir| {
            let bytes = fs::read(dir.join(&name)).unwrap();
            fs::write(dir.join(&name), &bytes[..bytes.len() - 1]).unwrap();
        });
        assert!(cut.contains(&name) && cut.contains("the manifest says"), "{cut}");
        let flipped = refusal(|dir| {
            let mut bytes = fs::read(dir.join(&name)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(dir.join(&name), bytes).unwrap();
        });
        assert!(flipped.contains(&name) && flipped.contains("SHA-256"), "{flipped}");
        let missing = refusal(|dir| fs::remove_file(dir.join(&name)).unwrap());
        assert!(missing.contains(&name) && missing.contains("is missing"), "{missing}");
    }
    let extra = refusal(|dir| fs::write(dir.join("extra"), "").unwrap());
    assert!(extra.contains("extra") && extra.contains("not in the manifest"), "{extra}");
}

/// The manifest has the digests of all files but its own.
#[test]
fn a_manifest_is_what_was_written_to_the_bit() {
    let (_folder, dir) = bundle();
    for file in [bundle::MANIFEST, bundle::SUMS] {
        let path = dir.join(file);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(37) {
            fs::write(&path, &whole[..length]).unwrap();
            Bundle::open(&dir).unwrap_err();
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 1 << (index % 8);
            fs::write(&path, flipped).unwrap();
            let error = Bundle::open(&dir).unwrap_err().to_string();
            assert!(error.contains("manifest.json") && error.contains("SHA256SUMS"), "{error}");
        }
        fs::write(&path, whole).unwrap();
    }
    fs::remove_file(dir.join(bundle::SUMS)).unwrap();
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(error.contains("SHA256SUMS: is missing"), "{error}");
    bundle::seal(&dir).unwrap();
    Bundle::open(&dir).unwrap();
}

#[cfg(unix)]
#[test]
fn links_to_regular_files_are_followed_and_their_digests_checked() {
    use std::os::unix::fs::symlink;
    // A backup made of hard links: both are bundles.
    let (folder, dir) = bundle();
    let backup = folder.path().join("backup");
    fs::create_dir(&backup).unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name();
        fs::hard_link(dir.join(&name), backup.join(&name)).unwrap();
    }
    Bundle::open(&backup).unwrap();
    Bundle::open(&dir).unwrap();
    // A hub's cache: the files lie elsewhere under their digests, the manifest as well.
    let (snapshot, blobs) = (folder.path().join("snapshots/abc"), folder.path().join("blobs"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::rename(&backup, &blobs).unwrap();
    for entry in fs::read_dir(&blobs).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    Bundle::open(&snapshot).unwrap();
    let error = |change: &dyn Fn(&Path)| {
        let path = snapshot.join(bundle::WEIGHTS);
        fs::remove_file(&path).unwrap();
        change(&path);
        let error = Bundle::open(&snapshot).unwrap_err().to_string();
        assert!(error.contains(bundle::WEIGHTS), "{error}");
        error
    };
    // What a link leads to is checked as a file is.
    let other = folder.path().join("other");
    fs::write(&other, [1; 32]).unwrap();
    assert!(error(&|path| symlink(&other, path).unwrap()).contains("SHA-256"));
    // The right bytes, where ONNX Runtime would not follow.
    fs::copy(blobs.join(bundle::WEIGHTS), &other).unwrap();
    assert!(error(&|path| symlink(&other, path).unwrap()).contains("another folder than"));
    assert!(error(&|path| symlink("nowhere", path).unwrap()).contains("cannot be read"));
    assert!(error(&|path| symlink("/dev/null", path).unwrap()).contains("regular file"));
    assert!(error(&|path| symlink(&blobs, path).unwrap()).contains("regular file"));
    assert!(error(&|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())).contains("regular file"));
    fs::remove_file(snapshot.join(bundle::WEIGHTS)).unwrap();
    fs::create_dir(snapshot.join(bundle::WEIGHTS)).unwrap();
    assert!(Bundle::open(&snapshot).unwrap_err().to_string().contains("regular file"));
}

#[test]
fn what_systems_leave_in_folders_is_passed_over() {
    let (_folder, dir) = bundle();
    for litter in [".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini", "._weights.bin"] {
        fs::write(dir.join(litter), "").unwrap();
    }
    Bundle::open(&dir).unwrap();
    assert!(refusal(|dir| fs::write(dir.join("Thumbs.db.exe"), "").unwrap()).contains("not in the manifest"));
}

#[test]
fn wrong_manifests_are_refused_by_field() {
    for (from, to, expected) in [
        ("\"format_version\": 2", "\"format_version\": 3", "format_version: is 3, this program reads 1 and 2 (use"),
        ("\"format_version\": 2", "\"format_version\": 0", "format_version: is 0, this program reads 1 and 2 (export"),
        ("\"format_version\": 2", "\"format_version\": \"x\"", "format_version: expected 1 or 2"),
        ("\"format_version\": 2", "\"format_version\": 1", "unknown field `family`"),
        ("\"producer\"", "\"format_version\": 2, \"producer\"", "is there twice"),
        ("\"producer\"", "\"surprise\": 1, \"producer\"", "surprise"),
        ("\"n_head\": 2", "\"n_head\": 3", "model.n_kv_head"),
        ("\"weights.bin\": {", "\"../weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"/weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"C:weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"w.bin\": {", "weights.bin is not listed"),
        ("\"file\": \"adapt.onnx\"", "\"file\": \"score.onnx\"", "\"adapt\" is missing or does not name"),
        ("\"learning_rate\": 0.1", "\"learning_rate\": [0.1]", "inner_loop.learning_rate: has 1 values"),
        ("\"bottleneck\": 2", "\"bottleneck\": 0", "adapter.bottleneck"),
    ] {
        let error = refusal(|dir| edit_manifest(dir, from, to));
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn a_file_that_is_no_graph_is_refused_although_its_digest_fits() {
    let (_folder, dir) = bundle();
    let path = dir.join(bundle::SCORE);
    let old = fs::read(&path).unwrap();
    fs::write(&path, vec![0xff; old.len()]).unwrap();
    let text = fs::read_to_string(dir.join(bundle::MANIFEST)).unwrap();
    // All three graphs are the same file here, so only the third digest, score.onnx's, is replaced.
    let digest = digest::sha256(&old);
    let at = text.find(bundle::SCORE).unwrap();
    let (head, tail) = text.split_at(at);
    let text = head.to_owned() + &tail.replacen(&digest, &digest::sha256(&vec![0xff; old.len()]), 1);
    fs::write(dir.join(bundle::MANIFEST), text).unwrap();
    bundle::seal(&dir).unwrap();
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(error.contains("is no ONNX model"), "{error}");
}

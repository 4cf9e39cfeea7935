//! The bundles of `models/tiny`, to the byte: what is rebuilt inside changes nothing outside without being seen. (That the base keeps
//! its digest is a test of `models`.)
//!
//! Where a change is meant, `GOLDEN=write cargo test -p marionette-exporter --test golden` records the new digests; the commit that
//! changes them says what changed.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::{MANIFEST, Operators, Precision, WEIGHTS};
use marionette_models::digest;

/// As `sha256sum` writes: a digest and a file a line.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/SHA256SUMS");

/// `models/tiny` with adapters that no random numbers or functions of the machine's library have a part in.
fn tiny() -> Source {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let mut source = Source::read(&folder, FreshAdapters::default(), None).unwrap();
    let values = source.adapters.values_mut().flat_map(|tensor| &mut tensor.values);
    values.enumerate().for_each(|(i, value)| *value = (i % 19) as f32 * 0.01);
    source
}

#[test]
fn the_same_model_gives_the_same_bundles() {
    let (source, scratch) = (tiny(), tempfile::tempdir().unwrap());
    let mut found = String::new();
    for operators in Operators::ALL {
        for precision in Precision::ALL {
            let name = format!("{operators}-{precision}");
            let bundle = scratch.path().join(&name);
            let exported = export(&source, precision, operators, &bundle, &AtomicBool::new(false)).unwrap();
            let manifest = digest::sha256(&fs::read(bundle.join(MANIFEST)).unwrap());
            let files = exported.manifest.files.iter().map(|(file, entry)| (file.as_str(), entry.sha256.as_str()));
            for (file, digest) in files.chain([(MANIFEST, manifest.as_str())]) {
                // Integers are rounded by sums of products, whose order is the processor's choice.
                let is_the_machines = precision.is_integer() && [WEIGHTS, MANIFEST].contains(&file);
                found += &format!("{}  {name}/{file}\n", if is_the_machines { "?" } else { digest });
            }
            fs::remove_dir_all(bundle).unwrap();
        }
    }
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        fs::write(RECORDED, &found).unwrap();
    }
    let recorded = fs::read_to_string(RECORDED).unwrap();
    let differ: Vec<&str> = found.lines().filter(|line| !recorded.lines().any(|known| known == *line)).collect();
    assert!(differ.is_empty(), "other bytes than were recorded:\n{}", differ.join("\n"));
    assert_eq!(found.lines().count(), recorded.lines().count());
}

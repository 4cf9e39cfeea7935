//! A Hugging Face folder, or a run directory, as a bundle in eight bits:
//!
//!     cargo run --release -p marionette-exporter --example export -- models/tiny bundle

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use marionette_exporter::export::export;
use marionette_exporter::source::{FreshAdapters, Source};
use marionette_models::bundle::{Operators, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(out)) = (paths.next(), paths.next()) else {
        return Err("expected a model's folder and one to write".into());
    };
    let source = Source::read(&model, FreshAdapters { bottleneck: None, seed: None }, None)?;
    // Set by another thread, it would end the export and leave nothing behind.
    let stop = AtomicBool::new(false);
    let exported = export(&source, Precision::Int8, Operators::Ort, &out, &stop)?;
    println!("{}: base {}", out.display(), exported.manifest.base_sha256);
    Ok(())
}

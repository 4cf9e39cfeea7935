//! The command `doctor`: what this device has, and what is wrong with it or with a bundle.

use std::io::{self, Write as _};
use std::path::Path;
use std::thread;

use anyhow::anyhow;
use bytesize::ByteSize;
use marionette_models::bundle::Bundle;
use marionette_models::terminal::printable_line;
use marionette_runtime::session::OnnxRuntime;
use marionette_runtime::{Engine, Options, Provider, kernels, memory, plan};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::settings;

/// The tokens of a long dialogue.
const LONG: usize = 512;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    found: String,
    /// What does not work; the remedy stands in `found`.
    is_wrong: bool,
}

/// Looks at everything, and prints it.
///
/// # Errors
/// Something is wrong.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let mut find = |what: &'static str, found: Result<String, String>| {
        let is_wrong = found.is_err();
        let (Ok(found) | Err(found)) = found;
        findings.push(Finding { what, found, is_wrong });
    };
    find("marionette", Ok(env!("CARGO_PKG_VERSION").to_owned()));
    match OnnxRuntime::load() {
        Err(error) => find("ONNX Runtime", Err(error.to_string())),
        Ok(runtime) => {
            find("ONNX Runtime", Ok(format!("{}, {}", runtime.version(), runtime.library().display())));
            for provider in Provider::ALL {
                let started = runtime.start(provider);
                let name = provider.name();
                let found =
                    started.map_or_else(|error| format!("{name} does not: {error}"), |()| format!("{name} starts"));
                // Only the processor is needed.
                find(
                    "provider",
                    if provider == Provider::Cpu && !found.ends_with("starts") { Err(found) } else { Ok(found) },
                );
            }
        }
    }
    find("processor", Ok(format!("{}, integers by {}", std::env::consts::ARCH, kernels::instructions())));
    find("threads", Ok(thread::available_parallelism().map_or("unknown".to_owned(), |threads| threads.to_string())));
    if let Some(system) = memory::system() {
        find("memory", Ok(format!("{}, {} free", ByteSize(system.total), ByteSize(system.available))));
    }
    find("personas", personas(args));
    let file = settings::file().map(|file| {
        let state = if file.exists() { "" } else { ", which is not there" };
        format!("{}{state}", file.display())
    });
    find(
        "configuration",
        Ok(file.unwrap_or_else(|| "none: neither XDG_CONFIG_HOME nor HOME is an absolute path".to_owned())),
    );
    if let Some(dir) = &args.bundle {
        match bundle(dir) {
            Err(error) => find("bundle", Err(error)),
            Ok((found, mut engine)) => {
                find("bundle", Ok(found));
                find("it learns", learns(&mut engine));
            }
        }
    }
    let wrong = findings.iter().filter(|finding| finding.is_wrong).count();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "findings": findings, "wrong": wrong }))?;
    } else {
        for Finding { what, found, is_wrong } in &findings {
            let mark = if *is_wrong { "WRONG  " } else { "" };
            writeln!(out, "{what:<15}{mark}{}", printable_line(found))?;
        }
    }
    match wrong {
        0 => Ok(()),
        _ => Err(anyhow!(
            "{} wrong with this device or bundle",
            if wrong == 1 { "one thing is" } else { "some things are" }
        )),
    }
}

fn personas(args: &DoctorArgs) -> Result<String, String> {
    let store = args.home.store().map_err(|error| error.to_string())?;
    let folder = store.folder();
    let there = store.names().len();
    // Nothing is made to find out: of a folder that is not there, the nearest above it counts.
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = tempfile::Builder::new().prefix(marionette_models::files::TEMPORARY_PREFIX).tempfile_in(nearest);
    match probe {
        Ok(_) => Ok(format!("{there} in {}", folder.display())),
        Err(error) => Err(format!("{}: cannot be written: {error} (give --home)", folder.display())),
    }
}

/// Verifies a bundle whole, and opens it on the processor.
fn bundle(dir: &Path) -> Result<(String, Engine), String> {
    let bundle = Bundle::open(dir).map_err(|error| error.to_string())?;
    let engine = Engine::open(&bundle, Options::default()).map_err(|error| error.to_string())?;
    let manifest = bundle.manifest();
    let digest: String = manifest.base_sha256.chars().take(12).collect();
    let (family, precision) = (&manifest.model.family, manifest.precision);
    Ok((format!("{}: whole, {family}, {precision}, base {digest}", dir.display()), engine))
}

/// The memory that learning takes, beside what there is.
fn learns(engine: &mut Engine) -> Result<String, String> {
    let length = engine.manifest().model.n_positions.min(LONG);
    let most = plan::most_for(engine, length).map_err(|error| error.to_string())?;
    let Some((most, system)) = most.zip(memory::system()) else {
        return Ok("with as much memory as it takes: this system does not say".to_owned());
    };
    let found = format!("from a dialogue of {length} tokens with at most {} of memory", ByteSize(most));
    match most {
        most if most > system.total => Err(format!("{found}, more than there is: adapt with --memory-limit")),
        most if most > system.available => Ok(format!("{found}, more than is free: adapt with --memory-limit")),
        _ => Ok(found),
    }
}

//! The command `inspect`: what is in a bundle, and whether this device computes what the trainer did.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::anyhow;
use indicatif::HumanCount;
use marionette_models::bundle::{Bundle, Dim, GraphInterface, ValueInfo};
use marionette_models::terminal::printable;
use marionette_models::{LearningRate, TensorSpec, params};
use marionette_runtime::{Engine, Error, inspect as inspection};

use crate::args::InspectArgs;

/// Describes the bundle, or compares it with what the trainer recorded.
///
/// # Errors
/// The bundle cannot be opened; it does not compute what the trainer did.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.common.bundle).map_err(Error::from)?;
    let mut out = io::stdout().lock();
    if !args.check && !args.json {
        write!(out, "{}", printable(&describe(&bundle)))?;
    }
    let mut engine = Engine::open(&bundle, args.common.options())?;
    let runtime = engine.runtime();
    let providers: Vec<&str> = runtime.providers().iter().map(|provider| provider.name()).collect();
    let (version, library) = (runtime.version(), runtime.library().display().to_string());
    let provider = engine.provider();
    let parity = args.check.then(|| inspection::check(&mut engine, &bundle)).transpose()?;
    if args.json {
        let manifest = bundle.manifest();
        let runtime = serde_json::json!({ "version": version, "library": library, "providers": providers });
        let object = serde_json::json!({ "manifest": manifest, "runtime": runtime, "provider": provider.name(),
            "parity": parity, "is_good": parity.as_ref().map(inspection::Parity::is_good) });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "ONNX Runtime {version}, provider {provider} (it has {}), {library}", providers.join(", "))?;
        if let Some(parity) = &parity {
            write!(out, "{parity}")?;
        }
    }
    if parity.is_some_and(|parity| !parity.is_good()) {
        let dir = bundle.dir().display();
        return Err(anyhow!("{dir}: this device does not compute what the trainer did; export again or report it"));
    }
    Ok(())
}

/// A description of a bundle, several lines.
fn describe(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let model = &manifest.model;
    let base = params::base_table(model);
    let table = params::adapter_table(model, &manifest.adapter);
    let count = |table: &[TensorSpec]| grouped(table.iter().map(TensorSpec::len).sum());
    let inner = &manifest.inner_loop;
    let rate = match &inner.learning_rate {
        LearningRate::Shared(rate) => format!("{rate}"),
        LearningRate::PerTensor(rates) => {
            let (low, high) =
                rates.iter().fold((f32::MAX, f32::MIN), |(low, high), &rate| (low.min(rate), high.max(rate)));
            format!("{low} to {high}, one a tensor")
        }
    };
    let precision = manifest.precision;
    let mut lines = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{key:<12}{value}");
    };
    line(
        "bundle",
        format!("{} (format {}, by {})", bundle.dir().display(), manifest.format_version, manifest.producer),
    );
    line(
        "model",
        format!(
            "{}: {} blocks, width {}, {} heads{}, MLP {}, context {}, vocabulary {}",
            model.family,
            model.n_layer,
            model.n_embd,
            model.n_head,
            if model.n_kv_head == model.n_head { String::new() } else { format!(" over {}", model.n_kv_head) },
            model.n_inner,
            model.n_positions,
            model.vocab_size
        ),
    );
    line(
        "parameters",
        format!(
            "{} frozen ({precision}); {} in {} adapters with bottleneck {}{}",
            count(&base),
            count(&table),
            table.len() / 4,
            manifest.adapter.bottleneck,
            match manifest.adapter.first_block {
                0 => String::new(),
                first => format!(", in blocks {first} to {}", model.n_layer - 1),
            }
        ),
    );
    line("operators", name_of(&manifest.operators));
    line("base", format!("SHA-256 {}", manifest.base_sha256));
    line(
        "inner loop",
        format!("{} steps, up to {} dialogues a step, learning rate {rate}", inner.steps, inner.dialogues_per_step),
    );
    line(
        "persona",
        if manifest.persona_text { "its sentences stand in front of each dialogue" } else { "no text in front" }.into(),
    );
    for (index, (name, entry)) in manifest.files.iter().enumerate() {
        line(if index == 0 { "files" } else { "" }, format!("{name:<22}{:>13} bytes", grouped(entry.bytes as usize)));
    }
    for interface in manifest.graphs.values() {
        describe_graph(&mut lines, interface, &table);
    }
    lines
}

/// A value as its manifest spells it.
fn name_of(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn describe_graph(lines: &mut String, interface: &GraphInterface, table: &[TensorSpec]) {
    let _ = writeln!(lines, "{}", interface.file);
    for (way, values) in [("takes", &interface.inputs), ("gives", &interface.outputs)] {
        let mut rest = values.as_slice();
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|value| family(&value.name, table) == family(&first.name, table)).count();
            let _ = writeln!(lines, "  {way}  {}", describe_values(first, run, table));
            rest = rest.get(run..).unwrap_or_default();
        }
    }
}

/// What values belong together: the caches, the adapters, and each other one alone.
fn family(name: &str, table: &[TensorSpec]) -> String {
    let is_adapter = |name: &str| table.iter().any(|spec| spec.name == name);
    match name.split_once('.') {
        _ if is_adapter(name) => "adapters".to_owned(),
        Some(("updated", rest)) if is_adapter(rest) => "updated adapters".to_owned(),
        Some((side @ ("past" | "present"), _)) => format!("{side} keys and values"),
        _ => name.to_owned(),
    }
}

fn describe_values(first: &ValueInfo, run: usize, table: &[TensorSpec]) -> String {
    let shape: Vec<String> = first
        .shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
        })
        .collect();
    let (dtype, family) = (name_of(&first.dtype), family(&first.name, table));
    if family.ends_with("adapters") {
        return format!("{family:<24}{dtype} {run} tensors");
    }
    let times = if run > 1 { format!("{run} of ") } else { String::new() };
    format!("{family:<24}{dtype} {times}[{}]", shape.join(", "))
}

/// `1234567` as `1,234,567`.
fn grouped(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            ["0", "999", "1,000", "124,439,808"],
            [0, 999, 1000, 124_439_808].map(grouped).each_ref().map(String::as_str)
        );
    }
}

//! Whether a sentence follows from a text, by a model of natural language inference that somebody brings: what PAML's consistency asks
//! (Madotto et al. 2019, "Personalizing Dialogue Agents via Meta-Learning", equation 5).

use std::collections::BTreeMap;
use std::path::Path;

use marionette_dialogues::Judge;
use marionette_dialogues::panics::caught;
use marionette_models::{FileError, files};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::engine::Options;
use crate::error::Result;
use crate::session::{Classifier, GraphOptions, OnnxRuntime};

/// The graph: ids, mask and, where it has them, types of tokens in, a logit for each label out.
const MODEL: &str = "model.onnx";
/// Hugging Face's tokenizer, which joins pairs of texts.
const TOKENIZER: &str = "tokenizer.json";
/// Names the labels (`id2label`).
const CONFIG: &str = "config.json";
/// A tokenizer or configuration of more bytes is refused.
const MOST_BYTES: u64 = 64 << 20;
/// Longer pairs are cut, where the configuration does not say how many tokens the model takes.
const TOKENS: usize = 512;

/// The folder that Hugging Face's exporters write for a model of pairs of texts: `model.onnx`, `tokenizer.json`, `config.json`.
pub struct Entailment {
    classifier: Classifier,
    tokenizer: Tokenizer,
    /// What each label says: 1 follows, −1 contradicts, 0 neither.
    labels: Vec<i8>,
    most: usize,
}

#[derive(Deserialize)]
struct Config {
    id2label: BTreeMap<usize, String>,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
}

impl Entailment {
    /// Opens a model's folder.
    ///
    /// # Errors
    /// A file is missing or wrong; a label is none of entailment, neutral and contradiction; ONNX Runtime refuses the graph.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let path = dir.join(CONFIG);
        let config: Config = serde_json::from_slice(&files::read_limited(&path, MOST_BYTES)?)
            .map_err(|error| FileError::new(&path, error).at("id2label"))?;
        let in_order = config.id2label.keys().copied().eq(0..config.id2label.len());
        let labels: Option<Vec<i8>> = config.id2label.values().map(|label| meaning(label)).collect();
        let Some(labels) = labels.filter(|labels| in_order && [1, -1].iter().all(|wanted| labels.contains(wanted)))
        else {
            let found: Vec<&str> = config.id2label.values().map(String::as_str).collect();
            let problem = format!("is {found:?}, expected entailment, neutral and contradiction, from 0 on");
            return Err(FileError::new(&path, problem).at("id2label").into());
        };
        let path = dir.join(TOKENIZER);
        let bytes = files::read_limited(&path, MOST_BYTES)?;
        let wrong = |error: String| FileError::new(&path, error);
        let mut tokenizer =
            caught(|| Tokenizer::from_bytes(&bytes)).map_err(wrong)?.map_err(|e| wrong(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let most = config.max_position_embeddings.unwrap_or(TOKENS).clamp(1, TOKENS);
        let options = GraphOptions {
            provider: options.provider,
            threads: options.threads,
            kernels: false,
            memory_pattern: true,
            prepacking: true,
            huge_pages_after: None,
        };
        let classifier = Classifier::open(OnnxRuntime::load()?, &dir.join(MODEL), options)?;
        Ok(Self { classifier, tokenizer, labels, most })
    }
}

/// What a label says, by its name.
fn meaning(label: &str) -> Option<i8> {
    let label = label.to_lowercase();
    [("entail", 1), ("contra", -1), ("neutral", 0)]
        .into_iter()
        .find(|(name, _)| label.contains(name))
        .map(|(_, says)| says)
}

impl Judge for Entailment {
    fn judge(&mut self, text: &str, sentence: &str) -> Result<i8, String> {
        let wrong = |error: String| format!("{TOKENIZER}: {error}");
        let encoding = caught(|| self.tokenizer.encode((text, sentence), true)).map_err(wrong)?;
        let encoding = encoding.map_err(|error| wrong(error.to_string()))?;
        let row = |values: &[u32]| values.iter().take(self.most).map(|&value| i64::from(value)).collect::<Vec<_>>();
        let rows = vec![
            ("input_ids", row(encoding.get_ids())),
            ("attention_mask", row(encoding.get_attention_mask())),
            ("token_type_ids", row(encoding.get_type_ids())),
        ];
        let logits = self.classifier.run(rows).map_err(|error| error.to_string())?;
        if logits.len() != self.labels.len() || logits.iter().any(|logit| logit.is_nan()) {
            let (found, expected) = (logits.len(), self.labels.len());
            return Err(format!(
                "{MODEL}: gives {found} logits, or not-a-number among them, expected one for each of {expected} labels"
            ));
        }
        let best = logits.iter().zip(&self.labels).max_by(|(one, _), (other, _)| one.total_cmp(other));
        Ok(best.map_or(0, |(_, &says)| says))
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::onnx::{
        AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
        TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    };
    use prost::Message as _;

    use super::*;
    use crate::session::SessionError;

    /// A stand-in: logits are sums of a table's rows, one a token. The words "yes" and "no" decide.
    fn stand_in(dir: &Path, labels: &str) {
        let words = ["[UNK]", "[CLS]", "[SEP]", "yes", "no", "cats"];
        let table: [[f32; 3]; 6] =
            [[0.0; 3], [0.0, 0.5, 0.0], [0.0; 3], [0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.25]];
        let vocabulary: BTreeMap<&str, usize> = words.iter().copied().zip(0..).collect();
        let tokenizer = serde_json::json!({
            "version": "1.0",
            "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [],
            "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1] },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
        });
        std::fs::write(dir.join(TOKENIZER), tokenizer.to_string()).unwrap();
        std::fs::write(dir.join(CONFIG), format!(r#"{{"id2label": {labels}, "max_position_embeddings": 8}}"#)).unwrap();
        let value = |name: &str, elem_type: i32| {
            let dim = |name: &str| DimensionProto { value: Some(Dimension::Parameter(name.to_owned())) };
            let shape = Some(TensorShapeProto { dim: vec![dim("rows"), dim(name)] });
            let tensor_type = Some(TensorTypeProto { elem_type, shape });
            ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
        };
        let node = |op: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>| NodeProto {
            op_type: op.to_owned(),
            input: input.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        };
        let initializer = vec![
            TensorProto {
                name: "table".into(),
                dims: vec![6, 3],
                data_type: 1,
                raw_data: Some(table.as_flattened().iter().flat_map(|value| value.to_le_bytes()).collect()),
                ..TensorProto::default()
            },
            TensorProto {
                name: "one".into(),
                dims: vec![1],
                data_type: 7,
                raw_data: Some(1_i64.to_le_bytes().to_vec()),
                ..TensorProto::default()
            },
        ];
        let keep = AttributeProto { name: "keepdims".into(), i: 0, r#type: 2, ..AttributeProto::default() };
        let graph = GraphProto {
            name: "stand-in".into(),
            node: vec![
                node("Gather", &["table", "input_ids"], "rows", Vec::new()),
                node("ReduceSum", &["rows", "one"], "logits", vec![keep]),
            ],
            initializer,
            input: vec![value("input_ids", 7)],
            output: vec![value("logits", 1)],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 10,
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            ..ModelProto::default()
        };
        std::fs::write(dir.join(MODEL), model.encode_to_vec()).unwrap();
    }

    #[test]
    fn a_pair_is_judged_by_the_label_of_the_largest_logit() {
        if let Err(SessionError::Missing { .. }) = OnnxRuntime::load() {
            eprintln!("skipped: no ONNX Runtime; scripts/native-deps.sh onnxruntime fetches it");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        stand_in(dir.path(), r#"{"0": "CONTRADICTION", "1": "neutral", "2": "Entailment"}"#);
        let mut judge = Entailment::open(dir.path(), Options::default()).unwrap();
        // One half is neutral's, from the token that begins a pair.
        for (text, sentence, expected) in [
            ("dogs", "birds", 0),
            ("yes", "birds", 1),
            ("dogs", "yes", 1),
            ("yes", "no", -1),
            ("cats", "birds", 0),
            // The ninth token is cut.
            ("dogs dogs dogs dogs dogs", "yes no", 1),
        ] {
            assert_eq!(judge.judge(text, sentence).unwrap(), expected, "{text}, {sentence}");
        }
        stand_in(dir.path(), r#"{"0": "neutral", "1": "entailment", "2": "contradiction"}"#);
        assert_eq!(Entailment::open(dir.path(), Options::default()).unwrap().judge("yes", "b").unwrap(), -1);
        for (labels, part) in [
            (r#"{"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}"#, "LABEL_0"),
            (r#"{"1": "neutral", "2": "entailment", "3": "contradiction"}"#, "from 0 on"),
            (r#"{"0": "neutral", "1": "entailment"}"#, "contradiction"),
            ("3", "id2label"),
        ] {
            stand_in(dir.path(), labels);
            let error = Entailment::open(dir.path(), Options::default()).err().unwrap().to_string();
            assert!(error.contains("config.json") && error.contains(part) && error.lines().count() == 1, "{error}");
        }
        stand_in(dir.path(), r#"{"0": "neutral", "1": "entailment", "2": "contradiction", "3": "neutral"}"#);
        let error = Entailment::open(dir.path(), Options::default()).unwrap().judge("a", "b").unwrap_err();
        assert!(error.contains("3 logits") && error.contains("4 labels"), "{error}");
        std::fs::remove_file(dir.path().join(TOKENIZER)).unwrap();
        assert!(Entailment::open(dir.path(), Options::default()).err().unwrap().to_string().contains(TOKENIZER));
    }
}

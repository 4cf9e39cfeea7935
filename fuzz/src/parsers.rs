//! Files, as the programs read them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use marionette_dialogues::{
    Encoder, Redaction, Rules, read_file, read_persona, save_tokenizer, tokenizer_from_bytes, train_bpe,
};
use marionette_exporter::{FreshAdapters, Source, import};
use marionette_models::bundle::Manifest;
use marionette_models::checkpoint::{Storage, read_adapters, write_adapters, write_base};
use marionette_models::run::{self, RunModel, Which};
use marionette_models::safetensors_file::{self, FileMetadata};
use marionette_models::{AdapterConfig, Gpt2Shape, HostTensor, ModelConfig, Tensors, init, params};
use marionette_runtime::personas::Store;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::graphs;

/// A folder in memory, where there is one: millions of files are written.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        folder.expect("a temporary folder")
    });
    made.path()
}

/// A file of this thread with this content: tests run side by side.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(format!("{:?}-{name}", std::thread::current().id()));
    fs::write(&path, content).expect("a file can be written");
    path
}

/// A folder of this thread.
fn inner(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let path = folder().join(format!("{:?}-{name}", std::thread::current().id()));
    if !path.is_dir() {
        fs::create_dir_all(&path).expect("a folder can be made");
        fill(&path);
    }
    path
}

/// What is refused is refused in one line.
pub fn refused<T, E: Display>(result: Result<T, E>) -> Option<T> {
    result.map_err(|error| assert_eq!(error.to_string().lines().count(), 1, "{error}")).ok()
}

fn shape() -> ModelConfig {
    let shape = Gpt2Shape { vocab_size: 257, n_positions: 8, n_embd: 4, n_layer: 1, n_head: 2 };
    ModelConfig { n_inner: 8, eos_token_id: 256, ..shape.into() }
}

fn adapter() -> AdapterConfig {
    AdapterConfig::in_all_blocks(2)
}

fn adapters() -> Tensors {
    params::adapter_table(&shape(), &adapter())
        .into_iter()
        .map(|spec| (spec.name.clone(), HostTensor { values: vec![0.5; spec.len()], shape: spec.shape }))
        .collect()
}

/// A model folder, as small as one can be.
fn tiny_model() -> PathBuf {
    inner("model", |path| {
        let config = shape();
        let tensors = init::initialise(&params::base_table(&config), &mut ChaCha8Rng::seed_from_u64(1));
        write_base(path, &config, &tensors, Storage::F16).expect("a folder can be filled");
        save_tokenizer(&train_bpe(["a"], 257).expect("bytes"), path.join("tokenizer.json")).expect("a tokenizer");
    })
}

/// Texts in every format of dialogues.
pub fn dialogue_seeds() -> Vec<Vec<u8>> {
    [
        "1 your persona: i sew.\n2 hi there\thello .\n3 what do you do ?\ti sew my own clothes .\t\tyes .|no .\n1 hi\tho\n",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"ho\"}],\"persona\":[\"i sew .\"]}\n",
        "[{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"hi\"}]},{\"role\":\"assistant\",\"content\":\"ho\",\"weight\":0}]}]",
        "{\"train\":[{\"personality\":[\"i sew .\"],\"utterances\":[{\"candidates\":[\"no .\",\"yes .\"],\"history\":[\"hi\"]}]}],\"valid\":[]}",
        "user 1 personas,user 2 personas,Best Generated Conversation\n\"i sew.\",\"i ski.\",\"User 1: hi\nUser 2: ho\nUser 1: what ?\"\n",
        "\u{feff}1 hi\tho\r\n2 a\tb\r\n",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"hi\"},{\"from\":\"gpt\",\"value\":\"ho\"}]}\n",
        "[{\"instruction\":\"hi\",\"input\":\"x\",\"output\":\"ho\",\"history\":[[\"a\",\"b\"]]},{\"prompt\":\"hi\",\"completion\":\"ho\"}]",
        "03/11/2025, 18:04 - Ada: honey?\n[3/11/25, 6:05:11\u{202f}PM] Ole: jars\nmore \u{200e}<edited>\n03/11/2025, 18:06 - Ada: <Media omitted>\n",
        "{\"name\":\"Ole\",\"type\":\"personal_chat\",\"messages\":[{\"id\":1,\"type\":\"message\",\"date\":\"2025-11-03T18:02:11\",\"from\":\"Ada\",\"from_id\":\"user1\",\"text\":[\"a\\x0B\",{\"type\":\"bold\",\"text\":\"b\"}]},{\"type\":\"message\",\"from\":\"Ole\",\"text\":\"c\"}]}",
        "{\"guild\":{},\"channel\":{},\"messages\":[{\"type\":\"Default\",\"timestamp\":\"2025-11-03T18:02:11+00:00\",\"content\":\"a\",\"author\":{\"id\":\"1\",\"name\":\"ada\",\"isBot\":false}},{\"type\":\"Reply\",\"content\":\"b\",\"author\":{\"name\":\"ole\"}}]}",
        "{\"participants\":[{\"name\":\"Ada\"}],\"messages\":[{\"sender_name\":\"Ada\",\"timestamp_ms\":2000,\"content\":\"caf\u{c3}\u{a9}\"},{\"sender_name\":\"Ole\",\"timestamp_ms\":1000,\"content\":\"b\"}]}",
        "{\"user_name\":\"Ada\",\"character_name\":\"Ole\"}\n{\"name\":\"Ada\",\"is_user\":true,\"mes\":\"a\"}\n{\"name\":\"Ole\",\"mes\":\"b\",\"swipes\":[\"b\",\"c\"],\"swipe_id\":1}\n",
        "May 17, 2022  5:29:42 PM\nMe\nhi\n\nMay 17, 2022  5:30:00 PM (Read)\n+1\nho\nEdited 1 second later: hm\n    x\n",
        "{\"turns\":[{\"create_time\":\"2024-05-02T10:00:02Z\",\"author\":{\"name\":\"Ole\"},\"candidates\":[{\"candidate_id\":\"1\",\"raw_content\":\"ho\"}],\"primary_candidate_id\":\"1\"},{\"author\":{\"is_human\":true},\"candidates\":[{\"raw_content\":\"hi\"}]}]}",
        "{\"histories\":{\"histories\":[{\"msgs\":[{\"text\":\"hi\",\"src\":{\"is_human\":true}},{\"text\":\"+49 30 123456\",\"src\":{\"is_human\":false}}]}]}}",
        "{\"spec\":\"x\",\"data\":{\"name\":\"Ole\",\"description\":\"{{char}}\",\"first_mes\":\"a\",\"mes_example\":\"<START>\\n{{user}}: hi\\n{{char}}: ho\"}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into_iter()
    .chain(CONTAINERS.map(<[u8]>::to_vec))
    .collect()
}

/// What others made: archives, pictures and tables.
const CONTAINERS: [&[u8]; 5] = [
    include_bytes!("../../dialogues/tests/fixtures/containers/chat.zip"),
    include_bytes!("../../dialogues/tests/fixtures/containers/card.charx"),
    include_bytes!("../../dialogues/tests/fixtures/containers/card.png"),
    include_bytes!("../../dialogues/tests/fixtures/containers/messages.parquet"),
    include_bytes!("../../dialogues/tests/fixtures/containers/conversations.parquet"),
];

/// A file of dialogues, of any personas and as all of one's.
pub fn dialogues(data: &[u8]) {
    let path = file("dialogues.txt", data);
    refused(read_file(&path));
    refused(read_persona(&[path], &Rules::default(), Some(&Redaction::default()), &mut drop));
}

/// A `config.json` of each family.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let llama = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":300,"hidden_size":16,
        "intermediate_size":32,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":4,
        "max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,"rope_scaling":null,"hidden_act":"silu",
        "tie_word_embeddings":true,"attention_bias":false,"mlp_bias":false,"bos_token_id":1,"eos_token_id":[2,3]}"#;
    vec![fs::read(tiny_model().join("config.json")).unwrap_or_default(), llama.into()]
}

/// A `config.json`.
pub fn config(data: &[u8]) {
    if let Some(config) = refused(ModelConfig::from_file(&file("config.json", data))) {
        // What is taken can be laid out.
        drop(params::base_table(&ModelConfig { n_layer: config.n_layer.min(4), ..config }));
    }
}

/// Safetensors files, ours and others'.
pub fn safetensors_seeds() -> Vec<Vec<u8>> {
    let raw = marionette_models::checkpoint::adapters_to_raw(&adapters()).expect("finite");
    let ours = safetensors_file::to_bytes(&raw, FileMetadata::Ours(&[("a".into(), "b".into())].into()));
    let others = safetensors_file::to_bytes(&raw, FileMetadata::HuggingFace);
    [ours, others].into_iter().map(|bytes| bytes.expect("tensors fit")).collect()
}

/// A safetensors file, read as adapters and whatever it is.
pub fn safetensors(data: &[u8]) {
    let path = file("file.safetensors", data);
    refused(safetensors_file::read(&path));
    refused(read_adapters(&path, &shape(), &adapter()));
}

/// A `tokenizer.json`.
pub fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let byte_level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
    vec![
        format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{{"id":3,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],"normalizer":null,"pre_tokenizer":{byte_level},"post_processor":null,"decoder":{byte_level},"model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{{"a":0,"b":1,"ab":2}},"merges":[["a","b"]]}}}}"#
        )
        .into_bytes(),
    ]
}

/// A `tokenizer.json`; what is taken must encode and decode.
pub fn tokenizer(data: &[u8]) {
    let Some(tokenizer) = refused(tokenizer_from_bytes(data, Path::new("tokenizer.json"))) else { return };
    if let Some(ids) = refused(tokenizer.encode("ab a <|endoftext|> \u{1f600}")) {
        tokenizer.decode(&ids);
    }
    tokenizer.decode(&[0, 1, u32::MAX]);
    // Written only where the embedding has a row for each id.
    if tokenizer.largest_id() < 1 << 16 {
        refused(tokenizer.to_json());
    }
}

/// Chat templates.
pub fn template_seeds() -> Vec<Vec<u8>> {
    [
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "{% for i in range(9999999) %}{{ i }}{% endfor %}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// A chat template beside a tokenizer.
pub fn template(data: &[u8]) {
    let path = inner("template", |path| {
        fs::copy(tiny_model().join("tokenizer.json"), path.join("tokenizer.json")).expect("a file can be copied");
    });
    fs::write(path.join("chat_template.jinja"), data).expect("a file can be written");
    refused(Encoder::from_folder(&path, &shape()));
}

/// A `manifest.json`.
pub fn manifest_seeds() -> Vec<Vec<u8>> {
    vec![serde_json::to_vec_pretty(&graphs::manifest()).expect("a manifest is JSON")]
}

/// A `manifest.json`; with it and nothing else a folder is no bundle.
pub fn manifest(data: &[u8]) {
    refused(Manifest::parse(Path::new("manifest.json"), data));
}

/// A persona's file.
pub fn persona_seeds() -> Vec<Vec<u8>> {
    let former = [
        ("format_version", "1"),
        ("name", "x"),
        ("base_sha256", &"0".repeat(64)),
        ("dialogues", "3"),
        ("dialogues_sha256", &"1".repeat(64)),
        ("persona", "[\"i sew .\"]"),
        ("learning_rate", "0.1"),
        ("steps", "2"),
        ("losses", "[3.5,2.5]"),
        ("loss_after", "2.0"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let record = r#"{"dialogues":3,"dialogues_sha256":"1","persona":["i sew ."],"learning_rate":[0.1,0.2],"losses":[3.5],
        "loss_after":2.0,"held_out":{"dialogues":1,"before":3.0,"after":2.5},"from":"x@1","seconds":1.5}"#;
    let base = "0".repeat(64);
    let today =
        [("format_version", "2"), ("base_sha256", &base), ("created", "2026-11-30T12:00:00Z"), ("record", record)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let path = file("seed.safetensors", &[]);
    let seed = |metadata: &BTreeMap<String, String>| {
        write_adapters(&path, &adapters(), metadata).expect("adapters can be written");
        fs::read(&path).unwrap_or_default()
    };
    vec![seed(&former.into()), seed(&today.into())]
}

/// A persona's file, in a store.
pub fn persona(data: &[u8]) {
    let home = inner("home", |path| fs::create_dir_all(path.join("personas")).expect("a folder can be made"));
    fs::write(home.join("personas/x.safetensors"), data).expect("a file can be written");
    let manifest = Manifest { model: shape(), adapter: adapter(), ..graphs::manifest() };
    let store = Store::new(Some(&home)).expect("a home is given");
    refused(store.load(&"x".parse().expect("a name"), None, &manifest));
}

/// The files of a run that are no tensors.
const OF_A_RUN: [&str; 5] = [
    "config.toml",
    "best",
    "checkpoints/step-1/SHA256SUMS",
    "checkpoints/step-1/inner_loop.json",
    "checkpoints/step-1/state.json",
];

fn tiny_run() -> PathBuf {
    inner("run", |path| {
        let step = path.join("checkpoints/step-1");
        fs::create_dir_all(&step).expect("a folder can be made");
        let write = |name: &str, text: &str| fs::write(path.join(name), text).expect("a file can be written");
        let model = "base = \"/nowhere\"\nbase_sha256 = \"00\"\nmethod = \"extra-place\"\npersona_text = false\n\
                     [adapter]\nbottleneck = 2\n[inner_loop]\nsteps = 3\ndialogues_per_step = 2\nlearning_rate = 0.05\n";
        write(OF_A_RUN[0], model);
        write(OF_A_RUN[1], "step-1\n");
        let recipe = r#"{"steps":3,"dialogues_per_step":2,"learning_rate":[0.07,0.1]}"#;
        write(OF_A_RUN[3], recipe);
        let state = format!(
            r#"{{"config":{{"base":"/x","base_sha256":"00","method":"extra-place","persona_text":true,"adapter":{{"bottleneck":2}},"inner_loop":{recipe}}}}}"#
        );
        write(OF_A_RUN[4], &state);
        run::seal(&step).expect("a checkpoint can be sealed");
    })
}

/// The files of a run.
pub fn checkpoint_seeds() -> Vec<Vec<u8>> {
    numbered(&tiny_run(), &OF_A_RUN)
}

/// Each file after the number that it has in the list.
fn numbered(folder: &Path, names: &[&str]) -> Vec<Vec<u8>> {
    let read =
        |(index, name): (usize, &&str)| [vec![index as u8], fs::read(folder.join(name)).unwrap_or_default()].concat();
    names.iter().enumerate().map(read).collect()
}

/// A run directory, of which one file is another: the first byte says which.
pub fn checkpoint(data: &[u8]) {
    let Some((which, content)) = data.split_first() else { return };
    let name = OF_A_RUN[usize::from(*which) % OF_A_RUN.len()];
    let (run, step) = (tiny_run(), tiny_run().join("checkpoints/step-1"));
    let path = run.join(name);
    let whole = fs::read(&path).expect("the run is there");
    fs::write(&path, content).expect("a file can be written");
    refused(run::checkpoint(&run, Which::Best));
    // Sealed anew, what is in it counts.
    refused(RunModel::read(&run, &step));
    refused(run::inner_loop(&step));
    fs::write(&path, whole).expect("a file can be written");
}

/// A GGUF file of one tensor, and of none.
pub fn gguf_seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat();
    let entry = |key: &str, kind: u32, value: &[u8]| [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat();
    let head = |tensors: u64, entries: u64| {
        [b"GGUF".to_vec(), 3_u32.to_le_bytes().to_vec(), tensors.to_le_bytes().to_vec(), entries.to_le_bytes().to_vec()]
            .concat()
    };
    let list = [8_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec(), text("a"), text("b")].concat();
    let metadata = [
        entry("general.architecture", 8, &text("llama")),
        entry("llama.block_count", 4, &1_u32.to_le_bytes()),
        entry("tokenizer.ggml.tokens", 9, &list),
    ]
    .concat();
    let tensor = [
        text("token_embd.weight"),
        2_u32.to_le_bytes().to_vec(),
        32_u64.to_le_bytes().to_vec(),
        2_u64.to_le_bytes().to_vec(),
        8_u32.to_le_bytes().to_vec(),
        0_u64.to_le_bytes().to_vec(),
    ]
    .concat();
    let mut whole = [head(1, 3), metadata.clone(), tensor].concat();
    whole.resize(whole.len().next_multiple_of(32) + 68, 0);
    vec![whole, [head(0, 3), metadata].concat()]
}

/// A GGUF file, imported.
pub fn gguf(data: &[u8]) {
    let out = folder().join(format!("{:?}-imported", std::thread::current().id()));
    if refused(import(&file("model.gguf", data), &out, None, &AtomicBool::new(false))).is_some() {
        fs::remove_dir_all(out).expect("it was just made");
    }
}

/// The files of a model folder.
const OF_A_MODEL: [&str; 6] = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// The files of a model.
pub fn model_seeds() -> Vec<Vec<u8>> {
    numbered(&tiny_model(), &OF_A_MODEL)
}

/// A model folder, of which one file is another: the first byte says which. What is taken could be exported.
pub fn model(data: &[u8]) {
    let Some((which, content)) = data.split_first() else { return };
    let model = tiny_model();
    let path = model.join(OF_A_MODEL[usize::from(*which) % OF_A_MODEL.len()]);
    let whole = fs::read(&path).ok();
    fs::write(&path, content).expect("a file can be written");
    let fresh = FreshAdapters { bottleneck: Some(2), seed: None };
    refused(Source::read(&model, fresh, None));
    match whole {
        Some(whole) => fs::write(&path, whole).expect("a file can be written"),
        None => fs::remove_file(&path).expect("it was just made"),
    }
}

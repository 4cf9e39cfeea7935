//! A persona's adapters as ONNX Runtime's own adapter file, loaded by ONNX Runtime as any other program would.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

mod support;

use marionette_models::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use marionette_models::{HostTensor, LearningRate};
use marionette_runtime::personas::{Format, Persona, Record, Store};
use marionette_runtime::session::{OnnxRuntime, SessionError};
use ort::session::{Adapter, RunOptions, Session, SessionInputValue};
use prost::Message as _;

/// A persona whose n-th adapter tensor has the values n, n + 0.125, …
fn persona() -> Persona {
    let adapters =
        support::adapters(&support::manifest(3, 2, 1, 5), |number, place| number as f32 + place as f32 / 8.0);
    let record = Record {
        dialogues: 1,
        dialogues_sha256: String::new(),
        persona: Vec::new(),
        learning_rate: LearningRate::Shared(0.1),
        losses: vec![1.0],
        loss_after: 0.5,
        held_out: None,
        from: None,
        seconds: None,
    };
    Persona { adapters, record }
}

/// A graph that takes all adapters and gives each back.
fn mirror(names: &[String]) -> ModelProto {
    let float = TypeProto { tensor_type: Some(TensorTypeProto { elem_type: data_type::FLOAT, shape: None }) };
    let value = |name: String| ValueInfoProto { name, r#type: Some(float.clone()) };
    let identity = |name: &String| NodeProto {
        input: vec![name.clone()],
        output: vec![format!("out.{name}")],
        op_type: "Identity".to_owned(),
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(GraphProto {
            name: "mirror".to_owned(),
            node: names.iter().map(identity).collect(),
            input: names.iter().cloned().map(value).collect(),
            output: names.iter().map(|name| value(format!("out.{name}"))).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

#[test]
fn onnx_runtime_loads_what_is_exported_as_its_adapter() {
    if let Err(SessionError::Missing { .. }) = OnnxRuntime::load() {
        eprintln!("skipped: no ONNX Runtime; scripts/native-deps.sh onnxruntime fetches it");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(Some(home.path())).unwrap();
    let name = "ann".parse().unwrap();
    let persona = persona();
    store.lock(&name).unwrap().save(&persona, None, &support::manifest(3, 2, 1, 5), true).unwrap();
    let file = home.path().join("ann.onnx_adapter");
    store.export(&name, None, Format::OnnxAdapter, &file).unwrap();

    let adapter = Adapter::from_file(&file, None).unwrap();
    let mut options = RunOptions::new().unwrap();
    options.add_adapter(&adapter).unwrap();
    let names: Vec<String> = persona.adapters.keys().cloned().collect();
    let graph = mirror(&names).encode_to_vec();
    let environment = OnnxRuntime::load().unwrap().environment();
    let mut session = Session::builder(environment).unwrap().commit_from_memory(&graph).unwrap();
    let outputs = session.run_with_options(Vec::<(&str, SessionInputValue<'_>)>::new(), &options).unwrap();
    for (name, HostTensor { shape, values }) in &persona.adapters {
        let (found_shape, found) = outputs[format!("out.{name}").as_str()].try_extract_tensor::<f32>().unwrap();
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        assert_eq!((&found_shape[..], found), (shape.as_slice(), values.as_slice()), "{name}");
    }
}

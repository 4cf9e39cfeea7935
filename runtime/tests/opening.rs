//! The first thing that several threads of a process do with ONNX Runtime is to open a graph at once. Which of them ONNX Runtime hears of our
//! operators from is a race that a process has once, so the test is one of many processes.

#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails a test.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use marionette_models::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
    data_type,
};
use marionette_runtime::session::{Graph, GraphOptions, OnnxRuntime, Provider, SessionError};
use prost::Message as _;

/// Names the graph to the process that opens it.
const GRAPH: &str = "MARIONETTE_TEST_GRAPH";
const PROCESSES: usize = 32;
const THREADS: usize = 4;

#[test]
fn threads_that_open_a_graph_at_once_all_get_it() {
    if let Some(graph) = env::var_os(GRAPH) {
        return open_at_once(Path::new(&graph));
    }
    if let Err(SessionError::Missing { .. }) = OnnxRuntime::load() {
        eprintln!("skipped: no ONNX Runtime; scripts/native-deps.sh onnxruntime fetches it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let graph = folder.path().join("graph.onnx");
    fs::write(&graph, identity().encode_to_vec()).unwrap();
    for _ in 0..PROCESSES {
        let process = Command::new(env::current_exe().unwrap()).env(GRAPH, &graph).output().unwrap();
        assert!(process.status.success(), "{}", String::from_utf8_lossy(&process.stdout));
    }
}

fn open_at_once(graph: &Path) {
    let runtime = OnnxRuntime::load().unwrap();
    let options = GraphOptions {
        provider: Provider::Cpu,
        threads: std::num::NonZeroUsize::new(1),
        kernels: true,
        memory_pattern: false,
        prepacking: false,
        huge_pages_after: None,
    };
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                Graph::open(runtime, graph, options).unwrap();
            });
        }
    });
}

/// y = Identity(x), x being a constant.
fn identity() -> ModelProto {
    let float = TypeProto { tensor_type: Some(TensorTypeProto { elem_type: data_type::FLOAT, shape: None }) };
    let x = TensorProto {
        dims: vec![1],
        data_type: data_type::FLOAT,
        name: "x".to_owned(),
        raw_data: Some(vec![0; 4]),
        ..TensorProto::default()
    };
    let node = NodeProto {
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        op_type: "Identity".to_owned(),
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(GraphProto {
            name: "identity".to_owned(),
            initializer: vec![x],
            node: vec![node],
            output: vec![ValueInfoProto { name: "y".to_owned(), r#type: Some(float) }],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

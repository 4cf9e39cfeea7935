use marionette_models::params::{Init, TensorSpec};
use marionette_models::{AdapterConfig, Gpt2Shape, Mlp, Norm, init, params};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind};

use super::*;
use crate::method::Method;

fn configs() -> [ModelConfig; 2] {
    let gpt2: ModelConfig = Gpt2Shape { vocab_size: 50, n_positions: 40, n_embd: 24, n_layer: 2, n_head: 4 }.into();
    let llama = ModelConfig {
        norm: Norm::Rms,
        mlp: Mlp::SwiGlu,
        positions: Positions::Rotary { base: 100.0 },
        n_kv_head: 2,
        bias: false,
        tied: false,
        ..gpt2.clone()
    };
    [gpt2, llama]
}

/// The loss, its gradient at Φ and a product of its Hessian, with the step recorded at once and from a trace.
fn derivatives(config: &ModelConfig, kind: Kind) -> Vec<Tensor> {
    tch::set_num_threads(2);
    let spread = |table: Vec<TensorSpec>| -> Vec<TensorSpec> {
        table.into_iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.3 }, ..spec }).collect()
    };
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut draw = |table: &[TensorSpec]| -> tensors::NamedTensors {
        let values = init::initialise(table, &mut random);
        tensors::all_to_torch(values, kind, Device::Cpu).unwrap()
    };
    let base = draw(&spread(params::base_table(config)));
    let table = params::adapter_table(config, &AdapterConfig { bottleneck: 8, ..AdapterConfig::default() });
    let [at, u] = [(); 2].map(|()| -> Vec<Tensor> {
        let drawn = draw(&spread(table.clone()));
        table.iter().map(|spec| drawn[&spec.name].shallow_clone()).collect()
    });
    let model = Model::new(config, Method::ExtraPlace.parts(), base, table, kind, Device::Cpu).unwrap();
    let engine = Engine::new(&model).unwrap().unwrap();
    let whole = (Kind::Int64, Device::Cpu);
    let batch = TokenBatch {
        ids: (Tensor::arange(74, whole) * 7).remainder(50).reshape([2, 37]),
        positions: None,
        rows: Tensor::arange(60, whole) + 9,
        targets: (Tensor::arange(60, whole) * 11).remainder(50),
        choices: None,
    };
    let (loss, mut all, trace) = engine.traced(&at, &batch, true).unwrap();
    all.push(Tensor::from(loss));
    let recorded = engine.curved(&at, &batch, true).unwrap();
    assert!((recorded.loss() - loss).abs() < 1e-6);
    all.extend(recorded.gradient().unwrap());
    all.extend(engine.times(recorded, &u, &batch).unwrap());
    all.extend(engine.times(engine.again(&at, &batch, trace).unwrap(), &u, &batch).unwrap());
    all
}

/// In f64 libtorch's operators compute all of it, and are themselves checked against its double backward; in f32 the device's kernels do.
#[test]
fn kernels_and_operators_compute_the_same() {
    for config in configs() {
        let (found, exact) = (derivatives(&config, Kind::Float), derivatives(&config, Kind::Double));
        assert_eq!(found.len(), exact.len());
        for (index, (found, exact)) in found.into_iter().zip(exact).enumerate() {
            assert_eq!(found.size(), exact.size());
            let scale = exact.abs().max().double_value(&[]).max(1e-3);
            let error = (found.to_kind(Kind::Double) - exact).abs().max().double_value(&[]) / scale;
            assert!(error < 5e-6, "{:?}, tensor {index}: {error:e}", config.norm);
        }
    }
}

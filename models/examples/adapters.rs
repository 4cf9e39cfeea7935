//! What a bundle's adapters are: each tensor, its shape and how large its values are.
//!
//!     cargo run --release -p marionette-models --example adapters -- bundle

use std::path::Path;

use marionette_models::bundle::Bundle;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(dir) = std::env::args_os().nth(1) else { return Err("expected a bundle".into()) };
    let bundle = Bundle::open(Path::new(&dir))?;
    for (name, tensor) in bundle.adapters()? {
        let squares: f64 = tensor.values.iter().map(|value| f64::from(*value).powi(2)).sum();
        let root = (squares / tensor.values.len().max(1) as f64).sqrt();
        println!("{name:<32} {:?}  {root:.5}", tensor.shape);
    }
    Ok(())
}

//! One target under libFuzzer: `FUZZ_TARGET` names it.

#![no_main]

use std::sync::OnceLock;

use marionette_fuzz::{TARGETS, Target};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("fuzz: set FUZZ_TARGET to one of {}", names.join(", "));
            std::process::exit(2)
        })
    });
    (chosen.run)(data);
});

//! Tests of the public interface, one module a source file.
#![allow(clippy::unwrap_used)]

mod encode;
mod evaluate;
mod helpers;
mod metrics;
mod readers;
mod tasks;
mod tokenizer;

//! Tests of the public interface, one module a source file.
#![allow(clippy::unwrap_used)]

mod chats;
mod containers;
mod encode;
mod evaluate;
mod formats;
mod helpers;
mod interval;
mod metrics;
mod rank;
mod readers;
mod redact;
mod report;
mod summary;
mod tasks;
mod tokenizer;

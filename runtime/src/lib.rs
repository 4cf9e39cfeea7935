//! The device: a bundle adapts to a persona and replies, on stock ONNX Runtime and without libtorch.
//!
//! ```
//! use marionette_runtime::{Options, adapt, chat::Conversation, dialogues, engine, generate::Go, personas::Store};
//! use marionette_runtime::sampling::{Sampler, Sampling};
//!
//! # let bundle = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/format-1/fp32-ort"));
//! # let (folder, file) = (tempfile::tempdir()?, "1 hi\tme sew\n2 why\tart !\n1 you\tme sew\n");
//! # let (home, mine) = (folder.path().join("home"), folder.path().join("mine.txt"));
//! # std::fs::write(&mine, file)?;
//! # // The program of a test in documentation lies elsewhere than others, so it does not find what they find.
//! # let library = concat!(env!("CARGO_MANIFEST_DIR"), "/../.deps/onnxruntime/lib/libonnxruntime.so");
//! # if std::env::var_os("ORT_DYLIB_PATH").is_none() && std::path::Path::new(library).exists() {
//! #     // SAFETY: no other thread runs yet.
//! #     unsafe { std::env::set_var("ORT_DYLIB_PATH", library) };
//! # }
//! let (mut engine, encoder) = engine::open(bundle, Options::default())?;
//! let dialogues = dialogues::read_dialogues(&mine)?;
//! // Learns from all but the last of the dialogues, by which it is judged what was learned, and is heard at each step.
//! let support = adapt::Support::new(&encoder, &dialogues, 1)?;
//! let plan = support.plan(&mut engine, &adapt::Recipe::default(), None)?;
//! let learned = adapt::adapt(&mut engine, &support, &plan, true, |heard| {
//!     println!("{heard:?}");
//!     Go::On
//! })?;
//! // Keeps it as a version of a persona.
//! let store = Store::new(Some(&home))?;
//! store.lock(&"ada".parse()?)?.save(&learned.persona, Some(&dialogues), engine.manifest(), true)?;
//! // Talks as it.
//! let (mut talk, mut sampler) = (Conversation::new(&encoder, Vec::new(), 16), Sampler::new(Sampling::default())?);
//! talk.say(&mut engine, &mut sampler, "hello", |piece| {
//!     print!("{piece}");
//!     Ok(Go::On)
//! })?;
//! # assert_eq!(store.names(), ["ada"]);
//! # assert_eq!(talk.history().len(), 2);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! ONNX Runtime is found when the first bundle is opened ([`session::OnnxRuntime::load`] says where). Its official library sends telemetry unless
//! `ORT_DISABLE_TELEMETRY=1` is set before it is loaded; without that it is refused.
//!
//! [`session`] is the only module that knows how ONNX Runtime is found, loaded and bound; [`engine`] runs a bundle's graphs, for one persona or
//! ([`engine::Rows`]) several at once; [`adapt`](mod@adapt), [`chat`] and [`personas`] are what is done with them. Nothing here parses a command
//! line, writes to a terminal or takes a signal: the program `marionette` is another crate over this one, as a server would be.

pub mod adapt;
pub mod bench;
pub mod chat;
pub mod engine;
pub mod entailment;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod inspect;
pub mod memory;
pub mod persona_name;
pub mod personas;
pub mod plan;
pub mod sampling;
pub mod session;

pub use marionette_dialogues as dialogues;
pub use marionette_kernels as kernels;
pub use marionette_models as models;

pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use session::Provider;

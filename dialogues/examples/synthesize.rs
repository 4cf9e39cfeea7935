//! Writes the synthetic dialogues: those that a small GPT-2 is pre-trained on, and the bundled three splits.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Parser;
use marionette_dialogues::synthetic::Generator;
use marionette_dialogues::{Dialogue, write_convai2};

/// How many candidates ConvAI2 gives with each reply.
const CANDIDATES: usize = 20;

/// Write pretrain.txt (without candidates), train.txt, valid.txt and test.txt in ConvAI2's format. No two personas of
/// one run are alike; the same arguments give the same bytes.
#[derive(Debug, Parser)]
struct Arguments {
    /// The folder to write to; made where it is missing.
    #[arg(long)]
    out: PathBuf,
    /// Everything follows from it.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Personas x dialogues to meta-train on.
    #[arg(long, default_value = "80x8")]
    train: Size,
    /// Personas x dialogues to choose the model by.
    #[arg(long, default_value = "10x8")]
    valid: Size,
    /// Personas x dialogues to test on.
    #[arg(long, default_value = "16x8")]
    test: Size,
    /// Personas x dialogues to pre-train on.
    #[arg(long, default_value = "4000x6")]
    pretrain: Size,
}

/// So many personas with so many dialogues each.
#[derive(Debug, Clone, Copy)]
struct Size {
    personas: usize,
    dialogues: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected PERSONASxDIALOGUES, such as 80x8, not {text:?}");
        let (personas, dialogues) = text.split_once('x').ok_or_else(expected)?;
        Ok(Self {
            personas: personas.parse().map_err(|_| expected())?,
            dialogues: dialogues.parse().map_err(|_| expected())?,
        })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make the folder {}", arguments.out.display()))?;
    let mut generator = Generator::new(arguments.seed);
    // The small splits come first, so that the amount of pre-training text changes nothing in them.
    for (name, size, candidates) in [
        ("test.txt", arguments.test, CANDIDATES),
        ("valid.txt", arguments.valid, CANDIDATES),
        ("train.txt", arguments.train, CANDIDATES),
        ("pretrain.txt", arguments.pretrain, 0),
    ] {
        let dialogues = generator.corpus(size.personas, size.dialogues, candidates);
        let path = arguments.out.join(name);
        write(&path, &dialogues).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: {} dialogues", path.display(), dialogues.len());
    }
    Ok(())
}

fn write(path: &PathBuf, dialogues: &[Dialogue]) -> Result<()> {
    let mut writer = BufWriter::new(File::create(path)?);
    write_convai2(&mut writer, dialogues)?;
    writer.flush()?;
    Ok(())
}

//! Splits a file of dialogues by persona: no persona is in both parts, and personas with one dialogue are left out. Who is held out
//! also gets a file each.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Parser;
use marionette_dialogues::{Dialogue, Share, Task, group_by_persona, hold_out, read_dialogues, write_convai2};

/// Writes rest.txt, held-out.txt and held-out/1.txt, 2.txt, … (a persona each, that with the most dialogues first) in ConvAI2's format.
/// The same arguments give the same bytes
#[derive(Parser)]
struct Arguments {
    /// The dialogues, in ConvAI2's format
    #[arg(long)]
    data: PathBuf,
    /// The folder to write to; made where it is missing
    #[arg(long)]
    out: PathBuf,
    /// The part of the personas that is held out
    #[arg(long, default_value_t = 1.0 / 3.0)]
    hold_out: f64,
    /// The seed of the choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.hold_out > 0.0 && arguments.hold_out < 1.0,
        "--hold-out is {}, expected a part between 0 and 1",
        arguments.hold_out
    );
    let grouping = group_by_persona(read_dialogues(&arguments.data)?)
        .with_context(|| format!("{} cannot be split", arguments.data.display()))?;
    let (rest, mut held) = hold_out(grouping.tasks, Share::Fraction(arguments.hold_out), arguments.seed)?;
    let each = arguments.out.join("held-out");
    fs::create_dir_all(&each).with_context(|| format!("{} cannot be made", each.display()))?;
    held.sort_by_key(|task| Reverse(task.dialogues.len()));
    for (number, task) in (1..).zip(&held) {
        let number: usize = number;
        write(&each.join(format!("{number}.txt")), &task.dialogues)?;
    }
    for (name, tasks) in [("rest.txt", rest), ("held-out.txt", held)] {
        let path = arguments.out.join(name);
        let personas = tasks.len();
        let dialogues: Vec<Dialogue> = tasks.into_iter().flat_map(|Task { dialogues, .. }| dialogues).collect();
        write(&path, &dialogues)?;
        eprintln!("{}: {personas} personas, {} dialogues", path.display(), dialogues.len());
    }
    Ok(())
}

fn write(path: &Path, dialogues: &[Dialogue]) -> anyhow::Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    let file = File::create(path).with_context(cannot)?;
    write_convai2(&mut BufWriter::new(file), dialogues).with_context(cannot)
}

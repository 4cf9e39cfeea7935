//! Writes the seeds of every target, and what was found once, into the folder that is given: `DIR/TARGET/…`.

use std::path::{Path, PathBuf};

use marionette_fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(std::io::Error::other("give the folder to write to"));
    };
    for target in TARGETS {
        let of_target = folder.join(target.name);
        std::fs::create_dir_all(&of_target)?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(of_target.join(format!("seed-{number}")), seed)?;
        }
        let found = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/regressions")).join(target.name);
        if found.is_dir() {
            for entry in std::fs::read_dir(found)? {
                let entry = entry?;
                std::fs::copy(entry.path(), of_target.join(entry.file_name()))?;
            }
        }
        println!("{} {}", target.name, target.longest);
    }
    Ok(())
}

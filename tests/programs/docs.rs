//! Every command of the README and of the pages is one that the programs take. (What the README's road, the demo and the tests of commands run is
//! run; here each is parsed, by the program that it names.)

use std::fs;
use std::path::{Path, PathBuf};

use marionette_tests::{Scratch, root};

/// The pages with commands.
fn pages() -> Vec<PathBuf> {
    let in_folder = |folder: &str| fs::read_dir(root().join(folder)).unwrap().flatten().map(|entry| entry.path());
    let of_models = in_folder("models").map(|folder| folder.join("README.md")).filter(|page| page.exists());
    let docs = in_folder("docs").filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    docs.chain(of_models).chain([root().join("README.md")]).collect()
}

/// The commands of a page: indented lines that begin with one of our programs, with those that they go on in.
fn commands(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut lines = text.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(line) = line.strip_prefix("    ") else { continue };
        let line = line.trim().trim_start_matches("$ ");
        let line = line.strip_prefix("target/release/").unwrap_or(line);
        let program = line.split(' ').next().unwrap_or_default();
        if !["marionette", "marionette-train", "marionette-export"].contains(&program) || line.contains("──") {
            continue;
        }
        let mut command = line.to_owned();
        while let Some(begun) = command.strip_suffix('\\') {
            command = begun.to_owned() + lines.next().unwrap_or_default().trim();
        }
        found.push(command);
    }
    found
}

/// The words of a command, as a shell takes them, without its comment.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for character in command.chars() {
        match character {
            '"' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            '#' if !quoted && !begun => return words,
            _ => {
                word.push(character);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

#[test]
fn each_command_of_the_pages_is_one_that_its_program_takes() {
    let scratch = Scratch::new();
    let mut count = 0;
    for page in pages() {
        for command in commands(&page) {
            let mut words = words(&command).into_iter();
            let program = words.next().unwrap();
            // What stands for something: options that were said before, and a number.
            let words = words.filter(|word| !word.contains('…') && word != "$common");
            let words = words.map(|word| if word == "F" { "1".to_owned() } else { word });
            let run = scratch.run(&program, words.chain(["--help".to_owned()]));
            assert_eq!(run.code(), Some(0), "{}: {command}\n{}", page.display(), run.stderr());
            assert!(run.stdout().contains("Usage:"), "{}: {command}", page.display());
            count += 1;
        }
    }
    assert!(count > 50, "{count} commands were found");
}

#[test]
fn commands_are_cut_into_words_as_by_a_shell() {
    let found = words("marionette chat b --persona \"Maud K\"  --stop \"\" # with her");
    assert_eq!(found, ["marionette", "chat", "b", "--persona", "Maud K", "--stop", ""]);
}

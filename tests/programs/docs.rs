//! Every command of the README and of the pages: those of the pages that a user follows are run, one after the other, as they stand there. Those by
//! which figures were measured take hours; they are parsed, by the program that they name.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_tests::{Scratch, copy, root, tiny};

use crate::road::{first_personas, road};

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

/// What is put into a command so that it is done in seconds: the values of options.
const SHORT: [(&str, &[(&str, &str)]); 3] = [
    (
        "marionette-train run",
        &[
            ("--iterations", "2"),
            ("--validate-every", "1"),
            ("--meta-batch", "2"),
            ("--inner-steps", "2"),
            ("--dialogues-per-step", "1"),
            ("--support-dialogues", "2"),
            ("--query-dialogues", "1"),
            ("--validation-personas", "2"),
        ],
    ),
    (
        "marionette-train compare",
        &[
            ("--iterations", "1"),
            ("--seeds", "1"),
            ("--meta-batch", "1"),
            ("--inner-steps", "1"),
            ("--support-dialogues", "1"),
            ("--query-dialogues", "1"),
            ("--validation-personas", "1"),
            ("--shots", "0,1"),
            ("--folds", "1"),
            ("--max-tokens", "2"),
        ],
    ),
    ("marionette-train evaluate", &[("--folds", "1"), ("--max-tokens", "2")]),
];

fn shorten(words: &mut Vec<String>) {
    let command = words.get(..2).map(|words| words.join(" ")).unwrap_or_default();
    let Some((_, options)) = SHORT.iter().find(|(name, _)| *name == command) else { return };
    for (option, value) in *options {
        match words.iter().position(|word| word == option) {
            Some(place) => words[place + 1] = (*value).to_owned(),
            None => words.extend([*option, *value].map(str::to_owned)),
        }
    }
}

/// Runs the commands of a page one after the other. `bundles` are made of a small one, `files` and models/ lie beside.
fn follow(page: &str, bundles: &[&str], files: &[(&str, &str)], before: &[&str]) {
    let scratch = Scratch::new();
    for bundle in bundles {
        copy(&road().bundle(), &scratch.path(bundle));
    }
    for (name, content) in files {
        scratch.write(name, content);
    }
    // The base, some of its dialogues, and the people.
    copy(&tiny(), &scratch.path("models/tiny"));
    copy(&root().join("models/people"), &scratch.path("models/people"));
    fs::create_dir(scratch.path("models/tiny/dialogues")).unwrap();
    for split in ["train", "valid", "test"] {
        scratch.write(&format!("models/tiny/dialogues/{split}.txt"), first_personas(split, 4));
    }
    let given = before.iter().map(|command| (*command).to_owned());
    let mut count = 0;
    for command in given.chain(commands(&root().join(page))) {
        // A file of the reader's own.
        let mut words = words(&command.replace("FILE…", "my-dialogues.txt"));
        shorten(&mut words);
        if words.iter().any(|word| word == "remove") {
            // It asks whoever is there.
            words.push("--yes".to_owned());
        }
        let program = words.remove(0);
        let run = scratch.run_on("hello\n", &program, &words);
        assert_eq!(run.code(), Some(0), "{page}: {command}\n{}\n{}", run.stdout(), run.stderr());
        count += 1;
    }
    assert!(count > before.len() + 5, "{page}: {count} commands");
}

#[test]
fn the_readme_can_be_followed() {
    let files = [("my-dialogues.txt", first_personas("test", 1)), ("_chat.txt", chat())];
    let files = files.each_ref().map(|(name, content)| (*name, content.as_str()));
    // The bundle is what `make smollm2-bundle` makes.
    follow("README.md", &["smollm2-bundle"], &files, &[]);
}

#[test]
fn the_page_of_personas_can_be_followed() {
    // Three lessons were learned before.
    let lesson = "marionette adapt smollm2-bundle --persona maud --dialogues models/people/maud.txt --even-if-worse";
    follow("docs/personas.md", &["smollm2-bundle", "other-bundle"], &[], &[lesson; 3]);
}

#[test]
fn the_page_of_chats_can_be_followed() {
    follow("docs/your-chats.md", &["smollm2-bundle"], &[("_chat.txt", &chat())], &[]);
}

/// A chat of Ole's, as the pages have it.
fn chat() -> String {
    fs::read_to_string(root().join("models/people/ole.whatsapp.txt")).unwrap()
}

#[test]
fn what_the_pages_make_can_be_made() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut count = 0;
    for page in pages().into_iter().chain([root().join("CONTRIBUTING.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.lines().filter_map(|line| line.strip_prefix("    make ")?.split(' ').next()) {
            assert!(makefile.contains(&format!("\n{target}:")), "{}: make {target}", page.display());
            count += 1;
        }
    }
    assert!(count > 4, "{count}");
}

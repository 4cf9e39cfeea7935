//! Every command of the README and of the pages: each is parsed by the program that it names, and run, one after the other, as they stand there. Those
//! by which figures were measured take hours; they are run with the small model and few iterations.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_tests::{Scratch, copy, root, tiny};

use crate::road::{SHORT_RUN, first_personas, road};

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
    // As the run that others are started from.
    ("marionette-train run", &SHORT_RUN),
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
        // --support is --support-dialogues.
        let is_option = |word: &String| word == option || option.strip_suffix("-dialogues") == Some(word);
        match words.iter().position(is_option) {
            Some(place) => words[place + 1] = (*value).to_owned(),
            None => words.extend([*option, *value].map(str::to_owned)),
        }
    }
}

/// A page whose commands are run, one after the other, in a folder that has models/ with the base, some of its dialogues, and the people.
#[derive(Clone, Copy, Default)]
struct Page<'a> {
    name: &'a str,
    /// What is in that folder beside: bundles and runs of the small model, copies of it, and files.
    bundles: &'a [&'a str],
    runs: &'a [&'a str],
    bases: &'a [&'a str],
    files: &'a [(&'a str, &'a str)],
    /// What stands in the place of words of commands that stand for something.
    instead: &'a [(&'a str, &'a str)],
    /// What was done before.
    before: &'a [&'a str],
}

impl Page<'_> {
    fn follow(&self) {
        let scratch = Scratch::new();
        let made = [(self.bundles, road().bundle()), (self.runs, road().run()), (self.bases, tiny())];
        for (names, from) in made {
            names.iter().for_each(|name| copy_all(&from, &scratch.path(name)));
        }
        copy(&tiny(), &scratch.path("models/tiny"));
        copy(&root().join("models/people"), &scratch.path("models/people"));
        fs::create_dir(scratch.path("models/tiny/dialogues")).unwrap();
        for split in ["train", "valid", "test"] {
            scratch.write(&format!("models/tiny/dialogues/{split}.txt"), first_personas(split, 4));
        }
        for (name, content) in self.files {
            scratch.write(name, content);
        }
        let given = self.before.iter().map(|command| (*command).to_owned());
        let mut count = 0;
        for mut command in given.chain(commands(&root().join(self.name))) {
            for (words, others) in self.instead {
                command = command.replace(words, others);
            }
            let mut words = words(&command);
            shorten(&mut words);
            if words.iter().any(|word| word == "remove") {
                // It asks whoever is there.
                words.push("--yes".to_owned());
            }
            let program = words.remove(0);
            let run = scratch.run_on("hello\n", &program, &words);
            assert_eq!(run.code(), Some(0), "{}: {command}\n{}\n{}", self.name, run.stdout(), run.stderr());
            count += 1;
        }
        assert!(count > self.before.len() + 4, "{}: {count} commands", self.name);
    }
}

/// Copies a folder with those in it.
fn copy_all(from: &Path, to: &Path) {
    copy(from, to);
    for folder in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        copy_all(&folder.path(), &to.join(folder.file_name()));
    }
}

#[test]
fn the_readme_can_be_followed() {
    let files = [("my-dialogues.txt", first_personas("test", 1)), ("_chat.txt", chat())];
    let files = files.each_ref().map(|(name, content)| (*name, content.as_str()));
    // The bundle is what `make smollm2-bundle` makes, the file the reader's own.
    let instead = [("FILE…", "my-dialogues.txt")];
    Page { name: "README.md", bundles: &["smollm2-bundle"], files: &files, instead: &instead, ..Page::default() }
        .follow();
}

#[test]
fn the_page_of_personas_can_be_followed() {
    // Three lessons were learned before.
    let lesson = "marionette adapt smollm2-bundle --persona maud --dialogues models/people/maud.txt --even-if-worse";
    let bundles = ["smollm2-bundle", "other-bundle"];
    Page { name: "docs/personas.md", bundles: &bundles, before: &[lesson; 3], ..Page::default() }.follow();
}

#[test]
fn the_page_of_chats_can_be_followed() {
    let files = [("_chat.txt", chat())];
    let files = files.each_ref().map(|(name, content)| (*name, content.as_str()));
    Page { name: "docs/your-chats.md", bundles: &["smollm2-bundle"], files: &files, ..Page::default() }.follow();
}

/// The figures of a large model take hours, of a small one and its dialogues seconds.
#[test]
fn the_commands_of_figures_can_be_followed() {
    let [train, valid, test] = ["train", "valid", "test"].map(|split| first_personas(split, 4));
    let files = [
        ("train_self.txt", train.as_str()),
        ("train_other_side.txt", valid.as_str()),
        ("held-out.txt", valid.as_str()),
        ("rest.txt", test.as_str()),
        ("speakers.jsonl", test.as_str()),
    ];
    let page = Page { runs: &["ordinary"], bases: &["smollm2"], files: &files, ..Page::default() };
    let of_smollm2 = "--base smollm2 --data train_self.txt train_other_side.txt --valid held-out.txt";
    // The model is imported in the exporter's tests, the bundle is what the demo makes, and the run what was trained before.
    let import = "marionette-export import .deps/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --context 2048 --out smollm2";
    let common = format!("{of_smollm2} --precision bf16");
    let rows = "--run extra-place=models/smollm2-persona transfer-adapters=ordinary";
    let compared = format!("{of_smollm2} --test rest.txt --out compared {rows} --precision bf16");
    let instead = [
        (import, "marionette-export smollm2 --out fresh"),
        ("$common", common.as_str()),
        ("…as above…", &compared),
        ("RUN", "ordinary"),
        ("--rate-factor F", "--rate-factor 2"),
    ];
    Page { name: "models/smollm2-persona/README.md", instead: &instead, runs: &[], ..page }.follow();
    let runs = ["ordinary", "models/smollm2-persona"];
    let bundles = ["demo/bundle", "smollm2-bundle"];
    Page { name: "docs/results.md", instead: &instead, runs: &runs, bundles: &bundles, ..page }.follow();
    // The parts that an example makes of others' dialogues are the bundled model's.
    let all = first_personas("train", 6);
    let split = [("all.txt", all.as_str()), ("split-rest.txt", &all), ("split-held-out.txt", &test)];
    let files = [files.as_slice(), &split].concat();
    let instead = [
        ("$common", common.as_str()),
        ("RUN", "ordinary"),
        ("--rate-factor F", "--rate-factor 2"),
        ("../shared/data/convai2/dialogues.txt", "all.txt"),
        ("convai2/rest.txt", "split-rest.txt"),
        ("convai2/held-out.txt", "split-held-out.txt"),
    ];
    let runs = ["ordinary", "warm", "reptile"];
    Page { name: "docs/history.md", files: &files, instead: &instead, runs: &runs, ..page }.follow();
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

//! What the whole-program tests share: a scratch directory, a way to run the three programs, and where the data lies.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use marionette_models::safetensors_file::{self, RawTensor};

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The bundled pre-trained model.
pub fn tiny() -> PathBuf {
    root().join("models/tiny")
}

/// One of the bundled files of dialogues: train, valid or test.
pub fn dialogues(split: &str) -> PathBuf {
    root().join(format!("models/tiny/dialogues/{split}.txt"))
}

/// A file of data that is not part of the project; a test that wants it is skipped, with a message, where it is missing. In CI it is
/// there: with `CI` set it is not skipped.
pub fn shared(file: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(file);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, which CI has", path.display());
    eprintln!("skipped: {} is missing", path.display());
    None
}

/// The GGUF file of SmolLM2-135M-Instruct; a test that wants it is skipped, with a message, where it was not fetched, in CI too.
pub fn smollm2() -> Option<PathBuf> {
    let path = root().join(".deps/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is missing: scripts/smollm2.sh fetches it", path.display());
    None
}

/// The adapters' file of a persona's current version.
#[allow(clippy::expect_used)]
pub fn persona_file(home: &Path, name: &str) -> PathBuf {
    let folder = home.join("personas").join(name);
    let current = std::fs::read_to_string(folder.join("current")).expect("a persona has a current version");
    folder.join(current.trim()).join("adapters.safetensors")
}

/// The adapters of a persona's current version, as they are stored, and its record.
#[allow(clippy::expect_used)]
pub fn persona(home: &Path, name: &str) -> (BTreeMap<String, RawTensor>, serde_json::Value) {
    let (tensors, metadata) = safetensors_file::read(&persona_file(home, name)).expect("what was saved can be read");
    (tensors, serde_json::from_str(&metadata["record"]).expect("the record is JSON"))
}

/// Copies the files of a folder.
#[allow(clippy::expect_used)]
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder is there").flatten().filter(|entry| entry.path().is_file())
    {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
    }
}

/// A directory that goes when it is dropped, in which programs run.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new empty directory.
    #[allow(clippy::new_without_default, clippy::expect_used)]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file in it and gives its path.
    #[allow(clippy::expect_used)]
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("the scratch directory can be written");
        path
    }

    /// The names in it, sorted.
    #[allow(clippy::expect_used)]
    pub fn listing(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the scratch directory can be read");
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Runs one of the three programs here, with personas under `home` here.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Run {
        self.run_with(program, arguments, &[])
    }

    /// As [`Scratch::run`], with environment variables.
    #[allow(clippy::expect_used)]
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
    ) -> Run {
        let output = self.command(program, arguments, environment).output().expect("the program starts");
        Run { program: program.to_owned(), output }
    }

    /// As [`Scratch::run`], with a text on standard input.
    pub fn run_on<S: AsRef<OsStr>>(&self, input: &str, program: &str, arguments: impl IntoIterator<Item = S>) -> Run {
        let mut running = self.start(program, arguments, &[]);
        running.say(input);
        running.end()
    }

    /// Starts a program that is spoken to while it runs.
    #[allow(clippy::expect_used)]
    pub fn start<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
    ) -> Running {
        let mut command = self.command(program, arguments, environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { program: program.to_owned(), child: command.spawn().expect("the program starts") }
    }

    fn command<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
    ) -> Command {
        let path = binary(program);
        assert!(path.exists(), "{} is missing: `make test` builds it (cargo build --workspace --bins)", path.display());
        let mut command = Command::new(path);
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("XDG_DATA_HOME", self.path("home"))
            .envs(environment.iter().copied());
        command
    }
}

/// A program that runs.
pub struct Running {
    program: String,
    child: Child,
}

impl Running {
    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input. A program may end without reading it.
    #[allow(clippy::expect_used)]
    pub fn say(&mut self, words: &str) {
        let stdin = self.child.stdin.as_mut().expect("it was started with one");
        match stdin.write_all(words.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.expect("a pipe can be written"),
        }
    }

    /// Closes its standard input, and waits for its end.
    #[allow(clippy::expect_used)]
    pub fn end(self) -> Run {
        let output = self.child.wait_with_output().expect("the program ends");
        Run { program: self.program, output }
    }
}

/// A program of this build: the test's own executable is in `deps` beside it.
#[allow(clippy::expect_used)]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows where it is");
    let folder = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    folder.join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

/// What a program did.
pub struct Run {
    program: String,
    output: Output,
}

impl Run {
    /// Its exit code.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Its standard output, after it ended with 0.
    #[track_caller]
    pub fn done(&self) -> String {
        assert_eq!(self.code(), Some(0), "{}\n{}", self.stdout(), self.stderr());
        self.stdout()
    }

    /// Checks that it ended with `code`, that its last line on standard error is the one error and that this holds every
    /// one of `parts`, and that no panic or backtrace reached the user.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) {
        let stderr = self.stderr();
        assert_eq!(self.code(), Some(code), "{}\n{stderr}", self.stdout());
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
        // Ours begin with the program's name, those about wrong usage with clap's "error".
        let own = format!("{}: ", self.program);
        let errors: Vec<&str> =
            stderr.lines().filter(|line| line.starts_with("error") || line.starts_with(&own)).collect();
        assert_eq!(errors.len(), 1, "expected one line of error:\n{stderr}");
        for part in parts {
            assert!(errors[0].contains(part), "expected \"{part}\" in: {}", errors[0]);
        }
    }
}

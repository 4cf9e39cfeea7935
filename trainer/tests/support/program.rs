//! `marionette-train` as a program: started, waited for, and judged.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marionette-train"));
    // With nothing set, as from a shell that never heard of libtorch.
    command.env_clear().current_dir(folder).args(arguments.split_whitespace()).args(["--threads", "1"]);
    command
}

pub fn train(folder: &Path, arguments: &str) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Begins, with its output kept.
pub fn spawn(folder: &Path, arguments: &str) -> Child {
    command(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
pub fn works(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Ends with this exit code and one line that has all of `parts`.
#[track_caller]
pub fn refuses(output: &Output, code: i32, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    // What is said before is progress.
    let last = error.trim_end().lines().last().unwrap_or_default();
    assert!(code == 2 || last.starts_with("marionette-train: "), "{error}");
}

/// Waits for a condition; a child that ends early fails the test.
#[track_caller]
pub fn wait_until(child: &mut Child, condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing happened for a minute");
}

/// Sends Ctrl-C.
pub fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

//! The program where ONNX Runtime is missing, foreign or too old: one line with the remedy, exit code 1, never a panic.

#![allow(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_marionette");

/// ONNX Runtime is looked for before the bundle is, so none is needed.
fn program(path: impl AsRef<Path>) -> Command {
    let mut command = Command::new(path.as_ref());
    command.args(["generate", "no-bundle", "--prompt", "hello"]);
    command
}

fn with_library(library: impl AsRef<Path>) -> Output {
    program(PROGRAM).env("ORT_DYLIB_PATH", library.as_ref()).output().unwrap()
}

fn copy_into(folder: &Path) -> PathBuf {
    let copy = folder.join("marionette");
    std::fs::copy(PROGRAM, &copy).unwrap();
    copy
}

fn without_variable(path: &Path) -> Output {
    loop {
        match program(path).env_remove("ORT_DYLIB_PATH").output() {
            // A process that another test is just starting still has the copy open for writing.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            output => return output.unwrap(),
        }
    }
}

fn assert_one_line(output: &Output, expected: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    for part in expected {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_path_to_nothing() {
    assert_one_line(
        &with_library("/nowhere/libonnxruntime.so"),
        &["/nowhere/libonnxruntime.so", "cannot be loaded", "ORT_DYLIB_PATH"],
    );
    assert_one_line(&with_library("libnowhere.so"), &["libnowhere.so", "cannot be loaded", "ORT_DYLIB_PATH"]);
}

#[test]
fn a_file_that_is_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so");
    for contents in ["", "text\n"] {
        std::fs::write(&file, contents).unwrap();
        assert_one_line(&with_library(&file), &["cannot be loaded", "ORT_DYLIB_PATH"]);
    }
    assert_one_line(&with_library(folder.path()), &["cannot be loaded", "ORT_DYLIB_PATH"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_is_another() {
    assert_one_line(&with_library("libc.so.6"), &["libc.so.6", "not ONNX Runtime's"]);
}

/// A library with ONNX Runtime's entry point that says it has this version, and has no more: made with the C compiler that tests need
/// anyway.
#[cfg(target_os = "linux")]
fn stub(folder: &Path, version: &str) -> Option<PathBuf> {
    let (source, library) = (folder.join("stub.c"), folder.join("libonnxruntime.so"));
    let code = format!(
        "static const void *api(unsigned v) {{ (void)v; return 0; }}\n\
         static const char *version(void) {{ return \"{version}\"; }}\n\
         static const struct {{ const void *(*api)(unsigned); const char *(*version)(void); }} base = {{ api, version }};\n\
         const void *OrtGetApiBase(void) {{ return &base; }}\n"
    );
    std::fs::write(&source, code).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no C compiler");
        return None;
    }
    Some(library)
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = stub(folder.path(), "1.17.3") else { return };
    assert_one_line(&with_library(&library), &["is ONNX Runtime 1.17.3", "1.24", "ORT_DYLIB_PATH"]);
    // The same beside the program, where it is found without the variable.
    let output = without_variable(&copy_into(folder.path()));
    assert_one_line(&output, &["is ONNX Runtime 1.17.3", "scripts/native-deps.sh onnxruntime"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_of_the_right_version_with_nothing_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = stub(folder.path(), "1.31.1") else { return };
    assert_one_line(
        &with_library(&library),
        &["says that it is ONNX Runtime 1.31.1", "lacks the API", "ORT_DYLIB_PATH"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = stub(folder.path(), "1.31.1") else { return };
    let whole = std::fs::read(&library).unwrap();
    // Anywhere: none may end in a signal.
    for length in (0..whole.len()).step_by(499) {
        std::fs::write(&library, &whole[..length]).unwrap();
        assert_one_line(&with_library(&library), &["libonnxruntime.so", "ORT_DYLIB_PATH"]);
    }
    std::fs::write(&library, &whole[..whole.len() / 2]).unwrap();
    assert_one_line(&with_library(&library), &["is cut"]);
}

#[test]
fn no_library_anywhere() {
    // Away from the repository, so that nothing is found beside or above the program.
    let folder = tempfile::tempdir().unwrap();
    let output = without_variable(&copy_into(folder.path()));
    if String::from_utf8_lossy(&output.stderr).contains("no-bundle") {
        eprintln!("skipped: the system has an ONNX Runtime");
        return;
    }
    assert_one_line(&output, &["not found", "scripts/native-deps.sh onnxruntime", "pip", "ORT_DYLIB_PATH"]);
}

/// Whether the library is there: `make test` fetches it, a bare `cargo test` may run without.
fn library_is_there() -> bool {
    let output = program(PROGRAM).output().unwrap();
    let there = String::from_utf8_lossy(&output.stderr).contains("no-bundle");
    if !there {
        eprintln!("skipped: no ONNX Runtime; scripts/native-deps.sh onnxruntime fetches it");
    }
    there
}

#[test]
fn a_provider_that_cannot_be_had() {
    if !library_is_there() {
        return;
    }
    let output = program(PROGRAM).args(["--ep", "cuda"]).output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("no-bundle") {
        eprintln!("skipped: this ONNX Runtime has CUDA");
        return;
    }
    assert_one_line(&output, &["\"cuda\" cannot be had", "built without it", "what can: cpu"]);
    let output = program(PROGRAM).args(["--ep", "abacus"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("abacus") && stderr.contains("[possible values: cpu, cuda]"), "{stderr}");
}

#[test]
fn options_out_of_range_are_usage_errors() {
    for (option, value) in [("--top-p", "1.5"), ("--temperature", "-1"), ("--repetition-penalty", "0")] {
        let output = program(PROGRAM).arg(format!("{option}={value}")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(option) && stderr.trim_end().lines().count() == 1, "{stderr}");
    }
}

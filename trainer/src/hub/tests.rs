//! Against a hub on this machine that fails in the ways that hubs, proxies and networks do.

mod fake_hub;

use std::net::TcpListener;

use super::*;
use fake_hub::{Answer, FakeHub, NAME, killed};

#[test]
fn a_model_is_fetched_once_and_then_found() {
    let hub = FakeHub::new();
    hub.fetched();
    assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=0-"]);
    let requests = hub.state.lock().unwrap().asked.clone();
    assert!(requests.iter().all(|(_, _, authorization)| authorization == "Bearer secret"), "{requests:?}");
    // Nothing more is asked of the hub.
    hub.fetched();
    assert_eq!(hub.state.lock().unwrap().asked.len(), requests.len());
    let left: Vec<_> = fs::read_dir(hub.hub().cache.join(UNFINISHED)).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| entry.metadata().unwrap().len() == 0 && entry.path().is_file()), "{left:?}");
}

#[test]
fn a_tokenizer_of_two_files_is_fetched() {
    let hub = FakeHub::new();
    let whole: serde_json::Value = serde_json::from_slice(&hub.without(TOKENIZER_JSON)).unwrap();
    let mut vocab = whole["model"]["vocab"].clone();
    vocab["<|endoftext|>"] = hub.base.config.eos_token_id.into();
    let pairs = whole["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> = pairs
        .map(|pair| match pair.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => pair.as_str().unwrap().to_owned(),
        })
        .collect();
    hub.with("vocab.json", vocab.to_string().as_bytes());
    hub.refused(&["has no merges.txt"]);
    hub.with("merges.txt", merges.join("\n").as_bytes());
    hub.fetched();
}

#[test]
fn a_cut_download_is_gone_on_with() {
    for cut in [Answer::CutAfter(1000), Answer::CutAfter(0)] {
        let hub = FakeHub::new();
        hub.answers(MODEL_SAFETENSORS, &[cut]);
        hub.refused(&[MODEL_SAFETENSORS, "run it again"]);
        hub.fetched();
        let from = if cut == Answer::CutAfter(0) { "bytes=0-" } else { "bytes=1000-" };
        assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=0-", from]);
    }
}

#[test]
fn a_download_that_ends_early_without_a_word_is_not_taken_for_whole() {
    let hub = FakeHub::new();
    let short = [Answer::CutWithoutLength(1000), Answer::Short(1000)];
    hub.answers(MODEL_SAFETENSORS, &short);
    for _ in short {
        hub.refused(&["came with 1000 bytes, expected", "try again"]);
    }
    hub.fetched();
}

#[test]
fn other_bytes_than_announced_are_refused() {
    let hub = FakeHub::new();
    hub.answers(MODEL_SAFETENSORS, &[Answer::Altered]);
    hub.refused(&["came with SHA-256"]);
    hub.fetched();
}

#[test]
fn a_server_that_does_not_know_ranges_begins_again() {
    let hub = FakeHub::new();
    hub.answers(MODEL_SAFETENSORS, &[Answer::CutAfter(1000), Answer::NoRange]);
    hub.refused(&[MODEL_SAFETENSORS]);
    hub.fetched();
    assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=0-", "bytes=1000-"]);
}

#[test]
fn a_server_that_gives_another_range_is_not_believed() {
    let hub = FakeHub::new();
    hub.answers(MODEL_SAFETENSORS, &[Answer::CutAfter(1000), Answer::FromTheStart]);
    hub.refused(&[MODEL_SAFETENSORS]);
    hub.fetched();
    assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=0-", "bytes=1000-"]);
}

#[test]
fn what_a_server_says_between_two_questions_becomes_no_path() {
    for file in [CONFIG_JSON, TOKENIZER_JSON, MODEL_SAFETENSORS] {
        // The second answer, with the content: an ETag and a revision that lead out of the cache.
        let hub = FakeHub::new();
        hub.answers(file, &[Answer::Escaping]);
        hub.fetched();
        assert_eq!(hub.beside_the_cache(), ["hub"]);
        // Already the first.
        for how in [Answer::EscapingTag, Answer::EscapingRevision] {
            let hub = FakeHub::new();
            hub.answers(file, &[how]);
            hub.refused(&["impossible revision or ETag"]);
            assert_eq!(hub.beside_the_cache(), ["hub"]);
            assert!(hub.ranges(file).is_empty());
        }
        // More than was announced is neither taken nor waited for.
        let hub = FakeHub::new();
        hub.answers(file, &[Answer::Longer]);
        hub.refused(&["bytes, expected"]);
        hub.fetched();
    }
}

#[test]
fn what_a_killed_download_left_is_used_or_thrown_away() {
    let hub = FakeHub::new();
    killed(&hub, |left| left.truncate(400));
    hub.fetched();
    assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=400-"]);
    // Longer than the file, by a fault.
    let hub = FakeHub::new();
    killed(&hub, |left| left.push(0));
    hub.fetched();
    assert_eq!(hub.ranges(MODEL_SAFETENSORS), ["bytes=0-"]);
    // Killed when all was there but not yet moved; and something else of the same length.
    for (other, asked) in [(0, &[][..]), (1, &["bytes=0-"])] {
        let hub = FakeHub::new();
        killed(&hub, |left| left[9] ^= other);
        hub.fetched();
        assert_eq!(hub.ranges(MODEL_SAFETENSORS), asked);
    }
}

#[test]
fn large_files_may_lie_elsewhere() {
    let hub = FakeHub::new();
    hub.answers(MODEL_SAFETENSORS, &[Answer::Elsewhere]);
    hub.fetched();
}

#[test]
fn what_the_hub_refuses_is_said_with_a_remedy() {
    for (file, code, parts) in [
        (CONFIG_JSON, 401, ["401", "HF_TOKEN"]),
        (MODEL_SAFETENSORS, 403, ["403", "accept its terms"]),
        (CONFIG_JSON, 404, ["has no config.json", "check the name"]),
        (TOKENIZER_JSON, 500, ["tokenizer.json cannot be fetched", "answers 500"]),
    ] {
        let hub = FakeHub::new();
        hub.answers(file, &[Answer::Status(code)]);
        hub.refused(&parts);
        hub.answers(file, &[]);
        hub.fetched();
    }
    let hub = FakeHub::new();
    hub.answers(CONFIG_JSON, &[Answer::Nowhere]);
    hub.refused(&["cannot be fetched", "check HF_ENDPOINT"]);
}

#[test]
fn a_model_without_safetensors_is_refused_with_the_remedy() {
    let hub = FakeHub::new();
    let weights = hub.without(MODEL_SAFETENSORS);
    hub.refused(&["has no model.safetensors"]);
    hub.with("pytorch_model.bin", &weights);
    hub.refused(&["has only pytorch_model.bin", "save_pretrained", "--base FOLDER"]);
    assert!(hub.ranges("pytorch_model.bin").is_empty());
}

#[test]
fn without_a_network_the_files_and_the_folder_are_named() {
    let hub = FakeHub::new();
    let by_hand =
        ["config.json", "model.safetensors", "merges.txt", "into the folder ./tiny-gpt2", "--base ./tiny-gpt2"];
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for lost in [
        Hub { endpoint: Some(format!("http://{closed}")), ..hub.hub() },
        Hub { endpoint: Some("no address".into()), ..hub.hub() },
        Hub { offline: true, ..hub.hub() },
    ] {
        let error = lost.model(NAME).unwrap_err().to_string();
        assert!(error.starts_with("somebody/tiny-gpt2: ") && error.lines().count() == 1, "{error}");
        for part in by_hand {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
    assert!(hub.state.lock().unwrap().asked.is_empty());
}

#[test]
fn two_processes_do_not_fetch_the_same() {
    let hub = FakeHub::new();
    let folder = hub.hub().cache.join(UNFINISHED);
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("models--somebody--tiny-gpt2.lock")).unwrap();
    lock.lock().unwrap();
    hub.refused(&["another process is fetching it"]);
    drop(lock);
    hub.fetched();
}

#[test]
fn names_and_folders_are_told_apart() {
    for name in ["gpt2", "openai-community/gpt2", "a/b.c_d-e", "_x/y"] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".", "..", "./gpt2", "../gpt2", "/gpt2", "a/b/c", "a/", "/", "a b", "a\\b", "a..b", "a--b", "~/x"]
    {
        assert!(!is_name(name), "{name}");
        assert!(Path::new(name).exists() || resolve(Path::new(name), true).is_err(), "{name}");
    }
    assert!(!is_name(&"x".repeat(97)));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(resolve(folder.path(), true).unwrap(), folder.path());
    assert!(is_true("1") && is_true("True") && !is_true("0"));
    for name in ["../x", "/x", "a/../b", "a/b", "", ".", "..", ".x", "a\\b", "a\0", &"x".repeat(129)] {
        assert!(!cache::is_plain(name), "{name}");
    }
    assert!(cache::is_plain("0a-1b"));
}

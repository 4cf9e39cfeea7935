//! A hub on this machine that fails in the ways that hubs, proxies and networks do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use marionette_dialogues::{load_tokenizer, save_tokenizer, train_bpe};
use marionette_models::checkpoint::{Base, Storage, read_base, write_base};
use marionette_models::{Gpt2Shape, ModelConfig, digest, init, params};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::super::*;

pub const NAME: &str = "somebody/tiny-gpt2";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the next requests for a file's content are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer {
    /// All of it, or from where the range begins.
    Whole,
    /// So many bytes, then the connection ends.
    CutAfter(usize),
    /// The same, where no length was promised.
    CutWithoutLength(usize),
    /// A promise of so many bytes, which are kept, but fewer than there are.
    Short(usize),
    /// All of it, whatever range was asked for.
    NoRange,
    /// All of it as if it were the range that was asked for, said truly.
    FromTheStart,
    /// As many bytes as there are, but others.
    Altered,
    /// A byte more than there are, and no end.
    Longer,
    /// The content, under an ETag and of a revision that lead out of the cache.
    Escaping,
    /// Such an ETag, already when asked what there is.
    EscapingTag,
    /// Such a revision.
    EscapingRevision,
    /// Another host, as for large files.
    Elsewhere,
    /// No success, already when asked what there is.
    Status(u16),
    /// A redirection that leads nowhere.
    Nowhere,
}

#[derive(Debug)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    answers: BTreeMap<String, Vec<Answer>>,
    /// What was asked for: the file, the range, the authorization.
    pub asked: Vec<(String, String, String)>,
}

/// A hub that runs as long as the test.
pub struct FakeHub {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
    pub cache: tempfile::TempDir,
    pub base: Base,
}

impl FakeHub {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = train_bpe(["hello there"], 280).unwrap();
        save_tokenizer(&tokenizer, folder.path().join("tokenizer.json")).unwrap();
        let config = ModelConfig {
            n_inner: 16,
            eos_token_id: tokenizer.end_of_text_id().unwrap(),
            ..Gpt2Shape {
                vocab_size: tokenizer.largest_id() as usize + 1,
                n_positions: 16,
                n_embd: 8,
                n_layer: 1,
                n_head: 2,
            }
            .into()
        };
        let tensors = init::initialise(&params::base_table(&config), &mut ChaCha8Rng::seed_from_u64(3));
        write_base(folder.path(), &config, &tensors, Storage::F32).unwrap();
        let files = [CONFIG_JSON, MODEL_SAFETENSORS, TOKENIZER_JSON]
            .map(|file| (file.to_owned(), fs::read(folder.path().join(file)).unwrap()))
            .into();
        let state = Arc::new(Mutex::new(State { files, answers: BTreeMap::new(), asked: Vec::new() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away early is no failure of the hub.
                let _ = answer(stream.unwrap(), &shared);
            }
        });
        Self { state, endpoint, cache: tempfile::tempdir().unwrap(), base: Base { config, tensors, notes: Vec::new() } }
    }

    pub fn hub(&self) -> Hub {
        let cache = self.cache.path().join("hub");
        Hub { cache, endpoint: Some(self.endpoint.clone()), token: Some("secret".into()), offline: false }
    }

    /// How requests for the content of a file are answered, one after the other; all after these, whole.
    pub fn answers(&self, file: &str, answers: &[Answer]) {
        self.state.lock().unwrap().answers.insert(file.to_owned(), answers.iter().rev().copied().collect());
    }

    pub fn without(&self, file: &str) -> Vec<u8> {
        self.state.lock().unwrap().files.remove(file).unwrap()
    }

    pub fn with(&self, file: &str, content: &[u8]) {
        self.state.lock().unwrap().files.insert(file.to_owned(), content.to_vec());
    }

    /// The ranges in which a file's content was asked for.
    pub fn ranges(&self, file: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let content = state.asked.iter().filter(|(asked, range, _)| asked == file && range != "bytes=0-0");
        content.map(|(_, range, _)| range.clone()).collect()
    }

    /// What lies beside the cache and above it, as far as the test's folder goes.
    pub fn beside_the_cache(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[track_caller]
    pub fn fetched(&self) -> PathBuf {
        let folder = self.hub().model(NAME).unwrap();
        assert_eq!(folder, self.cache.path().join(format!("hub/models--somebody--tiny-gpt2/snapshots/{COMMIT}")));
        assert_eq!(read_base(&folder).unwrap(), self.base);
        load_tokenizer(&folder).unwrap();
        // From now on without the network.
        let offline = Hub { endpoint: Some("http://127.0.0.1:9".into()), offline: true, ..self.hub() };
        assert_eq!(offline.model(NAME).unwrap(), folder);
        folder
    }

    /// The one line with which fetching is refused; nothing of the model can then be taken for whole.
    #[track_caller]
    pub fn refused(&self, parts: &[&str]) -> String {
        let error = self.hub().model(NAME).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        let cached = Model::new(&self.hub().cache, NAME);
        assert!(cached.whole().is_none());
        error
    }
}

/// SHA-256 for the weights, as the hub has it for large files; git's for the others.
fn etag(file: &str, content: &[u8]) -> String {
    match file {
        MODEL_SAFETENSORS => digest::sha256(content),
        _ => download::git_blob(&mut &content[..], content.len() as u64).unwrap(),
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let (mut range, mut authorization) = (String::new(), String::new());
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => range = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = value.to_owned(),
            Some(_) => {}
            None => break,
        }
    }
    let elsewhere = path.starts_with("/elsewhere/");
    let file = match elsewhere {
        true => path.trim_start_matches("/elsewhere/").to_owned(),
        // What there is, is asked of the newest revision; the content of one by its name.
        false => ["main", COMMIT]
            .into_iter()
            .find_map(|revision| path.strip_prefix(&format!("/{NAME}/resolve/{revision}/")))
            .unwrap_or("?")
            .to_owned(),
    };
    let mut state = state.lock().unwrap();
    state.asked.push((file.clone(), range.clone(), authorization));
    let only_asks = range == "bytes=0-0";
    let waiting = state.answers.get_mut(&file);
    let next = waiting.and_then(|answers| match answers.last() {
        // These hold already for what is asked first.
        Some(
            &now @ (Answer::Elsewhere
            | Answer::Status(_)
            | Answer::Nowhere
            | Answer::EscapingTag
            | Answer::EscapingRevision),
        ) if !elsewhere => Some(now),
        _ if only_asks => None,
        _ => answers.pop(),
    });
    let how = next.unwrap_or(Answer::Whole);
    let Some(content) = state.files.get(&file).cloned() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    drop(state);
    let out = "../../../../escaped";
    let tag = match how {
        Answer::Escaping | Answer::EscapingTag => out.to_owned(),
        _ => etag(&file, &content),
    };
    let commit = if matches!(how, Answer::Escaping | Answer::EscapingRevision) { out } else { COMMIT };
    let mut head = format!("Connection: close\r\nX-Repo-Commit: {commit}\r\nETag: \"{tag}\"\r\n");
    let total = content.len();
    let (mut first, mut last) = (0, total);
    if let Some((from, to)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) {
        first = from.parse().unwrap();
        last = to.parse().map_or(total, |to: usize| to + 1);
    }
    let mut status = "206 Partial Content";
    let mut promised = last.saturating_sub(first);
    let mut sent = content.get(first..last).unwrap_or_default().to_vec();
    match how {
        Answer::Whole if first >= total => {
            return stream.write_all(
                format!("HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n{head}\r\n").as_bytes(),
            );
        }
        Answer::Whole | Answer::Escaping | Answer::EscapingTag | Answer::EscapingRevision => {}
        Answer::FromTheStart => (first, last, promised, sent) = (0, total, total, content),
        Answer::Longer => {
            promised += 1;
            sent.push(0);
        }
        Answer::CutAfter(bytes) | Answer::CutWithoutLength(bytes) => sent.truncate(bytes),
        Answer::Short(bytes) => {
            sent.truncate(bytes);
            promised = bytes;
        }
        Answer::NoRange => {
            (status, promised, sent) = ("200 OK", total, content);
        }
        Answer::Altered => sent[20] ^= 1,
        Answer::Elsewhere => {
            head.push_str(&format!("Location: http://{}/elsewhere/{file}\r\n", stream.local_addr()?));
            head.push_str(&format!("X-Linked-ETag: \"{}\"\r\n", etag(&file, &content)));
            (status, promised, sent) = ("302 Found", 0, Vec::new());
        }
        Answer::Nowhere => (status, promised, sent) = ("302 Found", 0, Vec::new()),
        Answer::Status(code) => {
            let text = format!("HTTP/1.1 {code} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return stream.write_all(text.as_bytes());
        }
    }
    if status.starts_with("206") {
        head.push_str(&format!("Content-Range: bytes {first}-{}/{total}\r\n", last.max(1) - 1));
    }
    if !matches!(how, Answer::CutWithoutLength(_)) {
        head.push_str(&format!("Content-Length: {promised}\r\n"));
    }
    stream.write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n").as_bytes())?;
    stream.write_all(&sent)?;
    // Not a reset, which would take what was sent with it.
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0; 256]);
    Ok(())
}

/// Leaves in a hub's cache what a killed download leaves.
pub fn killed(hub: &FakeHub, change: impl FnOnce(&mut Vec<u8>)) {
    let mut left = hub.state.lock().unwrap().files[MODEL_SAFETENSORS].clone();
    let etag = etag(MODEL_SAFETENSORS, &left);
    change(&mut left);
    let unfinished = hub.hub().cache.join(UNFINISHED).join("models--somebody--tiny-gpt2");
    fs::create_dir_all(&unfinished).unwrap();
    fs::write(unfinished.join(format!("{etag}.part")), left).unwrap();
}

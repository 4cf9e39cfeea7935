//! One file's content, into a path of our own. `hf-hub` would ask for the revision and the ETag a second time and make paths of
//! what it hears then; here nothing of an answer becomes a path, and of its headers only the range that it begins with counts.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use marionette_models::digest;
use sha1::{Digest as _, Sha1};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::StatusCode;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, RANGE};

use super::progress::Shown;

/// What a hub announced of a file, as far as it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The file's name in the model.
    pub file: &'static str,
    /// The revision, a plain name.
    pub commit: String,
    /// The ETag, a plain name.
    pub etag: String,
    /// The length in bytes.
    pub bytes: u64,
}

impl Announced {
    /// What is wrong with a file that should have this content: its length, or its digest where the ETag is one. The hub's is the
    /// SHA-256 of a large file (64 hexadecimal digits) and git's name of a small one (40: the SHA-1 of `blob LENGTH\0CONTENT`).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn problem(&self, path: &Path) -> io::Result<Option<String>> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes != self.bytes {
            return Ok(Some(format!("came with {bytes} bytes, expected {}", self.bytes)));
        }
        let is_digest = |digits| self.etag.len() == digits && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (kind, found) = if is_digest(64) {
            ("SHA-256", digest::sha256_reader(&mut file)?.0)
        } else if is_digest(40) {
            ("git blob", git_blob(&mut file, bytes)?)
        } else {
            return Ok(None);
        };
        let wrong = !found.eq_ignore_ascii_case(&self.etag);
        Ok(wrong.then(|| format!("came with {kind} {found}, expected {}", self.etag)))
    }
}

/// The name that git gives a file's content of so many bytes.
pub fn git_blob(content: &mut impl Read, bytes: u64) -> io::Result<String> {
    let mut hasher = Sha1::new_with_prefix(format!("blob {bytes}\0"));
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Why a download stopped; what has come by then stays, to be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The network, or the server's status.
    #[error(transparent)]
    Network(#[from] ureq::Error),
    /// The connection or the disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Fetches what `path` lacks of the file at `url`, from where an earlier download stopped. A server that does not know ranges, or
/// gives another one than it was asked for, begins again. At most one byte more than announced is taken, so that more is seen.
///
/// # Errors
/// As [`Stopped`].
pub fn download(
    url: &str,
    token: Option<&str>,
    announced: &Announced,
    path: &Path,
    shown: &mut Shown,
) -> Result<(), Stopped> {
    // The token goes to nobody but the hub.
    let agent: Agent = Agent::config_builder().redirect_auth_headers(RedirectAuthHeaders::SameHost).build().into();
    let mut begun = fs::metadata(path).map_or(0, |part| part.len());
    if begun >= announced.bytes {
        begun = 0;
    }
    let mut request = agent.get(url).header(RANGE, format!("bytes={begun}-")).header(ACCEPT_ENCODING, "identity");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = request.call()?;
    let continues = response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok())
            == Some(begun);
    let mut options = File::options();
    options.create(true);
    if continues && begun > 0 {
        options.append(true);
    } else {
        options.write(true).truncate(true);
        begun = 0;
    }
    let mut file = options.open(path)?;
    shown.begin(announced.file, announced.bytes, begun);
    let mut body = response.into_body().into_reader().take((announced.bytes - begun).saturating_add(1));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = body.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        shown.update(read);
    }
    shown.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "hello\n").unwrap();
        let problem = |etag: &str, bytes| {
            let announced = Announced { file: "file", commit: "c".into(), etag: etag.into(), bytes };
            announced.problem(&path).unwrap()
        };
        // `git hash-object` and `sha256sum` of that file.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for right in [git, sha256, "no-digest"] {
            assert_eq!(problem(right, 6), None);
            assert_eq!(problem(right, 7).unwrap(), "came with 6 bytes, expected 7");
        }
        for (kind, right) in [("git blob", git), ("SHA-256", sha256)] {
            let wrong = right.replace('1', "2");
            assert_eq!(problem(&wrong, 6).unwrap(), format!("came with {kind} {right}, expected {wrong}"));
        }
    }
}

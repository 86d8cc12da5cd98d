//! What a revision holds: files, and what tells whether their bytes are right.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;
use sha1::{Digest as _, Sha1};
use wmtp_artifacts::Digest;
use wmtp_job_kit::JobError;

/// How the hub identifies the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// Of large files.
    Sha256(Digest),
    /// Of the others: git's SHA-1 of a header and the bytes.
    Git(String),
}

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(super) identity: Identity,
}

/// What a revision holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) commit: String,
    pub(crate) files: Vec<HubFile>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Snapshot {
    /// Reads the hub's list; it comes from another's server and names files of ours.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let listing: Listing = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if !is_hex(&listing.sha, 40) {
            return Err(format!("its commit is {:?}", listing.sha));
        }
        let files = listing.siblings.into_iter().map(HubFile::of);
        Ok(Self {
            commit: listing.sha,
            files: files.collect::<Result<_, _>>()?,
        })
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl HubFile {
    fn of(found: Sibling) -> Result<Self, String> {
        let path = found.rfilename;
        let is_inside = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !is_inside || path.contains(['\\', '\0']) || path.len() > 512 {
            return Err(format!(
                "it has a file {path:?}, which leads out of the folder"
            ));
        }
        let (size, identity) = match (found.lfs, found.blob_id, found.size) {
            (Some(lfs), ..) => {
                let digest = lfs
                    .sha256
                    .parse()
                    .map_err(|_| format!("{path} has no SHA-256"))?;
                (lfs.size, Identity::Sha256(digest))
            }
            (None, Some(blob), Some(size)) if is_hex(&blob, 40) => (size, Identity::Git(blob)),
            _ => return Err(format!("{path} has neither SHA-256 nor git digest")),
        };
        Ok(Self {
            path,
            size,
            identity,
        })
    }

    /// Whether a file has the bytes that the hub says.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool, JobError> {
        let found = match std::fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if found != self.size {
            return Ok(false);
        }
        match &self.identity {
            Identity::Sha256(digest) => Ok(Digest::of_file(path)? == *digest),
            Identity::Git(blob) => Ok(git_digest(path, self.size)? == *blob),
        }
    }
}

pub(super) fn git_digest(path: &Path, size: u64) -> std::io::Result<String> {
    let mut sha = Sha1::new();
    sha.update(format!("blob {size}\0"));
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut block)? {
            0 => break,
            length => sha.update(&block[..length]),
        }
    }
    let mut text = String::new();
    for byte in sha.finalize() {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_list_that_leads_out_of_the_folder_is_refused() {
        let list = |path: &str| {
            let sibling = serde_json::json!({"rfilename": path, "lfs": {"sha256": "0".repeat(64), "size": 1}});
            serde_json::json!({"sha": COMMIT, "siblings": [sibling]}).to_string()
        };
        assert!(Snapshot::parse(list("a/b.bin").as_bytes()).is_ok());
        for path in ["../a", "/a", "a//b", "a/../../b", "", "a\\b", "."] {
            let error = Snapshot::parse(list(path).as_bytes()).unwrap_err();
            assert!(error.contains("leads out"), "{error}");
        }
    }
}

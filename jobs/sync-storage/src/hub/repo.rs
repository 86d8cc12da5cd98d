//! Where a revision is, as people write it and as the hub is asked for it.

use std::str::FromStr;

/// What kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RepoKind {
    Model,
    DataSet,
}

/// `hf://OWNER/REPO@REVISION`, or `hf://datasets/OWNER/REPO@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repo {
    kind: RepoKind,
    pub(super) name: String,
    pub(super) revision: String,
}

impl FromStr for Repo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?}: expected hf://OWNER/REPO@REVISION or hf://datasets/OWNER/REPO@REVISION"
            )
        };
        let rest = text.strip_prefix("hf://").ok_or_else(wrong)?;
        let (kind, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (RepoKind::DataSet, rest),
            None => (RepoKind::Model, rest),
        };
        let (name, revision) = rest.split_once('@').ok_or_else(|| {
            format!(
                "{}; a revision is needed: a commit, or a branch or tag, which is resolved to one",
                wrong()
            )
        })?;
        let is_word = |word: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with('.') && word.chars().all(allowed)
        };
        let (owner, repo) = name.split_once('/').ok_or_else(wrong)?;
        if !is_word(owner) || !is_word(repo) || !revision.split('/').all(is_word) {
            return Err(wrong());
        }
        Ok(Self {
            kind,
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl Repo {
    /// Owner and name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn api_path(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::DataSet => "datasets",
        };
        let revision = encoded(&self.revision).replace('/', "%2F");
        format!("/api/{kind}/{}/revision/{revision}?blobs=true", self.name)
    }

    pub(super) fn file_path(&self, commit: &str, file: &str) -> String {
        let prefix = match self.kind {
            RepoKind::Model => "",
            RepoKind::DataSet => "datasets/",
        };
        format!("/{prefix}{}/resolve/{commit}/{}", self.name, encoded(file))
    }
}

/// A path with every byte escaped that is not plain.
fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let escape = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    path.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_with_its_revision() {
        let repo: Repo = "hf://datasets/a/b-c.d@refs/pr/1".parse().unwrap();
        assert_eq!(
            (repo.kind, repo.name(), repo.revision.as_str()),
            (RepoKind::DataSet, "a/b-c.d", "refs/pr/1")
        );
        assert_eq!(
            repo.api_path(),
            "/api/datasets/a/b-c.d/revision/refs%2Fpr%2F1?blobs=true"
        );
        assert_eq!(
            repo.file_path("c", "x y/ü"),
            "/datasets/a/b-c.d/resolve/c/x%20y/%C3%BC"
        );
        for wrong in [
            "hf://a/b",
            "hf://a@b",
            "s3://a/b@c",
            "hf://a/../b@c",
            "hf://a/b@",
            "hf://a/b c@d",
        ] {
            assert!(wrong.parse::<Repo>().is_err(), "{wrong}");
        }
    }
}

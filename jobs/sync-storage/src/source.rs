//! Where `download` fetches from: a revision of the Hugging Face hub, or objects of another S3 store.

use std::path::Path;
use std::str::FromStr;

use wmtp_artifacts::{Digest, StoreOptions, StoreUri, Tree, TreeFile};
use wmtp_job_kit::JobError;

use crate::hub::{Hub, HubFile, Repo};

/// What people write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Hub(Repo),
    S3(StoreUri),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("s3://") {
            let uri = text
                .parse::<StoreUri>()
                .map_err(|error| error.to_string())?;
            return Ok(Self::S3(uri));
        }
        if text.starts_with("hf://") {
            return text.parse().map(Self::Hub);
        }
        Err(format!(
            "{text:?}: expected hf://OWNER/REPO@REVISION, hf://datasets/OWNER/REPO@REVISION or s3://BUCKET/PREFIX"
        ))
    }
}

impl Source {
    /// Looks at what there is.
    pub(crate) async fn open(&self, options: StoreOptions) -> Result<Found, JobError> {
        match self {
            Self::Hub(repo) => {
                let hub = Hub::from_environment()?;
                let snapshot = hub.snapshot(repo).await?;
                let files = snapshot.files.into_iter().map(File::Hub).collect();
                Ok(Found {
                    name: format!("{} at commit {}", repo.name(), snapshot.commit),
                    version: snapshot.commit,
                    files,
                    from: Opened::Hub(Box::new(hub), repo.clone()),
                })
            }
            Self::S3(uri) => {
                let tree = Tree::connect(uri, options).await?;
                let files = tree.files().await?;
                Ok(Found {
                    name: tree.place(),
                    version: Digest::of(format!("{files:?}").as_bytes()).to_string(),
                    files: files.into_iter().map(File::S3).collect(),
                    from: Opened::S3(tree),
                })
            }
        }
    }
}

enum Opened {
    Hub(Box<Hub>, Repo),
    S3(Tree),
}

/// A file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum File {
    Hub(HubFile),
    S3(TreeFile),
}

impl File {
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Hub(file) => &file.path,
            Self::S3(file) => &file.path,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Hub(file) => file.size,
            Self::S3(file) => file.size,
        }
    }
}

/// What a source holds.
pub(crate) struct Found {
    /// For messages.
    pub(crate) name: String,
    /// Tells what was found from what the source may hold another time.
    pub(crate) version: String,
    pub(crate) files: Vec<File>,
    from: Opened,
}

impl Found {
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(File::size).sum()
    }

    /// Fetches a file on from what is at `path`, until it is there and as far as its source tells has the right bytes.
    pub(crate) async fn fetch(
        &self,
        file: &File,
        path: &Path,
        arrived: &impl Fn(u64),
    ) -> Result<(), JobError> {
        match (&self.from, file) {
            (Opened::Hub(hub, repo), File::Hub(file)) => {
                hub.fetch(repo, &self.version, file, path, arrived).await
            }
            (Opened::S3(tree), File::S3(file)) => Ok(tree.fetch(file, path, arrived).await?),
            _ => Err(JobError::internal("a file of another source")),
        }
    }

    /// Whether a local file has the bytes that the source states.
    pub(crate) async fn is_at(&self, file: &File, path: &Path) -> Result<bool, JobError> {
        match (&self.from, file) {
            (Opened::S3(tree), File::S3(file)) => Ok(tree.is_at(file, path).await?),
            (_, File::Hub(file)) => file.is_at(path),
            _ => Err(JobError::internal("a file of another source")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_says_what_it_is() {
        let hub: Source = "hf://meta/tiny@main".parse().unwrap();
        assert!(matches!(hub, Source::Hub(_)));
        let s3: Source = "s3://bucket/models/tiny".parse().unwrap();
        assert!(matches!(s3, Source::S3(_)));
        for wrong in ["", "/a/folder", "https://x", "s3://UPPER/x", "hf://a"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}

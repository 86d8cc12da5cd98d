//! Carrying artifacts to a site without a network: out of a store into a folder, and back into another store.
//!
//! The folder holds the same objects under the same keys as a store, and `wmtp-export.json`, written last. Import trusts
//! nothing in it: manifests are read as strictly as from a store, and every content is hashed before the first one is
//! sent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::blob::blocking;
use crate::fetch::download;
use crate::manifest::{MAX_BYTES, parse_strict};
use crate::mirror::remove_if_there;
use crate::publish::Sources;
use crate::scan::Local;
use crate::{
    ArtifactId, CopyReport, CopyScope, Digest, Error, FileEntry, Manifest, Result, Store, layout,
};

/// The list of what a folder carries. Without it a folder is no export, or not yet.
const INDEX: &str = "wmtp-export.json";
const SCHEMA: &str = "wmtp.export/1";
/// Bytes hashed at a time.
const BLOCK: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    schema: String,
    /// The artifact that was asked for.
    root: ArtifactId,
    /// All artifacts, each after what it was made from.
    artifacts: Vec<ArtifactId>,
}

impl Store {
    /// Writes an artifact with all that it was made from into a folder. What lies there already, whole, is not fetched
    /// again. `watch` is told the bytes so far and in all.
    ///
    /// # Errors
    /// [`Error::NotFound`] when an artifact or an ancestor of it is not in the store; [`Error::Corrupt`] when a content
    /// is damaged.
    pub async fn export(
        &self,
        id: &ArtifactId,
        folder: &Path,
        mut watch: impl FnMut(u64, u64),
    ) -> Result<CopyReport> {
        let artifacts = self.closure(id, CopyScope::Lineage).await?;
        let contents = distinct(artifacts.iter().map(|(manifest, _)| manifest));
        let total = contents.iter().map(|entry| entry.size).sum();
        fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let mut report = CopyReport {
            artifacts: artifacts.len() as u64,
            ..CopyReport::default()
        };
        let mut done = 0;
        for entry in contents {
            let path = folder.join(layout::blob(&entry.sha256));
            if is_whole(path.clone(), entry.clone()).await? {
                report.blobs_present += 1;
            } else {
                // A damaged one would pass for what another export has finished meanwhile.
                remove_if_there(&path)?;
                download(&self.bucket, &entry, path.clone()).await?;
                blocking(move || make_durable(&path)).await?;
                report.blobs_copied += 1;
                report.bytes_copied += entry.size;
            }
            done += entry.size;
            watch(done, total);
        }
        let index = Index {
            schema: SCHEMA.to_owned(),
            root: id.clone(),
            artifacts: artifacts
                .iter()
                .map(|(manifest, _)| manifest.id.clone())
                .collect(),
        };
        for (manifest, stored) in &artifacts {
            write_file(&folder.join(layout::manifest(&manifest.id)), stored)?;
        }
        let index = serde_json::to_vec_pretty(&index).expect("an index holds only text");
        write_file(&folder.join(INDEX), &index)?;
        Ok(report)
    }

    /// Brings what a folder carries into this store; ids stay. Returns the artifact that was exported. Everything is
    /// checked before anything is written. `watch` is told the bytes checked so far and in all.
    ///
    /// # Errors
    /// [`Error::BadInput`] when the folder is no whole export or holds what an export does not; [`Error::Corrupt`] when
    /// a manifest or a content is not what its id or digest says.
    pub async fn import(
        &self,
        folder: &Path,
        watch: impl FnMut(u64, u64),
    ) -> Result<(ArtifactId, CopyReport)> {
        let carried = Carried::open(folder)?;
        let index = carried.index()?;
        let artifacts: Vec<_> = index
            .artifacts
            .iter()
            .map(|id| carried.manifest(id))
            .collect::<Result<_>>()?;
        carried.check_contents(&artifacts, watch).await?;
        let mut report = CopyReport::default();
        for (manifest, stored) in artifacts {
            let files = manifest.content.files.iter();
            let local = files.map(|file| {
                let path = carried.root.join(layout::blob(&file.sha256));
                (file.sha256, Local { path, bytes: None })
            });
            let sources = Sources::Files(local.collect());
            let num_contents = distinct([&manifest]).len() as u64;
            let brought = self.bring(manifest, stored, &sources).await?;
            let copied = brought.uploaded.len() as u64;
            report.artifacts += 1;
            report.blobs_copied += copied;
            report.blobs_present += num_contents - copied;
            report.bytes_copied += brought.uploaded.values().sum::<u64>();
        }
        Ok((index.root, report))
    }
}

/// A folder that says it is an export.
struct Carried {
    root: PathBuf,
}

impl Carried {
    fn open(folder: &Path) -> Result<Self> {
        let root = folder
            .canonicalize()
            .map_err(|source| Error::io(folder, source))?;
        Ok(Self { root })
    }

    fn index(&self) -> Result<Index> {
        let what = self.root.display().to_string();
        if !self.root.join(INDEX).exists() {
            return Err(Error::bad_input(
                what,
                format!("it has no {INDEX}: it is no export, or one that was cut off"),
            ));
        }
        let value = parse_strict(&self.read(INDEX, MAX_BYTES)?)?;
        let index: Index = serde_json::from_value(value)
            .map_err(|error| Error::bad_input(format!("{what}/{INDEX}"), error.to_string()))?;
        if index.schema != SCHEMA {
            let detail = format!("schema {:?}; this version reads {SCHEMA}", index.schema);
            return Err(Error::bad_input(format!("{what}/{INDEX}"), detail));
        }
        if index.artifacts.last() != Some(&index.root) {
            return Err(Error::bad_input(
                format!("{what}/{INDEX}"),
                "the artifact that was exported is not the last of the list",
            ));
        }
        Ok(index)
    }

    fn manifest(&self, id: &ArtifactId) -> Result<(Manifest, Vec<u8>)> {
        let key = layout::manifest(id);
        let stored = self.read(&key, MAX_BYTES)?;
        let manifest = Manifest::parse(&stored)?;
        if &manifest.id != id {
            let what = format!("{key} in {}", self.root.display());
            return Err(Error::corrupt(
                what,
                format!("it is the manifest of {}", manifest.id),
            ));
        }
        Ok((manifest, stored))
    }

    /// Hashes every content.
    async fn check_contents(
        &self,
        artifacts: &[(Manifest, Vec<u8>)],
        mut watch: impl FnMut(u64, u64),
    ) -> Result<()> {
        let contents = distinct(artifacts.iter().map(|(manifest, _)| manifest));
        let total = contents.iter().map(|entry| entry.size).sum();
        let mut done = 0;
        for entry in contents {
            let key = layout::blob(&entry.sha256);
            self.regular(&key)?;
            if !is_whole(self.root.join(&key), entry.clone()).await? {
                let what = format!("{} ({key} in {})", entry.path, self.root.display());
                return Err(Error::corrupt(
                    what,
                    "the bytes do not have the size and SHA-256 that the manifest states",
                ));
            }
            done += entry.size;
            watch(done, total);
        }
        Ok(())
    }

    fn read(&self, key: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.regular(key)?;
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
            .map_err(|source| Error::io(&path, source))?;
        if bytes.len() as u64 > limit {
            return Err(Error::bad_input(
                path.display().to_string(),
                "it is larger than 64 MiB",
            ));
        }
        Ok(bytes)
    }

    /// The path of a key, if a regular file lies there, reached through folders alone.
    fn regular(&self, key: &str) -> Result<PathBuf> {
        let mut path = self.root.clone();
        let mut kind = None;
        for part in key.split('/') {
            path.push(part);
            let found = fs::symlink_metadata(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    Error::bad_input(path.display().to_string(), "the export lacks it")
                }
                _ => Error::io(&path, error),
            })?;
            if found.is_symlink() {
                return Err(Error::bad_input(
                    path.display().to_string(),
                    "it is a symbolic link, which could lead out of the export",
                ));
            }
            kind = Some(found.file_type());
        }
        if kind.is_some_and(|kind| kind.is_file()) {
            return Ok(path);
        }
        Err(Error::bad_input(
            path.display().to_string(),
            "it is no regular file",
        ))
    }
}

/// Each content once.
fn distinct<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Vec<FileEntry> {
    let mut seen = BTreeSet::new();
    let files = manifests
        .into_iter()
        .flat_map(|manifest| &manifest.content.files);
    files
        .filter(|file| seen.insert((file.sha256, file.size)))
        .cloned()
        .collect()
}

/// Whether a file has the size and the SHA-256 of a content.
pub(crate) async fn is_whole(path: PathBuf, entry: FileEntry) -> Result<bool> {
    blocking(move || {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let io = |source| Error::io(&path, source);
        if file.metadata().map_err(io)?.len() != entry.size {
            return Ok(false);
        }
        let mut sha = Sha256::new();
        let mut block = vec![0; BLOCK];
        loop {
            match file.read(&mut block).map_err(io)? {
                0 => return Ok(Digest(sha.finalize().into()) == entry.sha256),
                length => sha.update(&block[..length]),
            }
        }
    })
    .await
}

/// A file that appears under its name once it is whole.
struct NewFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(path);
        let file = fs::create_dir_all(folder)
            .and_then(|()| {
                tempfile::Builder::new()
                    .prefix(".export-")
                    .tempfile_in(folder)
            })
            .map_err(|source| Error::io(folder, source))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|source| Error::io(&self.path, source))
    }

    fn finish(self) -> Result<()> {
        let io = |source| Error::io(&self.path, source);
        self.file.as_file().sync_all().map_err(io)?;
        self.file
            .persist(&self.path)
            .map_err(|error| io(error.error))?;
        Ok(())
    }
}

/// The disk that carries an export is taken out soon.
fn make_durable(path: &Path) -> Result<()> {
    for path in [path, path.parent().unwrap_or(path)] {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|source| Error::io(path, source))?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

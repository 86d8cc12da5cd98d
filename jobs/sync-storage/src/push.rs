//! `push`: a folder becomes an artifact.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};
use wmtp_artifacts::FileEntry;
use wmtp_job_kit::{
    ArtifactId, Job, JobError, Kind, Output, Plan, PlanCx, Run, TOKENIZER_SHA256, ToolCx, bytes,
};

use crate::bundle::{self, Origin};
use crate::folder::{self, Listing, SUMS};

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PushKind {
    /// Files as they came, any layout
    RawData,
    /// A model bundle in the layout of storage v2
    BaseModel,
}

/// Flags of `push`.
#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    /// What the folder holds
    #[arg(long, value_enum)]
    kind: PushKind,
    /// The folder
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Model name for files that do not say it; the folder's name by default
    #[arg(long, value_name = "TEXT")]
    model_name: Option<String>,
    /// Attention heads, for a bundle without params.json
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Read the stored artifact back and hash it
    #[arg(long)]
    verify: bool,
    /// What the folder was found to hold.
    #[arg(skip)]
    listing: OnceCell<Listing>,
}

/// What a push copies.
pub(crate) struct PushWork {
    kind: PushKind,
    folder: PathBuf,
    listing: Listing,
    origin: Origin,
}

/// Role of the artifact.
pub(crate) const OUTPUT: &str = "artifact";

impl Job for Push {
    type Work = PushWork;
    const NAME: &'static str = "sync-storage-push";
    const ABOUT: &'static str = "Checks a folder and stores it as an artifact.";
    const EXAMPLES: &'static str = "
        sync-storage push --kind raw-data --folder data/mbpp --name mbpp
        sync-storage push --kind base-model --folder models_v2/meta-llama-mtp --name meta-llama-mtp --verify";
    const VERSION: u32 = 1;

    fn plan(&self, _: &mut PlanCx<'_>) -> Result<Plan<PushWork>, JobError> {
        let listing = self.listing()?.clone();
        if self.kind == PushKind::RawData && listing.contains_key(SUMS) {
            folder::check_sums(&self.folder.join(SUMS), &listing)?;
        }
        let origin = self.origin();
        let plan_files: Value = json!(listing);
        let num_files = listing.len();
        let kind = self.artifact_kind();
        let size: u64 = self.contents()?.iter().map(|file| file.size).sum();
        let mut plan = Plan::new(PushWork {
            kind: self.kind,
            folder: self.folder.clone(),
            listing,
            origin: origin.clone(),
        })
        .option("kind", kind.to_string())
        .option("files", plan_files)
        .output(OUTPUT, kind)
        .note(format!(
            "copy and hash {} files, {}, of {}",
            num_files,
            bytes(size),
            self.folder.display()
        ));
        if self.kind == PushKind::BaseModel {
            let heads = origin.num_heads.map(|heads| heads.to_string());
            plan = plan
                .option("model_name", origin.model_name)
                .option("heads", heads);
        }
        Ok(plan)
    }

    fn run(work: &PushWork, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let dir = run.output_dir(OUTPUT)?;
        let progress = run.progress("copying", "files", work.listing.len() as u64);
        folder::copy(
            &|| run.go_on(),
            &work.folder,
            &dir,
            &work.listing,
            &progress,
        )?;
        progress.finish();
        let output = match work.kind {
            PushKind::RawData => {
                folder::write(&dir.join(SUMS), folder::sums(&work.listing).as_bytes())?;
                // Without the checksum file, so that what was pulled is the same artifact when it is pushed.
                let num_files = work.listing.keys().filter(|file| *file != SUMS).count();
                Output::new(OUTPUT, Kind::RawData, dir).attribute("files", num_files)
            }
            PushKind::BaseModel => {
                let summary = bundle::complete(&dir, &work.origin)?;
                bundle_output(dir, &summary)
            }
        };
        Ok(vec![output])
    }

    fn deliver(
        &self,
        outputs: &BTreeMap<String, ArtifactId>,
        cx: &mut ToolCx<'_>,
    ) -> Result<(), JobError> {
        if !self.verify {
            return Ok(());
        }
        for id in outputs.values() {
            let store = cx.store()?;
            let manifest = store.manifest(id)?;
            let dir = store.fetch(id)?;
            let progress = cx.progress("verifying", "files", manifest.content.files.len() as u64);
            folder::verify(&|| cx.go_on(), &dir, &manifest, &progress)?;
            progress.finish();
            cx.log(format!("{id}: every file has the SHA-256 of its manifest"));
        }
        Ok(())
    }
}

impl Push {
    /// A folder of a storage tree, which tells the model's name where the bundle does not.
    pub(crate) fn of_tree(kind: PushKind, folder: PathBuf, name: &str, verify: bool) -> Self {
        Self {
            kind,
            folder,
            model_name: Some(name.to_owned()),
            heads: None,
            verify,
            listing: OnceCell::new(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn artifact_kind(&self) -> Kind {
        match self.kind {
            PushKind::RawData => Kind::RawData,
            PushKind::BaseModel => Kind::BaseModel,
        }
    }

    /// The folder's files, which are read once for all who ask.
    fn listing(&self) -> Result<&Listing, JobError> {
        if let Some(listing) = self.listing.get() {
            return Ok(listing);
        }
        let listing = folder::digests(&self.folder, &folder::files(&self.folder)?)?;
        Ok(self.listing.get_or_init(|| listing))
    }

    /// The contents that the folder itself has, each once; what a push adds to them is small.
    pub(crate) fn contents(&self) -> Result<Vec<FileEntry>, JobError> {
        let mut contents = BTreeMap::new();
        for (file, digest) in self.listing()? {
            let path = self.folder.join(file);
            let found = std::fs::metadata(&path)
                .map_err(|error| JobError::bad_input(error).context(path.display().to_string()))?;
            let entry = FileEntry {
                path: file.clone(),
                size: found.len(),
                sha256: *digest,
                parts: None,
            };
            contents.entry(*digest).or_insert(entry);
        }
        Ok(contents.into_values().collect())
    }

    fn origin(&self) -> Origin {
        let of_folder = || {
            let folder = self
                .folder
                .canonicalize()
                .unwrap_or_else(|_| self.folder.clone());
            folder.file_name().map_or_else(
                || "model".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        Origin {
            model_name: self.model_name.clone().unwrap_or_else(of_folder),
            repo: "local folder".to_owned(),
            revision: "unknown".to_owned(),
            num_heads: self.heads,
        }
    }
}

/// A bundle with the attributes that readers look for.
pub(crate) fn bundle_output(dir: PathBuf, summary: &bundle::Summary) -> Output {
    Output::new(OUTPUT, Kind::BaseModel, dir)
        .attribute("model_name", &summary.model_name)
        .attribute(TOKENIZER_SHA256, summary.tokenizer_sha256)
        .attribute("n_params", summary.n_params)
        .attribute("n_future_tokens", summary.n_future_tokens)
        .attribute("vocab_size", summary.vocab_size)
}

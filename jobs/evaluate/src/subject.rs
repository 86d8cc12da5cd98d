//! What is evaluated: a trained checkpoint, or the untrained base model.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use wmtp_artifacts::Input;
use wmtp_job_kit::{ArtifactId, JobError, Kind, Manifest, PlanCx, StoreHandle};
use wmtp_model::{DType, Device, ParamStore, Params, Place, Products};
use wmtp_recipe::Recipe;
use wmtp_records::{BASE, jsonl};
use wmtp_tokens::Tokenizer;
use wmtp_training::session::{self, bundle};

use crate::generate::model_error;
use crate::report::Identity;

/// Settings that a checkpoint was trained with.
const RECIPE: &str = "recipe.json";

/// Role of the evaluated model among the job's inputs.
pub(crate) const ROLE: &str = "model";

/// The evaluated model as the plan knows it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// `v001` and so on, or `base`.
    pub(crate) version_id: String,
    /// Algorithm key of the recipe, or `base`.
    pub(crate) algo: String,
    /// Version that it was derived from.
    pub(crate) parent: Option<String>,
    /// The one change against the parent.
    pub(crate) change: Option<String>,
    /// Training seed.
    pub(crate) seed: Option<u64>,
    /// The recipe that it was trained with, evaluated as the present recipe says.
    pub(crate) recipe: Recipe,
    /// Its manifest.
    pub(crate) manifest: Manifest,
    layout: Layout,
}

/// Where a model's files lie in its artifact.
#[derive(Debug, Clone, Copy)]
struct Layout {
    params: &'static str,
    weights: &'static str,
    tokenizer: &'static str,
}

const CHECKPOINT: Layout = Layout {
    params: "params.json",
    weights: "model.safetensors",
    tokenizer: "tokenizer.json",
};
const BUNDLE: Layout = Layout {
    params: bundle::PARAMS,
    weights: bundle::WEIGHTS,
    tokenizer: bundle::TOKENIZER,
};

impl Subject {
    /// A checkpoint of train-stage2, described by the recipe that it carries.
    ///
    /// The present recipe gives the evaluation; the training part comes from the checkpoint, so that a score can
    /// never claim another training than the one that happened.
    pub(crate) fn checkpoint(cx: &mut PlanCx<'_>, reference: &str) -> Result<Self, JobError> {
        let manifest = cx.input(ROLE, Kind::Checkpoint, reference)?;
        // It holds the settings of the training; names and data are inputs, which manifests pin. The weights beside it
        // are no business of a plan.
        let trained = trained_recipe(cx, &manifest)?;
        let mut recipe = cx.recipe()?.clone();
        recipe.version = trained.version;
        recipe.seed = trained.seed;
        recipe.experiment.algo = trained.experiment.algo;
        recipe.model.horizon = trained.model.horizon;
        recipe.model.dtype = trained.model.dtype;
        recipe.optim = trained.optim;
        recipe.lora = trained.lora;
        Ok(Self {
            version_id: recipe.version.id.clone(),
            algo: recipe.experiment.algo.to_string(),
            parent: recipe.version.parent.clone(),
            change: recipe.version.change.clone(),
            seed: Some(recipe.seed),
            recipe,
            manifest,
            layout: CHECKPOINT,
        })
    }

    /// The model that every version starts from.
    pub(crate) fn base(cx: &mut PlanCx<'_>, reference: &str) -> Result<Self, JobError> {
        let manifest = cx.input(ROLE, Kind::BaseModel, reference)?;
        Ok(Self {
            version_id: BASE.to_owned(),
            algo: BASE.to_owned(),
            parent: None,
            change: None,
            seed: None,
            recipe: cx.recipe()?.clone(),
            manifest,
            layout: BUNDLE,
        })
    }

    /// Who it is, as scores say it.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            version_id: self.version_id.clone(),
            algo: self.algo.clone(),
            parent: self.parent.clone(),
            change: self.change.clone(),
            seed: self.seed,
            dataset: self.recipe.experiment.dataset.clone(),
            shared_digest: self.recipe.shared_digest().to_string(),
            checkpoint: Some(self.manifest.id.to_string()),
        }
    }

    /// Who looks, whatever the weights: `v001-s42`, or the base model's id.
    pub(crate) fn stable_name(&self) -> String {
        match self.seed {
            Some(seed) => format!("{}-s{seed}", self.version_id),
            None => self.manifest.id.to_string(),
        }
    }

    /// The data set that it was trained on, as its manifest says; `None` for a base model, which has its tokenizer alone from one.
    pub(crate) fn trained_on(&self) -> Option<&ArtifactId> {
        self.seed?;
        let inputs = &self.manifest.provenance.inputs;
        let is_data = |input: &&Input| input.id.kind() == Kind::ProcessedData;
        inputs.iter().find(is_data).map(|input| &input.id)
    }

    /// Reads parameters and weights from the fetched artifact.
    pub(crate) fn load(&self, folder: &Path) -> Result<(Params, ParamStore), JobError> {
        self.layout.load(folder)
    }
}

fn trained_recipe(cx: &PlanCx<'_>, checkpoint: &Manifest) -> Result<Recipe, JobError> {
    let bytes = cx.store()?.read(checkpoint, RECIPE)?;
    let bad = |reason: &dyn Display| {
        JobError::bad_input(format!("{RECIPE} of {}: {reason}", checkpoint.id))
    };
    let bytes = bytes.ok_or_else(|| bad(&"it is not there"))?;
    serde_json::from_slice(&bytes).map_err(|error| bad(&error))
}

impl Layout {
    fn load(self, folder: &Path) -> Result<(Params, ParamStore), JobError> {
        let params = Params::load(&folder.join(self.params)).map_err(model_error)?;
        let weights = folder.join(self.weights);
        let store =
            ParamStore::load(&weights, &params, DType::F32, &Device::Cpu).map_err(model_error)?;
        Ok((params, store))
    }
}

/// A model in the store, with all that generation needs.
pub(crate) struct Stored {
    pub(crate) id: ArtifactId,
    folder: PathBuf,
    layout: Layout,
}

/// Fetches a checkpoint or a base model by name or id.
pub(crate) fn stored(store: &StoreHandle, kind: Kind, reference: &str) -> Result<Stored, JobError> {
    let id = store.resolve(kind, reference)?;
    Ok(Stored {
        folder: store.fetch(&id)?,
        layout: if kind == Kind::Checkpoint {
            CHECKPOINT
        } else {
            BUNDLE
        },
        id,
    })
}

impl Stored {
    pub(crate) fn load(&self) -> Result<(Params, ParamStore), JobError> {
        self.layout.load(&self.folder)
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, JobError> {
        Tokenizer::load(&self.folder.join(self.layout.tokenizer)).map_err(JobError::bad_input)
    }

    /// Products of its training, where the place has a choice.
    pub(crate) fn products(&self, place: Place) -> Result<Products, JobError> {
        let recipe = self.folder.join(RECIPE);
        if place == Place::Cpu || !recipe.is_file() {
            return Ok(Products::F32);
        }
        let recipe: Recipe = jsonl::read_json(&recipe)?;
        Ok(session::products(recipe.model.dtype))
    }
}

/// The tuned reference of train-stage1, whose artifact has the files of a checkpoint.
pub(crate) fn load_reference(folder: &Path) -> Result<(Params, ParamStore), JobError> {
    CHECKPOINT.load(folder)
}

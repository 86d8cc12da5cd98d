//! `create`: a micro model with the tokenizer of a data set and seeded weights.

use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;
use wmtp_artifacts::decimals_as_strings;
use wmtp_job_kit::{Job, JobError, Kind, Output, Plan, PlanCx, Run};
use wmtp_model::{DType, Device, ParamStore, Params};
use wmtp_recipe::seed;
use wmtp_records::data_files;
use wmtp_tokens::Tokenizer;

use crate::bundle::{self, Origin};
use crate::folder;
use crate::push::bundle_output;

/// Models small enough for a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// Policy: 6 trunk blocks, 4 prediction heads
    MicroMtp,
    /// Reference: next token only
    MicroRef,
}

impl Preset {
    fn as_str(self) -> &'static str {
        match self {
            Self::MicroMtp => "micro-mtp",
            Self::MicroRef => "micro-ref",
        }
    }

    fn params(self, vocab_size: usize) -> Params {
        match self {
            Self::MicroMtp => Params::micro_mtp(vocab_size),
            Self::MicroRef => Params::micro_ref(vocab_size),
        }
    }
}

/// Flags of `create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Which model
    #[arg(long, value_enum)]
    model: Preset,
    /// Processed data set whose tokenizer the model uses (id or name)
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

/// What a creation makes.
pub(crate) struct CreateWork {
    model: Preset,
    seed: u64,
}

const DATA: &str = "data";
const OUTPUT: &str = "artifact";

impl Job for Create {
    type Work = CreateWork;
    const NAME: &'static str = "sync-storage-create";
    const ABOUT: &'static str =
        "Creates a micro model with seeded weights and stores it as an artifact.";
    const EXAMPLES: &'static str = "
        sync-storage create --model micro-mtp --data micropy --name micro-mtp
        sync-storage create --model micro-ref --data micropy --name micro-ref --seed 43";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<CreateWork>, JobError> {
        let data = cx.input(DATA, Kind::ProcessedData, &self.data)?;
        let vocab_size: usize = data
            .attribute("vocab_size")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| {
                JobError::bad_input(format!("{} has no attribute vocab_size", data.id))
            })?;
        let params = self.model.params(vocab_size);
        let sizes: Value = serde_json::to_value(&params).map_err(JobError::internal)?;
        let work = CreateWork {
            model: self.model,
            seed: self.seed,
        };
        Ok(Plan::new(work)
            .option("model", self.model.as_str())
            .option("seed", self.seed.to_string())
            .option("params", decimals_as_strings(&sizes))
            .output(OUTPUT, Kind::BaseModel)
            .note(format!("{} parameters, f32", params.num_params())))
    }

    fn run(work: &CreateWork, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let dir = run.output_dir(OUTPUT)?;
        let progress = run.progress("creating", "steps", 4);
        let tokenizer = dir.join(bundle::TOKENIZER);
        copy_tokenizer(&run.input(DATA)?.join(data_files::TOKENIZER), &tokenizer)?;
        progress.set(1);
        let vocab_size = Tokenizer::load(&tokenizer)
            .map_err(JobError::bad_input)?
            .vocab_size();
        let params = work.model.params(vocab_size);
        folder::create_parent(&dir.join(bundle::PARAMS))?;
        params
            .save(&dir.join(bundle::PARAMS))
            .map_err(JobError::internal)?;
        progress.set(2);
        let key = seed::stream(work.seed, &format!("init:{}", work.model.as_str()));
        let weights =
            ParamStore::init(&params, key, DType::F32, &Device::Cpu).map_err(JobError::internal)?;
        let model = dir.join(bundle::MODEL);
        folder::create_parent(&model)?;
        weights.save(&model).map_err(JobError::internal)?;
        progress.set(3);
        let origin = Origin::seeded(work.model.as_str(), work.seed);
        let summary = bundle::complete(&dir, &origin)?;
        progress.set(4);
        Ok(vec![bundle_output(dir, &summary)])
    }
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<(), JobError> {
    let bytes = std::fs::read(from)
        .map_err(|error| JobError::from(error).context(from.display().to_string()))?;
    folder::write(to, &bytes)
}

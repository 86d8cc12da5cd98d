//! `export`: trunk and head 1 of a model as a folder that `transformers` or llama.cpp loads.
//!
//! Llama has no place for further prediction heads in either layout: they are left out, and the output says so.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wmtp_job_kit::{ArtifactId, JobError, Kind, Tool, ToolCx, bytes};
use wmtp_model::{
    DType, Device, GgufFacts, ParamStore, Params, next_token, save_gguf, save_hugging_face,
};
use wmtp_records::jsonl;
use wmtp_tokens::Tokenizer;

use crate::bundle::{self, MAX_POSITIONS};
use crate::folder::{GoOn, Unfinished};
use crate::header::Header;

/// The files of the folder, by the names that `transformers` looks for.
const WEIGHTS: &str = "model.safetensors";
const GGUF: &str = "model.gguf";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// What the folder is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Layout {
    /// model.safetensors and config.json, for transformers
    HuggingFace,
    /// model.gguf for llama.cpp, not quantized. It takes token ids alone: GGUF has no name for how our tokenizers cut
    /// text, so they are in the file and beside it as tokenizer.json, for whoever encodes
    Gguf,
}

/// Flags of `export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// Checkpoint or base model, by id or name
    reference: String,
    /// What a name stands for: checkpoint or base-model; an id says it itself
    #[arg(long, value_name = "KIND", default_value = "checkpoint")]
    kind: Kind,
    /// What to write
    #[arg(long = "format", value_name = "FORMAT", default_value = "hugging-face")]
    layout: Layout,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Where an artifact keeps what is exported.
struct Places {
    weights: &'static str,
    params: &'static str,
    tokenizer: &'static str,
}

impl Tool for Export {
    const ABOUT: &'static str = "Writes trunk and head 1 of a model as a folder that Hugging Face's transformers or llama.cpp loads.";
    const EXAMPLES: &'static str = "
        sync-storage export micropy-v001-s42 --to exported/v001
        sync-storage export micropy-mtp --kind base-model --to exported/base
        sync-storage export micropy-v001-s42 --format gguf --to exported/v001-gguf";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let id: ArtifactId = {
            let parsed: Result<ArtifactId, _> = self.reference.parse();
            let kind = parsed.map_or(self.kind, |id| id.kind());
            cx.store()?.resolve(kind, &self.reference)?
        };
        let places = Places::of(id.kind())?;
        if cx.is_dry_run() {
            let to = self.to.display();
            cx.print(format!("would export {id} to {to}; nothing was touched"));
            return Ok(());
        }
        let part = Unfinished::beside(&self.to)?;
        let source = cx.store()?.fetch(&id)?;
        let params = Params::load(&source.join(places.params)).map_err(JobError::bad_input)?;
        let size = self.write(part, &|| cx.go_on(), &id, &source, &places, &params)?;
        let left_out = params.num_horizons() - 1;
        cx.print(format!(
            "{id} is in {}: trunk and head 1, {}; {left_out} further heads are left out, for which the layout has no place",
            self.to.display(),
            bytes(size)
        ));
        if self.layout == Layout::Gguf {
            cx.warning(
                "model.gguf takes token ids alone: GGUF has no name for how the tokenizer cuts text; encode with tokenizer.json",
            );
        }
        cx.json_result(json!({
            "job": "sync-storage-export",
            "artifact": id,
            "folder": self.to.display().to_string(),
            "format": self.layout,
            "heads_left_out": left_out,
        }));
        Ok(())
    }
}

impl Export {
    /// Writes the files; returns the size of the weights.
    fn write(
        &self,
        part: Unfinished,
        go_on: GoOn<'_>,
        id: &ArtifactId,
        source: &Path,
        places: &Places,
        params: &Params,
    ) -> Result<u64, JobError> {
        let at = |error: std::io::Error| {
            JobError::from(error).context(format!("writing {}", self.to.display()))
        };
        let weights = source.join(places.weights);
        let (dtype, name) = stored_type(&weights)?;
        let store =
            ParamStore::load(&weights, params, dtype, &Device::Cpu).map_err(JobError::bad_input)?;
        go_on()?;
        let tokenizer_file = source.join(places.tokenizer);
        std::fs::copy(&tokenizer_file, part.path().join(TOKENIZER)).map_err(at)?;
        let tokenizer = Tokenizer::load(&tokenizer_file).map_err(JobError::bad_input)?;
        let model = Model {
            id,
            params,
            store: &store,
            tokenizer: &tokenizer,
            tokenizer_file: &tokenizer_file,
            dtype: name,
        };
        let target = match self.layout {
            Layout::HuggingFace => model.write_hugging_face(part.path())?,
            Layout::Gguf => model.write_gguf(part.path())?,
        };
        go_on()?;
        let special = |id: u32| tokenizer.token_text(id);
        let tokenizer_config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": special(tokenizer.bos()),
            "eos_token": special(tokenizer.eos()),
            "pad_token": special(tokenizer.pad()),
            "model_max_length": MAX_POSITIONS,
        });
        jsonl::write_json(&part.path().join(TOKENIZER_CONFIG), &tokenizer_config)?;
        let size = std::fs::metadata(&target).map_err(at)?.len();
        part.finish()?;
        Ok(size)
    }
}

/// What is exported, read.
struct Model<'a> {
    id: &'a ArtifactId,
    params: &'a Params,
    store: &'a ParamStore,
    tokenizer: &'a Tokenizer,
    tokenizer_file: &'a Path,
    /// The stored type's name in `transformers`.
    dtype: &'static str,
}

/// Each returns the file of weights that it wrote.
impl Model<'_> {
    fn write_hugging_face(&self, folder: &Path) -> Result<PathBuf, JobError> {
        let config = config(self.params, self.tokenizer, self.dtype, self.id);
        jsonl::write_json(&folder.join(CONFIG), &config)?;
        let target = folder.join(WEIGHTS);
        save_hugging_face(&target, self.params, self.store).map_err(JobError::internal)?;
        Ok(target)
    }

    fn write_gguf(&self, folder: &Path) -> Result<PathBuf, JobError> {
        let facts = GgufFacts {
            name: &self.id.to_string(),
            context_length: MAX_POSITIONS,
            tokenizer_json: &std::fs::read_to_string(self.tokenizer_file)?,
            bos: self.tokenizer.bos(),
            eos: self.tokenizer.eos(),
            pad: self.tokenizer.pad(),
        };
        let target = folder.join(GGUF);
        save_gguf(&target, self.params, self.store, &facts).map_err(JobError::internal)?;
        Ok(target)
    }
}

impl Places {
    fn of(kind: Kind) -> Result<Self, JobError> {
        match kind {
            Kind::Checkpoint => Ok(Self {
                weights: "model.safetensors",
                params: "params.json",
                tokenizer: "tokenizer.json",
            }),
            Kind::BaseModel => Ok(Self {
                weights: bundle::MODEL,
                params: bundle::PARAMS,
                tokenizer: bundle::TOKENIZER,
            }),
            other => Err(JobError::usage(format!(
                "{other} holds no language model; export a checkpoint or a base-model"
            ))),
        }
    }
}

/// The type of the stored weights, and its name in `transformers`.
fn stored_type(weights: &Path) -> Result<(DType, &'static str), JobError> {
    match Header::read(weights)?.dtype() {
        Some("bfloat16") => Ok((DType::BF16, "bfloat16")),
        Some("float16") => Ok((DType::F16, "float16")),
        Some("float64") => Ok((DType::F64, "float64")),
        Some("float32") => Ok((DType::F32, "float32")),
        _ => Err(JobError::bad_input(format!(
            "{}: its tensors are not all of one float type",
            weights.display()
        ))),
    }
}

/// `config.json` of the model of [`next_token`]. The rotary base stands where version 5 of `transformers` reads it, and where
/// older ones do.
fn config(params: &Params, tokenizer: &Tokenizer, dtype: &str, id: &ArtifactId) -> Value {
    let exported = next_token(params);
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": exported.dim,
        "intermediate_size": exported.ffn_dim(),
        "num_hidden_layers": exported.n_layers,
        "num_attention_heads": exported.n_heads,
        "num_key_value_heads": exported.n_kv_heads,
        "head_dim": exported.head_dim(),
        "vocab_size": exported.vocab_size,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": exported.norm_eps,
        "rope_theta": exported.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": exported.rope_theta},
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": tokenizer.eos(),
        "pad_token_id": tokenizer.pad(),
        "dtype": dtype,
        "torch_dtype": dtype,
        "wmtp": {"artifact": id, "heads_left_out": params.num_horizons() - 1},
    })
}

//! A Llama model in Hugging Face's layout: what `config.json` says of its sizes, and which tensor becomes which.
//!
//! The layout has one head. Further prediction heads begin as copies of the block that serves head 1.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use wmtp_job_kit::JobError;
use wmtp_model::{Params, Renamed, hugging_face_tensors, next_token, shard_files};
use wmtp_records::jsonl;

use crate::bundle;
use crate::folder;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Where the weights may be, the first that is there: `torch.save` wrote the last two.
const WEIGHTS: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];
/// How `tokenizer.json` is made where there is none.
const MAKE_TOKENIZER: &str =
    "`transformers` makes it: LlamaTokenizerFast.from_pretrained(DIR).save_pretrained(DIR)";

/// A folder that holds such a model.
pub(super) struct HuggingFace {
    folder: PathBuf,
    /// Sizes of the model that it becomes.
    pub(super) params: Params,
    /// Files with the weights.
    pub(super) weights: Vec<PathBuf>,
}

/// What is read of `config.json`. What a key leaves out is what `transformers` takes then.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Version 5 of `transformers` has the rotary table's settings here.
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(rename = "quantization_config")]
    quantization: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Rope {
    #[serde(rename = "rope_type")]
    kind: Option<String>,
    /// What older files call it.
    #[serde(rename = "type")]
    older_kind: Option<String>,
    #[serde(rename = "rope_theta")]
    theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl Rope {
    /// What is not the plain table, in words.
    fn extra(&self) -> Option<String> {
        let mut kinds = [&self.kind, &self.older_kind].into_iter().flatten();
        let kind = kinds.find(|kind| *kind != "default").cloned();
        let part = self.partial_rotary_factor;
        let part = part.filter(|part| (part - 1.0).abs() > f64::EPSILON);
        kind.or_else(|| part.map(|part| format!("partial_rotary_factor {part}")))
    }
}

impl HuggingFace {
    /// Looks through a folder, for a model with so many heads.
    ///
    /// # Errors
    /// 65 names the key of `config.json` that this product's model cannot follow, or the file that is missing.
    pub(super) fn open(folder: &Path, future_tokens: usize) -> Result<Self, JobError> {
        let path = folder.join(CONFIG);
        if !path.is_file() {
            let what = format!("{} is missing", path.display());
            return Err(JobError::bad_input(what).hint(
                "a folder is read in Hugging Face's layout; give other checkpoints file by file",
            ));
        }
        let config: Config = jsonl::read_json(&path)?;
        let params = config
            .params(future_tokens)
            .map_err(|what| JobError::bad_input(format!("{}: {what}", path.display())))?;
        let model = Self {
            folder: folder.to_owned(),
            params,
            weights: weights(folder)?,
        };
        bundle::check_tokenizer(&model.tokenizer()?, &model.params)?;
        Ok(model)
    }

    fn tokenizer(&self) -> Result<PathBuf, JobError> {
        let path = self.folder.join(TOKENIZER);
        if path.is_file() {
            return Ok(path);
        }
        let mut what = format!("{} is missing", path.display());
        if self.folder.join("tokenizer.model").is_file() {
            what += "; SentencePiece's tokenizer.model, which lies there, is not read";
        }
        Err(JobError::bad_input(what).hint(MAKE_TOKENIZER))
    }

    /// Every tensor of the bundle, by its name there, and the one that it is made of.
    pub(super) fn tensors(&self) -> Vec<(String, Renamed)> {
        let params = &self.params;
        let mut prefixes = params.horizons().map(|head| params.head_prefix(head));
        let first = prefixes.next().unwrap_or_default() + ".";
        let further: Vec<String> = prefixes.collect();
        let mut tensors = Vec::new();
        for one in hugging_face_tensors(params) {
            if let Some(rest) = one.meta.strip_prefix(&first) {
                let copies = further.iter().map(|head| format!("{head}.{rest}"));
                tensors.extend(copies.map(|name| (name, one.clone())));
            }
            tensors.push((one.meta.clone(), one));
        }
        tensors
    }

    /// Writes what a bundle has beside the weights.
    pub(super) fn write_rest(&self, root: &Path) -> Result<(), JobError> {
        let sizes = self.params.to_json();
        let tokenizer = std::fs::read(self.tokenizer()?)?;
        for (file, bytes) in [(bundle::PARAMS, &sizes), (bundle::TOKENIZER, &tokenizer)] {
            folder::create_parent(&root.join(file))?;
            folder::write(&root.join(file), bytes)?;
        }
        Ok(())
    }

    /// Blocks of the model as it was.
    pub(super) fn num_blocks(&self) -> usize {
        next_token(&self.params).n_layers
    }
}

fn weights(folder: &Path) -> Result<Vec<PathBuf>, JobError> {
    let mut places = WEIGHTS.iter().map(|name| folder.join(name));
    let Some(path) = places.find(|path| path.is_file()) else {
        let what = format!("{} holds none of {}", folder.display(), WEIGHTS.join(", "));
        return Err(JobError::bad_input(what));
    };
    if path.extension().is_some_and(|end| end == "json") {
        return shard_files(&path).map_err(JobError::bad_input);
    }
    Ok(vec![path])
}

impl Config {
    /// The sizes, where the model is one of ours.
    fn params(&self, future_tokens: usize) -> Result<Params, String> {
        self.check()?;
        let (dim, inner) = (self.hidden_size, self.intermediate_size);
        if dim == 0 || inner == 0 || self.num_hidden_layers == 0 {
            return Err(
                "hidden_size, intermediate_size and num_hidden_layers must be positive".to_owned(),
            );
        }
        let (multiple_of, ffn_dim_multiplier) = feed_forward(dim, inner);
        let params = Params {
            dim,
            n_layers: self.num_hidden_layers - 1 + future_tokens,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            vocab_size: self.vocab_size,
            multiple_of,
            ffn_dim_multiplier,
            norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta()?,
            n_future_tokens: future_tokens,
        };
        params.validate().map_err(|error| error.to_string())?;
        if params.ffn_dim() != inner {
            return Err(format!(
                "intermediate_size {inner} beside hidden_size {dim} is not supported"
            ));
        }
        match self.head_dim {
            Some(found) if found != params.head_dim() => Err(format!(
                "head_dim is {found}, and {dim} over {} heads is {}: heads of another width are not supported",
                params.n_heads,
                params.head_dim()
            )),
            _ => Ok(params),
        }
    }

    /// What `transformers` would compute, and the model here does not.
    fn check(&self) -> Result<(), String> {
        let refuse = |what: &str| Err(format!("{what} is not supported"));
        if self.model_type != "llama" {
            return refuse(&format!(
                "model_type {:?} (llama alone is)",
                self.model_type
            ));
        }
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu") {
            return refuse(&format!("hidden_act {act:?} (silu alone is)"));
        }
        for (key, is_set) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("tie_word_embeddings", self.tie_word_embeddings),
        ] {
            if is_set {
                return refuse(&format!("{key} true"));
            }
        }
        if self.quantization.is_some() {
            return refuse("quantization_config (quantized weights)");
        }
        for (key, rope) in [
            ("rope_scaling", &self.rope_scaling),
            ("rope_parameters", &self.rope_parameters),
        ] {
            if let Some(extra) = rope.as_ref().and_then(Rope::extra) {
                return refuse(&format!("{key} {extra} (the plain rotary table alone is)"));
            }
        }
        Ok(())
    }

    fn rope_theta(&self) -> Result<f64, String> {
        let inner = self.rope_parameters.as_ref().and_then(|rope| rope.theta);
        match (inner, self.rope_theta) {
            (Some(one), Some(other)) if (one - other).abs() > f64::EPSILON => Err(format!(
                "rope_theta is {other}, that of rope_parameters {one}"
            )),
            (Some(theta), _) | (None, Some(theta)) => Ok(theta),
            (None, None) => Ok(10_000.0),
        }
    }
}

/// `multiple_of` and `ffn_dim_multiplier` that give an inner width: Llama's where they do, else the width itself as the only
/// multiple that is reached.
fn feed_forward(dim: usize, inner: usize) -> (usize, f64) {
    let wanted = 8 * dim / 3;
    if wanted.next_multiple_of(256) == inner {
        (256, 1.0)
    } else if wanted <= inner {
        (inner, 1.0)
    } else {
        (inner, inner as f64 / wanted as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inner_width_is_met() {
        assert_eq!(feed_forward(4096, 11_008), (256, 1.0));
        // Sheared-LLaMA 1.3B and Llama 3 8B, one below what 256 would give and one above, and widths of no model.
        for (dim, inner) in [
            (2048, 5504),
            (4096, 14_336),
            (64, 3),
            (64, 169),
            (64, 170),
            (64, 171),
            (6, 1),
        ] {
            let (multiple_of, ffn_dim_multiplier) = feed_forward(dim, inner);
            let params = Params {
                dim,
                multiple_of,
                ffn_dim_multiplier,
                ..Params::micro_mtp(300)
            };
            assert_eq!(params.ffn_dim(), inner, "dim {dim}");
        }
    }
}

//! The bundle of a model in storage v2: which files it has, and that they agree with each other.
//!
//! `params.json`, the tensors of the safetensors header, the tokenizer, `meta_adapter.yaml` and `metadata.json` say the
//! same thing in five ways. [`complete`] writes what is missing and refuses what disagrees.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wmtp_artifacts::Digest;
use wmtp_job_kit::JobError;
use wmtp_model::Params;
use wmtp_records::jsonl;
use wmtp_tokens::Tokenizer;

use crate::folder::{self, Listing};
use crate::header::Header;

/// All tensors.
pub const MODEL: &str = "safetensors/model.safetensors";
/// Digests of the files beside it.
pub const SUMS: &str = "safetensors/SHA256SUMS";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer/tokenizer.json";
/// Sizes of the model in Meta's names.
pub const PARAMS: &str = "configs/params.json";
/// Sizes of the model in Hugging Face's names.
pub const ADAPTER: &str = "configs/meta_adapter.yaml";
/// What the bundle is, with a digest per file.
pub const METADATA: &str = "metadata.json";

/// Layout version of this release.
const VERSION: &str = "v2.0.0";
/// The rotary table is made for this many positions.
pub(crate) const MAX_POSITIONS: usize = 2048;

/// What is known about a bundle beside its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name of the model.
    pub model_name: String,
    /// Where it comes from.
    pub repo: String,
    /// Which state of it.
    pub revision: String,
    /// Attention heads, where neither `params.json` nor `meta_adapter.yaml` says it: shapes do not tell.
    pub num_heads: Option<usize>,
}

/// Where a model comes from that `create` made, and which state of it, but for the seed.
const SEEDED: (&str, &str) = ("wmtp", "seeded initialisation");

impl Origin {
    /// That of a model whose weights a seed determines.
    pub fn seeded(model_name: &str, seed: u64) -> Self {
        let (repo, revision) = SEEDED;
        Self {
            model_name: model_name.to_owned(),
            repo: repo.to_owned(),
            revision: format!("{revision} {seed}"),
            num_heads: None,
        }
    }
}

/// What a folder among the models is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A bundle, or meant as one.
    Bundle,
    /// A bundle that `create` makes again from its seed.
    Seeded,
    /// Its `metadata.json` says that the model is optional, and there are no weights.
    Placeholder,
}

/// Looks what a folder is, by its `metadata.json`.
///
/// # Errors
/// 65 when that is there and cannot be read.
pub fn standing(root: &Path) -> Result<Standing, JobError> {
    let path = root.join(METADATA);
    if !path.is_file() {
        return Ok(Standing::Bundle);
    }
    let found: Value = jsonl::read_json(&path)?;
    let (repo, revision) = SEEDED;
    let source = &found["source"];
    let is_seeded = source["repo"] == repo
        && source["revision"]
            .as_str()
            .is_some_and(|found| found.starts_with(revision));
    Ok(
        if found["status"] == "optional" && !root.join(MODEL).exists() {
            Standing::Placeholder
        } else if is_seeded {
            Standing::Seeded
        } else {
            Standing::Bundle
        },
    )
}

/// What readers of the artifact need without fetching it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Name of the model.
    pub model_name: String,
    /// SHA-256 of the tokenizer file.
    pub tokenizer_sha256: Digest,
    /// Number of elements of all tensors.
    pub n_params: u64,
    /// Prediction heads.
    pub n_future_tokens: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
}

/// `configs/meta_adapter.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Adapter {
    model_name: String,
    n_future_tokens: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    intermediate_size: usize,
    rope_theta: f64,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    vocab_size: usize,
    dtype: String,
    cache: AdapterCache,
}

/// What a port keeps between calls; here both are computed at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct AdapterCache {
    freqs_cis: bool,
    causal_mask: bool,
}

/// Checks the files of a bundle against each other and writes those that are missing.
///
/// # Errors
/// 65 names the first file or field that is missing, malformed or in disagreement; 76 a digest that differs.
pub fn complete(root: &Path, origin: &Origin) -> Result<Summary, JobError> {
    for file in [MODEL, TOKENIZER] {
        if !root.join(file).is_file() {
            return Err(
                JobError::bad_input(format!("{} is missing", root.join(file).display()))
                    .hint(format!("a bundle has at least {MODEL} and {TOKENIZER}")),
            );
        }
    }
    let header = Header::read(&root.join(MODEL))?;
    if header.tensors.contains_key("model.embed_tokens.weight") {
        return Err(bad(root, MODEL, "its tensors have Hugging Face's names").hint(
            "give the folder that they came in, with its config.json, to `sync-storage convert`",
        ));
    }
    let params = params(root, &header, origin.num_heads)?;
    check_tensors(&root.join(MODEL), &header, &params)?;
    check_tokenizer(&root.join(TOKENIZER), &params)?;
    let dtype = header
        .dtype()
        .ok_or_else(|| bad(root, MODEL, "its tensors are not all of one float type"))?;
    let adapter = adapter(origin, &params, dtype);
    let model_name = write_or_check_adapter(root, adapter)?;
    write_or_check_sums(root)?;
    write_or_check_metadata(root, &model_name, origin, &header, dtype)?;
    Ok(Summary {
        model_name,
        tokenizer_sha256: Digest::of_file(&root.join(TOKENIZER))?,
        n_params: header.num_elements(),
        n_future_tokens: params.n_future_tokens,
        vocab_size: params.vocab_size,
    })
}

fn bad(root: &Path, file: &str, what: impl std::fmt::Display) -> JobError {
    JobError::bad_input(format!("{}: {what}", root.join(file).display()))
}

/// `params.json`, or the only sizes that fit the tensors.
fn params(root: &Path, header: &Header, num_heads: Option<usize>) -> Result<Params, JobError> {
    let path = root.join(PARAMS);
    if path.is_file() {
        return Params::load(&path).map_err(JobError::bad_input);
    }
    let params = derived(root, header, num_heads)?;
    params.validate().map_err(JobError::bad_input)?;
    folder::create_parent(&path)?;
    params.save(&path).map_err(JobError::internal)?;
    Ok(params)
}

/// Sizes from the shapes. Head count, norm and rotary constants have no shape: the first comes from the adapter or
/// the caller, the others are Llama's.
fn derived(root: &Path, header: &Header, num_heads: Option<usize>) -> Result<Params, JobError> {
    let shape = |name: &str| -> Result<(usize, usize), JobError> {
        match header.tensors.get(name).map(|(_, shape)| shape.as_slice()) {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(other) => Err(bad(
                root,
                MODEL,
                format!("{name} has shape {other:?}, expected two sizes"),
            )),
            None => Err(bad(root, MODEL, format!("tensor {name} is missing"))),
        }
    };
    let blocks = |prefix: &str| {
        let of_block =
            |name: &String| name.starts_with(prefix) && name.ends_with(".attention.wq.weight");
        header.tensors.keys().filter(|name| of_block(name)).count()
    };
    let (vocab_size, dim) = shape("tok_embeddings.weight")?;
    let (key_rows, _) = shape("layers.0.attention.wk.weight")?;
    let (ffn_dim, _) = shape("layers.0.feed_forward.w1.weight")?;
    let n_heads = match num_heads {
        Some(heads) => heads,
        None => heads_of_adapter(root)?,
    };
    if dim == 0 || n_heads == 0 || !dim.is_multiple_of(n_heads) {
        let what = format!("dim {dim} does not split into {n_heads} heads");
        return Err(bad(root, MODEL, what));
    }
    let params = Params {
        dim,
        n_layers: blocks("layers.") + blocks("extra_heads."),
        n_heads,
        n_kv_heads: key_rows / (dim / n_heads),
        vocab_size,
        multiple_of: 256,
        ffn_dim_multiplier: 1.0,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        n_future_tokens: blocks("extra_heads.") + 1,
    };
    if params.ffn_dim() != ffn_dim {
        let what = format!("an inner width of {ffn_dim} does not follow from dim {dim}");
        return Err(bad(root, MODEL, what).hint(format!("write {PARAMS} by hand")));
    }
    Ok(params)
}

fn heads_of_adapter(root: &Path) -> Result<usize, JobError> {
    if let Some(adapter) = read_adapter(root)? {
        return Ok(adapter.num_attention_heads);
    }
    Err(bad(
        root,
        PARAMS,
        "missing, and shapes alone do not tell the number of attention heads",
    )
    .hint(format!("add {PARAMS}, {ADAPTER} or --heads")))
}

/// Every tensor that the sizes demand, in its shape, and no other; `rope.freqs` is tolerated.
fn check_tensors(path: &Path, header: &Header, params: &Params) -> Result<(), JobError> {
    let fail = |what: String| Err(JobError::bad_input(format!("{}: {what}", path.display())));
    params.validate().map_err(JobError::bad_input)?;
    let expected = params.tensor_shapes();
    for (name, shape) in &expected {
        match header.tensors.get(name) {
            None => return fail(format!("tensor {name} is missing; {PARAMS} demands it")),
            Some((_, found)) if found != shape => {
                return fail(format!(
                    "tensor {name} has shape {found:?}, {PARAMS} demands {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    let known = |name: &String| name == "rope.freqs" || expected.iter().any(|(one, _)| one == name);
    if let Some(stray) = header.tensors.keys().find(|name| !known(name)) {
        return fail(format!(
            "tensor {stray} has no place in a model of {PARAMS}"
        ));
    }
    Ok(())
}

/// The vocabulary of a tokenizer against that of the sizes.
pub(crate) fn check_tokenizer(path: &Path, params: &Params) -> Result<(), JobError> {
    let tokenizer = Tokenizer::load(path).map_err(JobError::bad_input)?;
    if tokenizer.vocab_size() == params.vocab_size {
        return Ok(());
    }
    Err(JobError::bad_input(format!(
        "{} has {} tokens, {PARAMS} says {}",
        path.display(),
        tokenizer.vocab_size(),
        params.vocab_size
    )))
}

fn adapter(origin: &Origin, params: &Params, dtype: &str) -> Adapter {
    Adapter {
        model_name: origin.model_name.clone(),
        n_future_tokens: params.n_future_tokens,
        hidden_size: params.dim,
        num_hidden_layers: params.n_layers,
        num_attention_heads: params.n_heads,
        num_key_value_heads: params.n_kv_heads,
        intermediate_size: params.ffn_dim(),
        rope_theta: params.rope_theta,
        max_position_embeddings: MAX_POSITIONS,
        rms_norm_eps: params.norm_eps,
        vocab_size: params.vocab_size,
        dtype: dtype.to_owned(),
        cache: AdapterCache {
            freqs_cis: false,
            causal_mask: false,
        },
    }
}

fn read_adapter(root: &Path) -> Result<Option<Adapter>, JobError> {
    let path = root.join(ADAPTER);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|error| JobError::from(error).context(path.display().to_string()))?;
    serde_saphyr::from_str(&text)
        .map(Some)
        .map_err(|error| bad(root, ADAPTER, error))
}

/// Returns the model's name: the adapter's own where there is one.
fn write_or_check_adapter(root: &Path, mut expected: Adapter) -> Result<String, JobError> {
    let Some(found) = read_adapter(root)? else {
        let text = serde_saphyr::to_string(&expected).map_err(JobError::internal)?;
        folder::write(&root.join(ADAPTER), text.as_bytes())?;
        return Ok(expected.model_name);
    };
    // Facts about a port, not about these files.
    expected.model_name.clone_from(&found.model_name);
    expected.max_position_embeddings = found.max_position_embeddings;
    expected.cache = found.cache.clone();
    let as_json = |adapter: &Adapter| serde_json::to_value(adapter).map_err(JobError::internal);
    let (found_fields, expected_fields) = (as_json(&found)?, as_json(&expected)?);
    let fields = expected_fields.as_object().into_iter().flatten();
    for (field, value) in fields {
        if found_fields[field] != *value {
            let what = format!(
                "{field} is {}, {PARAMS} and the tensors say {value}",
                found_fields[field]
            );
            return Err(bad(root, ADAPTER, what));
        }
    }
    Ok(found.model_name)
}

/// Digests of the files beside the model's.
fn write_or_check_sums(root: &Path) -> Result<(), JobError> {
    let folder = root.join("safetensors");
    let files = folder::files(&folder)?;
    let listing: Listing = folder::digests(&folder, &files)?;
    let path = root.join(SUMS);
    if path.is_file() {
        return folder::check_sums(&path, &listing);
    }
    folder::write(&path, folder::sums(&listing).as_bytes())
}

fn write_or_check_metadata(
    root: &Path,
    model_name: &str,
    origin: &Origin,
    header: &Header,
    dtype: &str,
) -> Result<(), JobError> {
    let digest = |file: &str| Digest::of_file(&root.join(file));
    let mut expected = json!({
        "model_name": model_name,
        "version": VERSION,
        "n_params": header.num_elements(),
        "format": "safetensors",
        "dtype": dtype,
        "files": {"checkpoint": MODEL, "tokenizer": TOKENIZER, "params": PARAMS, "adapter": ADAPTER},
        "sha256": {
            "checkpoint": digest(MODEL)?,
            "tokenizer": digest(TOKENIZER)?,
            "params": digest(PARAMS)?,
            "adapter": digest(ADAPTER)?,
        },
        "value_head": {"path": null, "stage1_checkpoint_id": null},
        "tokenizer_shared_with": null,
        "source": {"repo": origin.repo, "revision": origin.revision},
    });
    if let Some(source) = &header.source_dtype {
        expected["source_dtype"] = source.as_str().into();
    }
    let path = root.join(METADATA);
    if !path.is_file() {
        return Ok(jsonl::write_json(&path, &expected)?);
    }
    let found: Value = jsonl::read_json(&path)?;
    for field in ["model_name", "n_params", "format", "dtype"] {
        if found[field] != expected[field] {
            let what = format!(
                "{field} is {}, the other files say {}",
                found[field], expected[field]
            );
            return Err(bad(root, METADATA, what));
        }
    }
    check_listed(root, &found)
}

/// Files and digests that a given `metadata.json` names.
fn check_listed(root: &Path, metadata: &Value) -> Result<(), JobError> {
    for (role, file) in metadata["files"].as_object().into_iter().flatten() {
        let file = file
            .as_str()
            .filter(|file| !file.starts_with('/') && !file.split('/').any(|part| part == ".."))
            .ok_or_else(|| {
                bad(
                    root,
                    METADATA,
                    format!("files.{role} is no path inside the bundle"),
                )
            })?;
        if !root.join(file).is_file() {
            return Err(bad(
                root,
                METADATA,
                format!("files.{role}: {file} is missing"),
            ));
        }
        let found = Digest::of_file(&root.join(file))?;
        let said = &metadata["sha256"][role];
        if !said.is_null() && said.as_str() != Some(found.to_string().as_str()) {
            let what = format!(
                "{}: sha256.{role} is {said}, {file} has {found}",
                root.join(METADATA).display()
            );
            return Err(JobError::integrity(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wmtp_job_kit::Exit;
    use wmtp_model::{DType, Device, ParamStore};

    use super::*;

    /// A bundle as `create` makes it, small.
    fn bundle() -> (tempfile::TempDir, Params) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let tokenizer = Tokenizer::train(&["def f(a, b):\n    return a + b\n"; 4], 300).unwrap();
        tokenizer.save(&root.join(TOKENIZER)).unwrap();
        let params = Params {
            dim: 16,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: 2,
            vocab_size: tokenizer.vocab_size(),
            multiple_of: 256,
            ffn_dim_multiplier: 1.0,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            n_future_tokens: 2,
        };
        let store = ParamStore::init(&params, 1, DType::F32, &Device::Cpu).unwrap();
        folder::create_parent(&root.join(MODEL)).unwrap();
        store.save(&root.join(MODEL)).unwrap();
        folder::create_parent(&root.join(PARAMS)).unwrap();
        params.save(&root.join(PARAMS)).unwrap();
        (dir, params)
    }

    fn origin(num_heads: Option<usize>) -> Origin {
        Origin {
            model_name: "tiny".to_owned(),
            repo: "tests".to_owned(),
            revision: "1".to_owned(),
            num_heads,
        }
    }

    fn refusal(root: &Path) -> (Exit, String) {
        let error = complete(root, &origin(None)).unwrap_err();
        (error.exit(), error.to_string())
    }

    #[test]
    fn what_is_missing_is_written_and_agrees() {
        let (dir, params) = bundle();
        let summary = complete(dir.path(), &origin(None)).unwrap();
        assert_eq!(summary.n_params, params.num_params() as u64);
        assert_eq!(complete(dir.path(), &origin(None)).unwrap(), summary);
        for file in [SUMS, ADAPTER, METADATA] {
            assert!(dir.path().join(file).is_file(), "{file}");
        }
    }

    #[test]
    fn sizes_are_derived_from_shapes_and_the_number_of_heads() {
        let (dir, params) = bundle();
        std::fs::remove_file(dir.path().join(PARAMS)).unwrap();
        let (exit, message) = refusal(dir.path());
        assert_eq!(exit, Exit::BadInput);
        assert!(message.contains("number of attention heads"), "{message}");
        complete(dir.path(), &origin(Some(4))).unwrap();
        assert_eq!(Params::load(&dir.path().join(PARAMS)).unwrap(), params);
    }

    #[test]
    fn a_truncated_model_is_bad_input() {
        let (dir, _) = bundle();
        let path = dir.path().join(MODEL);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let (exit, message) = refusal(dir.path());
        assert_eq!(exit, Exit::BadInput);
        assert!(message.contains("truncated"), "{message}");
    }

    #[test]
    fn disagreements_are_named() {
        let (dir, mut params) = bundle();
        params.n_future_tokens = 1;
        params.save(&dir.path().join(PARAMS)).unwrap();
        let (exit, message) = refusal(dir.path());
        assert_eq!(exit, Exit::BadInput);
        assert!(message.contains("tensor "), "{message}");

        let (dir, _) = bundle();
        complete(dir.path(), &origin(None)).unwrap();
        let adapter = dir.path().join(ADAPTER);
        let text = std::fs::read_to_string(&adapter).unwrap();
        std::fs::write(&adapter, text.replace("hidden_size: 16", "hidden_size: 17")).unwrap();
        let (exit, message) = refusal(dir.path());
        assert_eq!(exit, Exit::BadInput);
        assert!(message.contains("hidden_size is 17"), "{message}");
    }

    #[test]
    fn a_digest_that_differs_is_an_integrity_failure() {
        let (dir, _) = bundle();
        complete(dir.path(), &origin(None)).unwrap();
        let path = dir.path().join(MODEL);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (exit, message) = refusal(dir.path());
        assert_eq!(exit, Exit::Integrity);
        assert!(message.contains("SHA256SUMS, line 1"), "{message}");
    }
}

//! A golden case on disk: manifest, weights, inputs and results, digests checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::{Error, Precision};

/// The layout this crate reads.
const SCHEMA: &str = "wmtp.parity/1";

/// The file of expected results.
pub(crate) const GOLDEN_FILE: &str = "golden.safetensors";

/// The file of the model's weights.
pub(crate) const WEIGHTS_FILE: &str = "weights.safetensors";

/// The file of what goes in.
pub(crate) const INPUTS_FILE: &str = "inputs.safetensors";

/// Numbers of one key, widened to f64 (exact for every stored type).
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
    /// Type of the tensor that held them; `None` for numbers that are made in f64 whatever the run's type.
    pub dtype: Option<DType>,
}

impl Values {
    /// Numbers of this shape that no tensor of the model held.
    pub fn new(shape: Vec<usize>, data: Vec<f64>) -> Self {
        Self {
            shape,
            data,
            dtype: None,
        }
    }

    /// Reads a tensor's values.
    pub fn of(tensor: &Tensor) -> candle_core::Result<Self> {
        Ok(Self {
            dtype: Some(tensor.dtype()),
            ..Self::statistics(tensor)?
        })
    }

    /// Reads statistics, which are kept in f64 whatever the run's type.
    pub(crate) fn statistics(tensor: &Tensor) -> candle_core::Result<Self> {
        let flat = tensor.detach().flatten_all()?.to_dtype(DType::F64)?;
        Ok(Self::new(tensor.dims().to_vec(), flat.to_vec1()?))
    }

    /// Numbers in one dimension.
    pub fn vector(data: Vec<f64>) -> Self {
        Self::new(vec![data.len()], data)
    }

    /// Whether no element is NaN or infinite.
    pub(crate) fn is_finite(&self) -> bool {
        self.data.iter().all(|x| x.is_finite())
    }

    /// The numbers as a tensor of the given element type.
    pub(crate) fn tensor(&self, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.data, self.shape.as_slice(), device)?.to_dtype(dtype)
    }

    /// Position of element `flat` in every dimension.
    pub fn index(&self, flat: usize) -> Vec<usize> {
        let mut rest = flat;
        let mut index: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|size| {
                let place = rest % size;
                rest /= size;
                place
            })
            .collect();
        index.reverse();
        index
    }
}

/// What a case exercises; the manifest says it, and a manifest that does not is a model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole training step of a model: stages 2 to 13.
    #[default]
    Model,
    /// A training step of adapters on a frozen base, and the merged model.
    Lora,
    /// Function vectors of fixed trials.
    Fv,
    /// Rotary tables.
    Rope,
    /// TD errors, advantages and token weights of plain vectors.
    Weighting,
    /// Excess loss and its weights from two models.
    Rho1,
    /// The same, and the training step of the policy under its continuous weights.
    Rho1Step,
    /// Schedule, clipping and optimizer on plain tensors.
    AdamW,
    /// Order of query and key rows, casts to half precision.
    Layout,
    /// Greedy decoding and the sampling filter.
    Generate,
    /// Text to ids and back.
    Tokenizer,
    /// The estimate of pass@k.
    PassK,
}

impl Kind {
    /// The crate that a case of this kind exercises.
    pub(crate) fn crate_name(self) -> &'static str {
        match self {
            Self::Model | Self::Lora | Self::Fv | Self::Rope | Self::Layout => "wmtp-model",
            Self::Weighting => "wmtp-weighting",
            Self::Rho1 | Self::Rho1Step | Self::AdamW => "wmtp-training",
            Self::Generate => "wmtp-decoding",
            Self::Tokenizer => "wmtp-tokens",
            Self::PassK => "wmtp-stats",
        }
    }
}

/// Constants of the optimizer of a model case.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Optimizer {
    pub(crate) lr: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
}

#[derive(Deserialize)]
struct Manifest {
    schema: String,
    case: String,
    #[serde(default)]
    kind: Kind,
    config: serde_json::Value,
    files: BTreeMap<String, String>,
    optimizer: Option<Optimizer>,
    #[serde(default)]
    noise_floor: BTreeMap<String, BTreeMap<String, f64>>,
    /// Weights that get no gradient.
    grad_absent: Option<BTreeSet<String>>,
}

/// A golden case in memory.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of the case.
    pub name: String,
    /// What it exercises.
    pub kind: Kind,
    /// SHA-256 of `golden.safetensors`.
    pub golden_sha256: String,
    /// The expected results.
    pub golden: BTreeMap<String, Values>,
    pub(crate) folder: PathBuf,
    pub(crate) weights: BTreeMap<String, Values>,
    pub(crate) inputs: BTreeMap<String, Values>,
    config: serde_json::Value,
    optimizer: Option<Optimizer>,
    noise_floor: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Case {
    /// Reads a case and checks the digest of each file that its manifest lists.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("manifest.json");
        let manifest: Manifest =
            serde_json::from_slice(&read(&path)?).map_err(|e| golden_error(&path, e))?;
        if manifest.schema != SCHEMA {
            return Err(golden_error(
                &path,
                format!("schema {}, this program reads {SCHEMA}", manifest.schema),
            ));
        }
        let mut tensors = BTreeMap::new();
        for (name, digest) in &manifest.files {
            let path = folder.join(name);
            let bytes = read(&path)?;
            check_digest(&path, &bytes, digest)?;
            if name.ends_with(".safetensors") {
                tensors.insert(name.as_str(), parse(&path, &bytes)?);
            }
        }
        let golden = tensors
            .remove(GOLDEN_FILE)
            .ok_or_else(|| golden_error(&path, format!("{GOLDEN_FILE} is not listed")))?;
        let weights = tensors.remove(WEIGHTS_FILE).unwrap_or_default();
        if let Some(absent) = &manifest.grad_absent {
            check_gradients(absent, &weights, &golden).map_err(|e| golden_error(&path, e))?;
        }
        Ok(Self {
            golden,
            golden_sha256: manifest.files[GOLDEN_FILE].clone(),
            weights,
            inputs: tensors.remove(INPUTS_FILE).unwrap_or_default(),
            folder: folder.to_owned(),
            name: manifest.case,
            kind: manifest.kind,
            config: manifest.config,
            optimizer: manifest.optimizer,
            noise_floor: manifest.noise_floor,
        })
    }

    /// The manifest's `config`, read as what this kind of case needs.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.config).map_err(|e| self.bad(format!("config: {e}")))
    }

    pub(crate) fn optimizer(&self) -> Result<Optimizer, Error> {
        self.optimizer
            .ok_or_else(|| self.bad("the manifest has no optimizer"))
    }

    /// The reference's own relative distance at a precision, where the manifest states one.
    pub fn noise_floor(&self, key: &str, precision: Precision) -> Option<f64> {
        self.noise_floor.get(key)?.get(precision.name()).copied()
    }

    pub(crate) fn input(&self, key: &str) -> Result<&Values, Error> {
        self.inputs
            .get(key)
            .ok_or_else(|| self.bad(format!("input {key} is missing")))
    }

    /// An input of this shape.
    pub(crate) fn input_of(&self, key: &str, shape: &[usize]) -> Result<&Values, Error> {
        let input = self.input(key)?;
        self.demand_shape("input", key, input, shape)?;
        Ok(input)
    }

    /// An input of whole numbers, at least one, each from 0 to below `bound`.
    pub(crate) fn ids(&self, key: &str, bound: usize) -> Result<Vec<u32>, Error> {
        let input = self.input(key)?;
        let is_id = |x: &f64| *x >= 0.0 && *x < bound as f64 && x.fract() == 0.0;
        if let Some(other) = input.data.iter().find(|x| !is_id(x)) {
            return Err(self.bad(format!(
                "input {key} holds {other}, expected whole numbers below {bound}"
            )));
        }
        if input.data.is_empty() {
            return Err(self.bad(format!("input {key} is empty")));
        }
        Ok(input.data.iter().map(|id| *id as u32).collect())
    }

    pub(crate) fn weight(&self, key: &str) -> Result<&Values, Error> {
        self.weights
            .get(key)
            .ok_or_else(|| self.bad(format!("weight {key} is missing")))
    }

    /// A weight of the shape that the configuration gives it.
    pub(crate) fn weight_of(&self, key: &str, shape: &[usize]) -> Result<&Values, Error> {
        let weight = self.weight(key)?;
        self.demand_shape("weight", key, weight, shape)?;
        Ok(weight)
    }

    fn demand_shape(
        &self,
        what: &str,
        key: &str,
        values: &Values,
        shape: &[usize],
    ) -> Result<(), Error> {
        if values.shape == shape {
            return Ok(());
        }
        Err(self.bad(format!(
            "{what} {key} has shape {:?}, expected {shape:?}",
            values.shape
        )))
    }

    /// An error that says what is wrong with this case.
    pub(crate) fn bad(&self, reason: impl std::fmt::Display) -> Error {
        golden_error(&self.folder, reason)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| golden_error(path, e))
}

fn check_digest(path: &Path, bytes: &[u8], expected: &str) -> Result<(), Error> {
    let digest = hex(&Sha256::digest(bytes));
    if digest == expected {
        return Ok(());
    }
    Err(golden_error(
        path,
        format!("SHA-256 is {digest}, the manifest says {expected}"),
    ))
}

/// Every weight either has a gradient or is said to have none. A golden that lost one would else agree with a subject that
/// lost it too.
fn check_gradients(
    absent: &BTreeSet<String>,
    weights: &BTreeMap<String, Values>,
    golden: &BTreeMap<String, Values>,
) -> Result<(), String> {
    if let Some(name) = absent.iter().find(|name| !weights.contains_key(*name)) {
        return Err(format!("grad_absent names {name}, which is no weight"));
    }
    for name in weights.keys() {
        match (
            golden.contains_key(&format!("grad.{name}")),
            absent.contains(name),
        ) {
            (true, true) => {
                return Err(format!("grad_absent names {name}, which has a gradient"));
            }
            (false, false) => {
                return Err(format!(
                    "{name} has no gradient, and grad_absent does not say so"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn golden_error(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Golden {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Values>, Error> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| golden_error(path, e))?;
    let mut all = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let (dtype, values) = match view.dtype() {
            Dtype::F64 => (DType::F64, numbers(data, f64::from_le_bytes)),
            Dtype::F32 => (DType::F32, numbers(data, |b| f32::from_le_bytes(b).into())),
            Dtype::I64 => (DType::I64, numbers(data, |b| i64::from_le_bytes(b) as f64)),
            Dtype::I32 => (DType::I32, numbers(data, |b| i32::from_le_bytes(b).into())),
            Dtype::U8 | Dtype::BOOL => (DType::U8, numbers(data, |[b]| b.into())),
            other => return Err(golden_error(path, format!("{name} is stored as {other:?}"))),
        };
        let values = Values {
            dtype: Some(dtype),
            ..Values::new(view.shape().to_vec(), values)
        };
        all.insert(name, values);
    }
    Ok(all)
}

/// Numbers of `N` bytes each, little-endian.
fn numbers<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks()
        .0
        .iter()
        .map(|bytes| read(*bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_position_becomes_one_index_per_dimension() {
        let values = Values::new(vec![2, 3, 4], vec![0.0; 24]);
        assert_eq!(values.index(17), [1, 1, 1]);
    }

    #[test]
    fn a_folder_without_a_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Case::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
    }
}

//! A golden case on disk: manifest, weights, inputs and results, digests checked.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use wmtp_model::Params;

use crate::{Error, Precision};

/// The layout this crate reads.
const SCHEMA: &str = "wmtp.parity/1";

/// Numbers of one key, widened to f64 (exact for every stored type).
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Values {
    /// Reads a tensor's values.
    pub fn of(tensor: &Tensor) -> candle_core::Result<Self> {
        let flat = tensor.detach().flatten_all()?.to_dtype(DType::F64)?;
        Ok(Self {
            shape: tensor.dims().to_vec(),
            data: flat.to_vec1()?,
        })
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

/// The model and weighting settings of a case.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    pub(crate) vocab: usize,
    pub(crate) dim: usize,
    pub(crate) ffn: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_future: usize,
    pub(crate) eps: f64,
    pub(crate) theta: f64,
    pub(crate) gamma: f64,
    pub(crate) lam: f64,
    pub(crate) temp: f64,
    pub(crate) w_min: f64,
    pub(crate) w_max: f64,
}

impl Config {
    /// Our configuration of the same model. A multiple equal to the width itself rounds to it whenever it
    /// is not below the unrounded width; [`Case::load`] checks that the result is the width stated.
    pub fn params(&self) -> Params {
        Params {
            dim: self.dim,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv,
            vocab_size: self.vocab,
            multiple_of: self.ffn,
            ffn_dim_multiplier: 1.0,
            norm_eps: self.eps,
            rope_theta: self.theta,
            n_future_tokens: self.n_future,
        }
    }
}

#[derive(Deserialize)]
struct Manifest {
    schema: String,
    case: String,
    config: Config,
    files: BTreeMap<String, String>,
    noise_floor: BTreeMap<String, BTreeMap<String, f64>>,
    grad_absent: Vec<String>,
}

/// A golden case in memory.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of the case.
    pub name: String,
    /// SHA-256 of `golden.safetensors`.
    pub golden_sha256: String,
    /// Model and weighting settings.
    pub config: Config,
    /// Parameters that must receive no gradient.
    pub grad_absent: Vec<String>,
    /// The expected results.
    pub golden: BTreeMap<String, Values>,
    pub(crate) weights: BTreeMap<String, Values>,
    pub(crate) inputs: BTreeMap<String, Values>,
    noise_floor: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Case {
    /// Reads a case and checks the digest of each of its files.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("manifest.json");
        let bytes = std::fs::read(&path).map_err(|e| golden_error(&path, e))?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| golden_error(&path, e))?;
        if manifest.schema != SCHEMA {
            return Err(golden_error(
                &path,
                format!("schema {}, this program reads {SCHEMA}", manifest.schema),
            ));
        }
        let width = manifest.config.params().ffn_dim();
        if width != manifest.config.ffn {
            return Err(golden_error(
                &path,
                format!(
                    "feed-forward width {} cannot be configured",
                    manifest.config.ffn
                ),
            ));
        }
        let read = |name: &str| -> Result<(BTreeMap<String, Values>, String), Error> {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(|e| golden_error(&path, e))?;
            let digest = hex(&Sha256::digest(&bytes));
            match manifest.files.get(name) {
                Some(expected) if *expected == digest => Ok((parse(&path, &bytes)?, digest)),
                Some(expected) => Err(golden_error(
                    &path,
                    format!("SHA-256 is {digest}, the manifest says {expected}"),
                )),
                None => Err(golden_error(&path, "not listed in the manifest")),
            }
        };
        let (golden, golden_sha256) = read("golden.safetensors")?;
        Ok(Self {
            weights: read("weights.safetensors")?.0,
            inputs: read("inputs.safetensors")?.0,
            golden,
            golden_sha256,
            name: manifest.case,
            config: manifest.config,
            grad_absent: manifest.grad_absent,
            noise_floor: manifest.noise_floor,
        })
    }

    /// The reference's own relative distance at a precision, where the manifest states one.
    pub fn noise_floor(&self, key: &str, precision: Precision) -> Option<f64> {
        self.noise_floor.get(key)?.get(precision.name()).copied()
    }

    pub(crate) fn input(&self, key: &str) -> Result<&Values, Error> {
        self.inputs
            .get(key)
            .ok_or_else(|| self.missing("input", key))
    }

    pub(crate) fn weight(&self, key: &str, dtype: DType) -> Result<Tensor, Error> {
        let values = self
            .weights
            .get(key)
            .ok_or_else(|| self.missing("weight", key))?;
        Ok(
            Tensor::from_slice(&values.data, values.shape.as_slice(), &Device::Cpu)?
                .to_dtype(dtype)?,
        )
    }

    fn missing(&self, kind: &str, key: &str) -> Error {
        Error::Golden {
            path: self.name.clone(),
            reason: format!("{kind} {key} is missing"),
        }
    }
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
        let values = match view.dtype() {
            Dtype::F64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b))
                .collect(),
            Dtype::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f64::from(f32::from_le_bytes(*b)))
                .collect(),
            Dtype::I64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as f64)
                .collect(),
            Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
            other => return Err(golden_error(path, format!("{name} is stored as {other:?}"))),
        };
        all.insert(
            name,
            Values {
                shape: view.shape().to_vec(),
                data: values,
            },
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_position_becomes_one_index_per_dimension() {
        let values = Values {
            shape: vec![2, 3, 4],
            data: vec![0.0; 24],
        };
        assert_eq!(values.index(17), [1, 1, 1]);
    }

    #[test]
    fn a_folder_without_a_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Case::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
    }
}

//! Ordered, named, trainable parameters: seeded creation, strict loading, deterministic saving.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::shards::{self, Wanted, is_narrower};
use crate::tensor_file::{self, Planned};
use crate::value::head_shapes;
use crate::{Error, HeadKind, LoraSettings, Params, Result};

/// Meta's files may carry the rotary table; it is computed here and dropped.
const TOLERATED: &str = "rope.freqs";

/// Parameters in canonical order. Every reduction and file write follows this order.
#[derive(Debug, Clone)]
pub struct ParamStore {
    entries: Vec<(String, Var)>,
    index: BTreeMap<String, usize>,
    dtype: DType,
    device: Device,
}

impl ParamStore {
    /// Fresh weights: normal with standard deviation 1/√fan-in (LeCun 1998, section 4.6), the projections that
    /// write to the residual stream (`wo`, `w2`) divided by √(2·depth) besides (GPT-2, section 2.3), norms 1.
    /// Each tensor draws from its own stream, so another tensor more or less shifts none.
    ///
    /// At a width of 4,096 this is 0.016, near the usual fixed 0.02; at a width of 64 it is 0.125.
    pub fn init(params: &Params, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let depth = params.num_trunk_blocks() + 1;
        let residual = (2.0 * depth as f64).sqrt();
        let tensors = params.tensor_shapes().into_iter().map(|(name, shape)| {
            let values = match shape[..] {
                [len] => vec![1.0; len],
                [..] if name.ends_with("wo.weight") || name.ends_with("w2.weight") => {
                    normal(seed, &name, &shape, fan_in_std(&shape) / residual)
                }
                [..] => normal(seed, &name, &shape, fan_in_std(&shape)),
            };
            Ok((name, tensor(values, &shape, dtype, device)?))
        });
        Self::from_tensors(tensors.collect::<Result<_>>()?)
    }

    /// Reads the weights of a whole model: a safetensors file, or the shards of `path.index.json` where only that
    /// is there. Names and shapes must be exactly those of `params`; stored f16, bf16, f32 or f64 values are
    /// converted to `dtype`.
    pub fn load(path: &Path, params: &Params, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_tensors(Self::read(path, params, &[], dtype, device)?)
    }

    /// [`Self::load`] for the frozen base of adapters: what their operations read keeps the type of the file where that
    /// is smaller than `dtype`, until they widen it. That changes no number, only memory.
    pub fn load_adapted(
        path: &Path,
        params: &Params,
        lora: &LoraSettings,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tensors = Self::read(path, params, &lora.widened(params), dtype, device)?;
        Self::from_frozen(tensors, dtype)
    }

    /// Copies embeddings, trunk blocks and norm of a base model, in the types that they are kept in: the start of a value
    /// model.
    pub fn value_trunk_from(params: &Params, base: &Self) -> Result<Self> {
        let copy = |name: String| {
            let tensor = base.require(&name)?.as_detached_tensor();
            Ok((name, tensor))
        };
        let names = params.value_trunk_shapes().into_iter();
        let tensors: Result<Vec<_>> = names.map(|(name, _)| copy(name)).collect();
        Self::from_frozen(tensors?, base.dtype)
    }

    /// A fresh value head whose output is `bias` everywhere: its last layer has zero weights.
    pub fn init_value_head(
        kind: HeadKind,
        params: &Params,
        seed: u64,
        bias: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shapes = head_shapes(kind, params.dim);
        let last_weight = shapes.len() - 2;
        let tensors = shapes.into_iter().enumerate().map(|(i, (name, shape))| {
            let values = match i {
                i if i == last_weight + 1 => vec![bias; shape[0]],
                i if i == last_weight || shape.len() == 1 => vec![0.0; shape.iter().product()],
                _ => normal(seed, &name, &shape, fan_in_std(&shape)),
            };
            Ok((name, tensor(values, &shape, dtype, device)?))
        });
        Self::from_tensors(tensors.collect::<Result<_>>()?)
    }

    /// The same parameters on a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let there = self.entries.iter().map(|(name, var)| {
            let tensor = var.as_tensor().to_device(device)?;
            Ok((name.clone(), tensor))
        });
        Self::from_frozen(there.collect::<Result<_>>()?, self.dtype)
    }

    /// Copies tensors into trainable variables, keeping their order.
    pub fn from_tensors(tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let dtype = first_of(&tensors)?.dtype();
        let other = tensors.iter().find(|(_, tensor)| tensor.dtype() != dtype);
        if let Some((name, tensor)) = other {
            return Err(Error::Shape(format!(
                "tensor {name} is {:?}, the first one {dtype:?}",
                tensor.dtype()
            )));
        }
        Self::from_frozen(tensors, dtype)
    }

    /// Copies the tensors of a base that stays frozen under adapters, see [`Self::load_adapted`]: each is of `dtype`, or
    /// of a smaller type.
    pub fn from_frozen(tensors: Vec<(String, Tensor)>, dtype: DType) -> Result<Self> {
        let device = first_of(&tensors)?.device().clone();
        let mut index = BTreeMap::new();
        let mut entries = Vec::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let found = tensor.dtype();
            if found != dtype && !is_narrower(found, dtype) {
                return Err(Error::Shape(format!(
                    "tensor {name} is {found:?}, which the store's {dtype:?} does not hold"
                )));
            }
            if index.insert(name.clone(), entries.len()).is_some() {
                return Err(Error::Shape(format!("tensor {name} appears twice")));
            }
            entries.push((name, Var::from_tensor(&tensor)?));
        }
        Ok(Self {
            entries,
            index,
            dtype,
            device,
        })
    }

    /// Writes safetensors of the store's type; the same values give the same bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_with(path, None)
    }

    /// [`Self::save`] with entries for the file's header.
    pub(crate) fn save_with(
        &self,
        path: &Path,
        header: Option<HashMap<String, String>>,
    ) -> Result<()> {
        let planned = self.entries.iter().map(|(name, var)| Planned {
            name: name.clone(),
            shape: var.dims().to_vec(),
            source: var,
        });
        let wide = |var: &&Var| Ok(var.as_detached_tensor().to_dtype(self.dtype)?);
        tensor_file::write(path, self.dtype, header, planned.collect(), wide)
    }

    /// Names and variables in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// One variable by name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.index.get(name).map(|i| &self.entries[*i].1)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor; never true for a store that was built.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of scalars.
    pub fn num_elements(&self) -> usize {
        self.entries.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Element type of the model; tensors that stay frozen under adapters may be kept in a smaller one.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device of all tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn require(&self, name: &str) -> Result<&Var> {
        self.get(name).ok_or_else(|| Error::MissingTensor {
            origin: "parameter store".to_owned(),
            name: name.to_owned(),
        })
    }

    /// A tensor in the store's type, without a graph.
    pub(crate) fn wide(&self, name: &str) -> Result<Tensor> {
        let tensor = self.require(name)?.as_detached_tensor();
        Ok(tensor.to_dtype(self.dtype)?)
    }

    fn read(
        path: &Path,
        params: &Params,
        kept: &[String],
        dtype: DType,
        device: &Device,
    ) -> Result<Vec<(String, Tensor)>> {
        let wanted = Wanted {
            shapes: &params.tensor_shapes(),
            tolerated: &[TOLERATED.to_owned()],
            kept,
            dtype,
            device,
        };
        shards::read(path, &wanted)
    }
}

fn first_of(tensors: &[(String, Tensor)]) -> Result<&Tensor> {
    let none = || Error::Shape("a parameter store needs at least one tensor".to_owned());
    tensors.first().map(|(_, first)| first).ok_or_else(none)
}

fn tensor(values: Vec<f64>, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
}

/// 1/√fan-in of a matrix stored `[out, in]`; for embeddings `[v, d]` that is 1/√d.
fn fan_in_std(shape: &[usize]) -> f64 {
    1.0 / (shape[shape.len() - 1] as f64).sqrt()
}

/// Normal values from the stream of one tensor (Box and Muller 1958).
fn normal(seed: u64, name: &str, shape: &[usize], std: f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name));
    let count: usize = shape.iter().product();
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        values.extend([std * radius * cos, std * radius * sin]);
    }
    values.truncate(count);
    values
}

/// Uniform values in ±bound from the stream of one tensor.
pub(crate) fn uniform(seed: u64, name: &str, count: usize, bound: f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name));
    (0..count)
        .map(|_| bound * (2.0 * rng.random::<f64>() - 1.0))
        .collect()
}

/// FNV-1a, 64 bits: a stable number for a stream name.
pub(crate) fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::Dtype;

    use super::*;
    use crate::LoraTarget;

    fn store(seed: u64) -> ParamStore {
        ParamStore::init(&Params::small(), seed, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_file_and_another_seed_another() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |seed: u64, name: &str| {
            let path = dir.path().join(name);
            store(seed).save(&path).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(bytes(42, "a"), bytes(42, "b"));
        assert_ne!(bytes(42, "a"), bytes(43, "c"));
    }

    #[test]
    fn a_file_has_the_type_and_the_bits_of_its_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for (dtype, stored) in [
            (DType::F64, Dtype::F64),
            (DType::F32, Dtype::F32),
            (DType::BF16, Dtype::BF16),
            (DType::F16, Dtype::F16),
        ] {
            let saved = ParamStore::init(&Params::small(), 7, dtype, &Device::Cpu).unwrap();
            saved.save(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert!(file.tensors().iter().all(|(_, one)| one.dtype() == stored));
            let loaded = ParamStore::load(&path, &Params::small(), dtype, &Device::Cpu).unwrap();
            for ((_, saved), (name, loaded)) in saved.iter().zip(loaded.iter()) {
                let values = |var: &Var| -> Vec<f64> {
                    let wide = var.to_dtype(DType::F64).unwrap();
                    wide.flatten_all().unwrap().to_vec1().unwrap()
                };
                assert_eq!(values(loaded), values(saved), "{name}");
            }
        }
    }

    #[test]
    fn a_saved_store_loads_with_equal_values_in_canonical_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let saved = store(7);
        saved.save(&path).unwrap();
        let loaded = ParamStore::load(&path, &Params::small(), DType::F32, &Device::Cpu).unwrap();
        let names: Vec<_> = Params::small()
            .tensor_shapes()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            loaded
                .iter()
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>(),
            names
        );
        for ((_, a), (_, b)) in saved.iter().zip(loaded.iter()) {
            let flat = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(a), flat(b));
        }
        assert_eq!(loaded.num_elements(), Params::small().num_params());
    }

    #[test]
    fn fresh_matrices_have_the_stated_spread_and_norms_are_one() {
        let store =
            ParamStore::init(&Params::micro_mtp(512), 42, DType::F64, &Device::Cpu).unwrap();
        let std = |name: &str| {
            let values = store
                .get(name)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap();
            (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
        };
        // The micro model: dim 64, feed-forward 192, 7 blocks on the way to head 1.
        let close = |name: &str, expected: f64| {
            assert!(
                (std(name) / expected - 1.0).abs() < 0.02,
                "{name} spreads by {}, not {expected}",
                std(name)
            );
        };
        close("tok_embeddings.weight", 0.125);
        close("layers.0.feed_forward.w1.weight", 0.125);
        close("layers.0.attention.wo.weight", 0.125 / 14f64.sqrt());
        close(
            "layers.0.feed_forward.w2.weight",
            1.0 / (192.0 * 14.0f64).sqrt(),
        );
        assert!((std("norm.weight") - 1.0).abs() < 1e-12);
    }

    #[test]
    fn under_adapters_the_tensors_of_their_operations_keep_the_type_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let lora = LoraSettings {
            r: 2,
            alpha: 4.0,
            targets: vec![LoraTarget::Wv, LoraTarget::W2],
        };
        let read = [
            "attention_norm.weight",
            "wq.weight",
            "wk.weight",
            "wv.weight",
            "ffn_norm.weight",
            "w1.weight",
            "w2.weight",
            "w3.weight",
        ];
        let bytes = |store: &ParamStore, is_read: bool| -> usize {
            let of = |(_, var): (&str, &Var)| var.elem_count() * var.dtype().size_in_bytes();
            let tensors = store.iter();
            tensors
                .filter(|(name, _)| read.iter().any(|one| name.ends_with(one)) == is_read)
                .map(of)
                .sum()
        };
        for (stored, dtype, divisor) in [
            (DType::BF16, DType::F32, 2),
            (DType::F16, DType::F32, 2),
            (DType::F32, DType::F64, 2),
            (DType::BF16, DType::F64, 4),
            (DType::F32, DType::F32, 1),
            (DType::F64, DType::F32, 1),
            (DType::BF16, DType::F16, 1),
        ] {
            let saved = ParamStore::init(&Params::small(), 7, stored, &Device::Cpu).unwrap();
            saved.save(&path).unwrap();
            let wide = ParamStore::load(&path, &Params::small(), dtype, &Device::Cpu).unwrap();
            let kept =
                ParamStore::load_adapted(&path, &Params::small(), &lora, dtype, &Device::Cpu)
                    .unwrap();
            let of_matrices = bytes(&wide, true);
            assert!(of_matrices > 0 && bytes(&wide, false) > 0);
            assert_eq!(
                (bytes(&kept, true), bytes(&kept, false)),
                (of_matrices / divisor, bytes(&wide, false)),
                "{stored:?} under {dtype:?}"
            );
            // What it writes is the model, whatever it keeps.
            let written = |store: &ParamStore| {
                store.save(&path).unwrap();
                std::fs::read(&path).unwrap()
            };
            assert_eq!(written(&kept), written(&wide), "{stored:?} under {dtype:?}");
            assert_eq!(kept.dtype(), dtype);
        }
    }

    #[test]
    fn a_store_holds_its_type_and_smaller_ones_only_where_it_stays_frozen() {
        let tensor = |name: &str, dtype: DType| {
            let tensor = Tensor::zeros(3, dtype, &Device::Cpu).unwrap();
            (name.to_owned(), tensor)
        };
        let mixed = || vec![tensor("a", DType::F32), tensor("b", DType::BF16)];
        let refusal = |made: Result<ParamStore>| made.unwrap_err().to_string();
        assert!(ParamStore::from_frozen(mixed(), DType::F32).is_ok());
        assert!(refusal(ParamStore::from_tensors(mixed())).contains("tensor b is BF16"));
        let larger = ParamStore::from_frozen(mixed(), DType::BF16);
        assert!(refusal(larger).contains("tensor a is F32"));
        let other = vec![tensor("a", DType::F16)];
        assert!(refusal(ParamStore::from_frozen(other, DType::BF16)).contains("F16"));
    }

    #[test]
    fn a_truncated_file_is_corrupt_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        store(1).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let error =
            ParamStore::load(&path, &Params::small(), DType::F32, &Device::Cpu).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { .. })
                && error.to_string().contains("model.safetensors")
        );
    }

    #[test]
    fn missing_unknown_misshapen_and_non_finite_tensors_are_named() {
        type Tensors = Vec<(String, Tensor)>;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let load =
            || ParamStore::load(&path, &Params::small(), DType::F32, &Device::Cpu).unwrap_err();
        let with = |change: &dyn Fn(&mut Tensors)| {
            let mut tensors: Tensors = store(1)
                .iter()
                .map(|(n, v)| (n.to_owned(), v.as_detached_tensor()))
                .collect();
            change(&mut tensors);
            ParamStore::from_tensors(tensors)
                .unwrap()
                .save(&path)
                .unwrap();
        };
        with(&|tensors| drop(tensors.remove(0)));
        assert!(
            matches!(load(), Error::MissingTensor { name, .. } if name == "tok_embeddings.weight")
        );
        with(&|tensors| tensors[0].0 = "tok_embedding.weight".to_owned());
        assert!(
            matches!(load(), Error::UnexpectedTensor { name, .. } if name == "tok_embedding.weight")
        );
        with(&|tensors| tensors[0].1 = tensors[0].1.t().unwrap().contiguous().unwrap());
        assert!(matches!(load(), Error::TensorShape { expected, .. } if expected == [23, 16]));
        with(&|tensors| tensors[0].1 = tensors[0].1.affine(f64::NAN, 0.0).unwrap());
        assert!(matches!(load(), Error::NotFinite { .. }));
    }

    #[test]
    fn a_value_trunk_copies_the_base_and_drops_its_heads() {
        let base = store(3);
        let trunk = ParamStore::value_trunk_from(&Params::small(), &base).unwrap();
        assert_eq!(trunk.len(), 2 + 2 * 9);
        assert!(
            trunk.get("layers.2.attention.wq.weight").is_none()
                && trunk.get("output.weight").is_none()
        );
        let name = "layers.1.attention.wq.weight";
        trunk
            .get(name)
            .unwrap()
            .set(&base.get(name).unwrap().zeros_like().unwrap())
            .unwrap();
        let sum = base
            .get(name)
            .unwrap()
            .abs()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(sum > 0.0, "the copy shares no storage with its base");
    }
}

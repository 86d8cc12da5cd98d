//! Low-rank adapters (Hu et al. 2021): `h = x·Wᵀ + (α/r)·(x·Aᵀ)·Bᵀ` with W frozen (spec 1.12).
//!
//! In: a base model and which of its matrices to adapt, in trunk and heads alike. Out: the adapters as trainable
//! parameters, their strict file, and the merged weights `W + (α/r)·B·A`. How they are computed: [`ops`].

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::{self, Tracking};
use crate::ops::{LowRank, Slot};
use crate::params;
use crate::shards::{self, Wanted};
use crate::store::{fnv1a, uniform};
use crate::tensor_file::TensorFile;
use crate::{Error, ParamStore, Params, Result};

/// Key of the settings in the header of an adapter file.
const HEADER: &str = "lora";

/// Where an error says that a tensor comes from.
const ORIGIN: &str = "adapters";

/// A kind of matrix that adapters can be put on, by Meta's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraTarget {
    /// Queries.
    Wq,
    /// Keys.
    Wk,
    /// Values.
    Wv,
    /// Output of attention.
    Wo,
    /// Gate of the feed-forward half.
    W1,
    /// Its way down.
    W2,
    /// Its way up.
    W3,
}

impl LoraTarget {
    /// Every target.
    pub const ALL: [Self; 7] = [
        Self::Wq,
        Self::Wk,
        Self::Wv,
        Self::Wo,
        Self::W1,
        Self::W2,
        Self::W3,
    ];

    /// Name of the matrix within its block.
    pub(crate) fn matrix(self) -> &'static str {
        match self {
            Self::Wq => params::QKV[0],
            Self::Wk => params::QKV[1],
            Self::Wv => params::QKV[2],
            Self::Wo => params::WO,
            Self::W1 => params::GATE_UP[0],
            Self::W2 => params::W2,
            Self::W3 => params::GATE_UP[1],
        }
    }
}

/// What an adapter file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank r of every adapter, at least 1.
    pub r: usize,
    /// α; the adapters' product counts α/r.
    pub alpha: f64,
    /// Which matrices of every block carry one.
    pub targets: Vec<LoraTarget>,
}

impl LoraSettings {
    /// Checks what no layer could repair later.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason: &str| Err(Error::Lora(reason.to_owned()));
        if self.r == 0 {
            return fail("r is 0, expected at least 1");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return fail("alpha is not a positive number");
        }
        if self.targets.is_empty() {
            return fail("no target is named");
        }
        if !self.targets.is_sorted_by(|a, b| a < b) {
            return fail("targets are named once each, in the order wq wk wv wo w1 w2 w3");
        }
        Ok(())
    }

    /// Factor s = α/r of the adapters' product.
    pub fn scale(&self) -> f64 {
        self.alpha / self.r as f64
    }

    /// All adapter tensors with their shapes, in the order of the model's tensors: A `[r, in]` and B `[out, r]`
    /// of each adapted matrix `[out, in]`.
    pub fn tensor_shapes(&self, params: &Params) -> Vec<(String, Vec<usize>)> {
        self.shapes_upon(params.tensor_shapes())
    }

    /// [`Self::tensor_shapes`] upon these tensors.
    fn shapes_upon(&self, tensors: Vec<(String, Vec<usize>)>) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::new();
        for (name, shape) in tensors {
            let Some(matrix) = name.strip_suffix(".weight") else {
                continue;
            };
            if let [outputs, inputs] = shape[..]
                && self.targets.iter().any(|t| matrix.ends_with(t.matrix()))
            {
                let [a, b] = adapter_names(matrix);
                shapes.push((a, vec![self.r, inputs]));
                shapes.push((b, vec![outputs, self.r]));
            }
        }
        shapes
    }

    /// Names of the base's tensors that may be kept in a type smaller than the model's: the operations that read them
    /// have adapters, and widen them at each call.
    pub fn widened(&self, params: &Params) -> Vec<String> {
        let read = model::read_with(&self.targets);
        let names = params.tensor_shapes().into_iter().map(|(name, _)| name);
        let is_read = |name: &String| {
            let path = name.strip_suffix(".weight").unwrap_or(name);
            read.iter().any(|one| path.ends_with(one))
        };
        names.filter(is_read).collect()
    }
}

/// Names of A and B of one matrix.
fn adapter_names(matrix: &str) -> [String; 2] {
    [format!("{matrix}.lora_a"), format!("{matrix}.lora_b")]
}

/// The adapters of one model.
#[derive(Debug, Clone)]
pub struct Adapters {
    settings: LoraSettings,
    store: ParamStore,
}

impl Adapters {
    /// Fresh adapters, which change nothing yet: A is uniform within ±1/√in (Kaiming with a = √5, as
    /// `torch.nn.Linear` starts), each tensor from its own stream, and B is 0.
    pub fn init(
        params: &Params,
        settings: LoraSettings,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::init_upon(params.tensor_shapes(), settings, seed, dtype, device)
    }

    /// [`Self::init`] upon the trunk of a value model.
    pub fn init_value_trunk(
        params: &Params,
        settings: LoraSettings,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::init_upon(params.value_trunk_shapes(), settings, seed, dtype, device)
    }

    fn init_upon(
        tensors: Vec<(String, Vec<usize>)>,
        settings: LoraSettings,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        settings.validate()?;
        let fresh = |(name, shape): (String, Vec<usize>)| {
            let count: usize = shape.iter().product();
            let values = if name.ends_with(".lora_a") {
                uniform(seed, &name, count, 1.0 / (shape[1] as f64).sqrt())
            } else {
                vec![0.0; count]
            };
            let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
            Ok((name, tensor))
        };
        let tensors = settings.shapes_upon(tensors).into_iter().map(fresh);
        let store = ParamStore::from_tensors(tensors.collect::<Result<_>>()?)?;
        Ok(Self { settings, store })
    }

    /// Reads an adapter file. What it holds must be exactly what its own header announces for this model.
    pub fn load(path: &Path, params: &Params, dtype: DType, device: &Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let settings = header(&file)?;
        settings
            .validate()
            .map_err(|reason| Error::corrupt(path, reason))?;
        let shapes = settings.tensor_shapes(params);
        let wanted = Wanted {
            shapes: &shapes,
            tolerated: &[],
            kept: &[],
            dtype,
            device,
        };
        let tensors = shards::take(&file, &wanted)?;
        let store = ParamStore::from_tensors(tensors)?;
        Ok(Self { settings, store })
    }

    /// Writes the adapters as safetensors with rank, α and targets in the header; the same values give the same
    /// bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        let settings =
            serde_json::to_string(&self.settings).expect("numbers and names always serialize");
        // One entry only: a map of several would be written in an order of its own.
        let header = HashMap::from([(HEADER.to_owned(), settings)]);
        self.store.save_with(path, Some(header))
    }

    /// Rank, α and targets.
    pub fn settings(&self) -> &LoraSettings {
        &self.settings
    }

    /// The trainable tensors.
    pub fn store(&self) -> &ParamStore {
        &self.store
    }

    /// Floating-point operations of the adapters' products, forward: two for each number and position. Behind attention a
    /// head's block goes on where it predicts alone, which is at so many `targets` of each horizon.
    pub fn product_flops(&self, params: &Params, positions: usize, targets: &[usize]) -> f64 {
        let prefixes = params
            .horizons()
            .map(|horizon| params.head_prefix(horizon) + ".");
        let heads: Vec<(String, usize)> = prefixes.zip(targets.iter().copied()).collect();
        let into_attention = [LoraTarget::Wq, LoraTarget::Wk, LoraTarget::Wv];
        let at = |name: &str| {
            let head = heads
                .iter()
                .find(|(prefix, _)| name.starts_with(prefix.as_str()));
            let is_behind = !into_attention.iter().any(|one| name.contains(one.matrix()));
            head.filter(|_| is_behind)
                .map_or(positions, |(_, targets)| *targets)
        };
        let numbers = self
            .store
            .iter()
            .map(|(name, var)| var.elem_count() * at(name));
        2.0 * numbers.sum::<usize>() as f64
    }

    /// A plain store with `W + (α/r)·B·A` in the place of every adapted matrix of `base`.
    ///
    /// # Errors
    /// Names an adapter that no matrix of `base` takes, or that has another shape than its matrix asks for.
    pub fn merge(&self, base: &ParamStore) -> Result<ParamStore> {
        self.check_all_used(base.iter().map(|(name, _)| name))?;
        let merged = base.iter().map(|(name, _)| {
            let weight = base.wide(name)?;
            let matrix = name.strip_suffix(".weight").unwrap_or(name);
            let low_rank = self.on(&[(matrix, &weight)], Tracking::Frozen)?;
            let weight = match low_rank {
                Some(low_rank) => low_rank.effective(&[weight])?,
                None => weight,
            };
            Ok((name.to_owned(), weight))
        });
        ParamStore::from_tensors(merged.collect::<Result<_>>()?)
    }

    /// Every adapter must be upon one of these tensors: one that nothing reads would be lost without a word.
    pub(crate) fn check_all_used<'a>(
        &self,
        tensors: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        let matrices = tensors
            .into_iter()
            .filter_map(|name| name.strip_suffix(".weight"));
        let known: BTreeSet<String> = matrices.flat_map(adapter_names).collect();
        match self.store.iter().find(|(name, _)| !known.contains(*name)) {
            Some((name, _)) => Err(Error::UnexpectedTensor {
                origin: ORIGIN.to_owned(),
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The adapters among the packed weights of one operation, named without `.weight`; none where no weight is
    /// a target.
    pub(crate) fn on(
        &self,
        weights: &[(&str, &Tensor)],
        tracking: Tracking,
    ) -> Result<Option<LowRank>> {
        let mut adapted = Vec::new();
        let mut start = 0;
        for (matrix, weight) in weights {
            let [a, b] = adapter_names(matrix);
            if [&a, &b].iter().any(|name| self.store.get(name).is_some()) {
                let (outputs, inputs) = weight.dims2()?;
                let slot = Slot {
                    start,
                    outputs,
                    inputs,
                    stream: fnv1a(matrix),
                };
                let a = self.shaped(&a, [self.settings.r, inputs], tracking)?;
                let b = self.shaped(&b, [outputs, self.settings.r], tracking)?;
                adapted.push((slot, [a, b]));
            }
            start += weight.elem_count();
        }
        if adapted.is_empty() {
            return Ok(None);
        }
        let (rank, scale) = (self.settings.r, self.settings.scale());
        Ok(Some(LowRank::new(rank, scale, adapted)))
    }

    /// An adapter, which must have this shape: operations cut the adapters' values by the shapes of the weights.
    fn shaped(&self, name: &str, expected: [usize; 2], tracking: Tracking) -> Result<Tensor> {
        let tensor = tracking.tensor(&self.store, name)?;
        if tensor.dims() != expected {
            return Err(Error::TensorShape {
                origin: ORIGIN.to_owned(),
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                expected: expected.to_vec(),
            });
        }
        Ok(tensor)
    }
}

/// The settings in the header of an adapter file.
fn header(file: &TensorFile<'_>) -> Result<LoraSettings> {
    let corrupt = |reason: String| Error::corrupt(file.path(), reason);
    let text = file.entry(HEADER).ok_or_else(|| {
        corrupt(format!(
            "its header has no `{HEADER}` with r, alpha and targets"
        ))
    })?;
    serde_json::from_str(text).map_err(|reason| corrupt(format!("header `{HEADER}`: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeadKind, MtpModel, ValueModel};

    fn settings(r: usize, targets: &[LoraTarget]) -> LoraSettings {
        LoraSettings {
            r,
            alpha: 2.0 * r as f64,
            targets: targets.to_vec(),
        }
    }

    fn fresh(targets: &[LoraTarget]) -> Adapters {
        let settings = settings(4, targets);
        Adapters::init(&Params::small(), settings, 7, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_block_of_the_7b_model_has_the_numbers_of_parameters_of_the_spec() {
        let params = Params::meta_7b();
        let count = |r| {
            let shapes = settings(r, &LoraTarget::ALL).tensor_shapes(&params);
            let sizes = shapes
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>());
            sizes.sum::<usize>()
        };
        // Spec 1.12: 1,249,280 per block at r 16, and 32 blocks in trunk and heads together.
        assert_eq!(
            [count(16), count(32), count(64)],
            [1_249_280, 2_498_560, 4_997_120].map(|of_block| 32 * of_block)
        );
    }

    #[test]
    fn trunk_and_heads_are_adapted_alike_in_the_order_of_the_model() {
        let adapters = fresh(&[LoraTarget::Wq, LoraTarget::W2]);
        let names: Vec<_> = adapters.store().iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 2 * 2 * 4);
        assert_eq!(
            names[..4],
            [
                "layers.0.attention.wq.lora_a",
                "layers.0.attention.wq.lora_b",
                "layers.0.feed_forward.w2.lora_a",
                "layers.0.feed_forward.w2.lora_b",
            ]
        );
        assert_eq!(names[12], "extra_heads.0.attention.wq.lora_a");
    }

    #[test]
    fn a_value_models_trunk_is_adapted_as_the_policys_is() {
        let (params, settings) = (Params::small(), settings(4, &[LoraTarget::Wq]));
        let made =
            Adapters::init_value_trunk(&params, settings, 7, DType::F32, &Device::Cpu).unwrap();
        let of_policy = fresh(&[LoraTarget::Wq]);
        let numbers = |var: &candle_core::Var| {
            let flat = var.flatten_all().unwrap();
            flat.to_vec1::<f32>().unwrap()
        };
        // Two trunk blocks of the four.
        assert_eq!(made.store().len(), 4);
        for (name, var) in made.store().iter() {
            let other = of_policy.store().get(name).unwrap();
            assert_eq!(numbers(var), numbers(other), "{name}");
        }
    }

    #[test]
    fn a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero() {
        let params = Params::micro_mtp(512);
        let settings = settings(8, &[LoraTarget::W2]);
        let adapters = Adapters::init(&params, settings, 1, DType::F64, &Device::Cpu).unwrap();
        let values = |name: &str| {
            let var = adapters.store().get(name).unwrap();
            var.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        let a = values("layers.0.feed_forward.w2.lora_a");
        let bound = 1.0 / 192f64.sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound));
        // Variance of a uniform distribution: bound²/3.
        let variance = a.iter().map(|x| x * x).sum::<f64>() / a.len() as f64;
        assert!((3.0 * variance / (bound * bound) - 1.0).abs() < 0.1);
        assert!(
            values("layers.0.feed_forward.w2.lora_b")
                .iter()
                .all(|x| *x == 0.0)
        );
    }

    #[test]
    fn a_saved_file_loads_with_its_settings_and_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let saved = fresh(&LoraTarget::ALL);
        saved.save(&one).unwrap();
        let loaded = Adapters::load(&one, &Params::small(), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(loaded.settings(), saved.settings());
        loaded.save(&two).unwrap();
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    }

    #[test]
    fn what_the_header_does_not_announce_or_the_model_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        let load =
            |params: &Params| Adapters::load(&path, params, DType::F32, &Device::Cpu).unwrap_err();
        let both = fresh(&[LoraTarget::Wq, LoraTarget::Wv]);
        let lying = |targets: &[LoraTarget], r: usize| Adapters {
            settings: settings(r, targets),
            store: both.store.clone(),
        };
        lying(&[LoraTarget::Wq], 4).save(&path).unwrap();
        assert!(
            matches!(load(&Params::small()), Error::UnexpectedTensor { name, .. }
            if name == "extra_heads.0.attention.wv.lora_a")
        );
        lying(&[LoraTarget::Wq, LoraTarget::Wv, LoraTarget::Wo], 4)
            .save(&path)
            .unwrap();
        assert!(
            matches!(load(&Params::small()), Error::MissingTensor { name, .. }
            if name == "layers.0.attention.wo.lora_a")
        );
        lying(&[LoraTarget::Wq, LoraTarget::Wv], 8)
            .save(&path)
            .unwrap();
        assert!(
            matches!(load(&Params::small()), Error::TensorShape { expected, .. } if expected == [8, 16])
        );
        both.save(&path).unwrap();
        let other_heads = Params {
            n_kv_heads: 4,
            ..Params::small()
        };
        assert!(matches!(load(&other_heads), Error::TensorShape { name, .. }
            if name == "layers.0.attention.wv.lora_b"));
        both.store.save(&path).unwrap();
        assert!(load(&Params::small()).to_string().contains("has no `lora`"));
        lying(&[], 4).save(&path).unwrap();
        assert!(load(&Params::small()).to_string().contains("no target"));
    }

    fn base(params: &Params) -> ParamStore {
        ParamStore::init(params, 3, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn adapters_that_nothing_takes_are_named() {
        // Of a deeper model, whose third block under `layers` is one of the trunk.
        let deeper = Params {
            n_layers: 5,
            ..Params::small()
        };
        let of_deeper = Adapters::init(
            &deeper,
            settings(4, &[LoraTarget::Wv]),
            7,
            DType::F32,
            &Device::Cpu,
        )
        .unwrap();
        let (params, base) = (Params::small(), base(&Params::small()));
        for made in [
            of_deeper.merge(&base).map(|_| ()),
            MtpModel::adapted(&params, &base, &of_deeper).map(|_| ()),
            MtpModel::adapted_frozen(&params, &base, &of_deeper).map(|_| ()),
        ] {
            assert!(
                matches!(made.unwrap_err(), Error::UnexpectedTensor { name, .. }
                if name == "layers.3.attention.wv.lora_a")
            );
        }
        // A value model has no heads.
        let of_policy = fresh(&[LoraTarget::Wv]);
        let trunk = ParamStore::value_trunk_from(&params, &base).unwrap();
        let kind = HeadKind::Linear;
        let head =
            ParamStore::init_value_head(kind, &params, 5, 0.5, DType::F32, &Device::Cpu).unwrap();
        for made in [
            of_policy.merge(&trunk).map(|_| ()),
            ValueModel::adapted(&params, kind, &trunk, &of_policy, &head).map(|_| ()),
            ValueModel::adapted_frozen(&params, kind, &trunk, &of_policy, &head).map(|_| ()),
        ] {
            assert!(
                matches!(made.unwrap_err(), Error::UnexpectedTensor { name, .. }
                if name == "layers.2.attention.wv.lora_a")
            );
        }
        assert!(of_policy.merge(&base).is_ok());
    }

    #[test]
    fn adapters_of_another_width_or_without_their_other_half_are_named() {
        let (params, base) = (Params::small(), base(&Params::small()));
        let refusals = |adapters: &Adapters| {
            [
                adapters.merge(&base).map(|_| ()),
                MtpModel::adapted(&params, &base, adapters).map(|_| ()),
            ]
            .map(Result::unwrap_err)
        };
        let other_heads = Params {
            n_kv_heads: 4,
            ..Params::small()
        };
        let wv = settings(4, &[LoraTarget::Wv]);
        let wide = Adapters::init(&other_heads, wv, 7, DType::F32, &Device::Cpu).unwrap();
        for error in refusals(&wide) {
            assert!(
                matches!(error, Error::TensorShape { name, found, expected, .. }
                    if name == "layers.0.attention.wv.lora_b"
                        && found == [16, 4] && expected == [8, 4])
            );
        }
        let halved = Adapters {
            settings: settings(2, &[LoraTarget::Wv]),
            ..fresh(&[LoraTarget::Wv])
        };
        for error in refusals(&halved) {
            assert!(matches!(error, Error::TensorShape { name, expected, .. }
                if name == "layers.0.attention.wv.lora_a" && expected == [2, 16]));
        }
        let whole = fresh(&[LoraTarget::Wv]);
        let only_b = whole
            .store()
            .iter()
            .filter(|(name, _)| name.ends_with("lora_b"));
        let only_b = only_b.map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        let store = ParamStore::from_tensors(only_b.collect()).unwrap();
        let without_a = Adapters { store, ..whole };
        for error in refusals(&without_a) {
            assert!(matches!(error, Error::MissingTensor { name, .. }
                if name == "layers.0.attention.wv.lora_a"));
        }
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        let refusal = |settings: LoraSettings| settings.validate().unwrap_err().to_string();
        let good = settings(4, &[LoraTarget::Wq, LoraTarget::W2]);
        assert!(good.validate().is_ok());
        assert!(
            refusal(LoraSettings {
                r: 0,
                ..good.clone()
            })
            .contains("r is 0")
        );
        assert!(refusal(LoraSettings { alpha: 0.0, ..good }).contains("alpha"));
        let twice = settings(4, &[LoraTarget::Wq, LoraTarget::Wq]);
        assert!(refusal(twice).contains("once each"));
    }
}

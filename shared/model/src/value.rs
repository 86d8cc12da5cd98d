//! The value model: a trunk of its own and a head that estimates success.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};
use serde::{Deserialize, Serialize};

use crate::model::{Body, Tracking};
use crate::observer::{Observer, Site, Unobserved};
use crate::tape::NormedTape;
use crate::{Adapters, Error, ParamStore, Params, Result, ops};

/// Form of the value head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// d → 1.
    Linear,
    /// d → d/4, GELU, → 1.
    Mlp,
}

/// Tensors of a value head in order; the last two are the weight and bias of the last layer.
pub(crate) fn head_shapes(kind: HeadKind, dim: usize) -> Vec<(String, Vec<usize>)> {
    let layer = |name: &str, outputs: usize, inputs: usize| {
        [
            (format!("{name}.weight"), vec![outputs, inputs]),
            (format!("{name}.bias"), vec![outputs]),
        ]
    };
    match kind {
        HeadKind::Linear => layer("value_head", 1, dim).to_vec(),
        HeadKind::Mlp => {
            let hidden = (dim / 4).max(1);
            [
                layer("value_head.0", hidden, dim),
                layer("value_head.2", 1, hidden),
            ]
            .concat()
        }
    }
}

/// Estimates V, the success after reading a prefix, from the normalised trunk output (spec 1.5).
#[derive(Debug, Clone)]
pub struct ValueModel {
    body: Body,
    layers: Vec<(Tensor, Tensor)>,
}

impl ValueModel {
    /// Trunk and head both take gradients.
    pub fn new(
        params: &Params,
        kind: HeadKind,
        trunk: &ParamStore,
        head: &ParamStore,
    ) -> Result<Self> {
        Self::build(
            params,
            kind,
            (trunk, Tracking::Trained),
            (head, Tracking::Trained),
        )
    }

    /// Only the head takes gradients; the trunk records no graph.
    pub fn frozen_trunk(
        params: &Params,
        kind: HeadKind,
        trunk: &ParamStore,
        head: &ParamStore,
    ) -> Result<Self> {
        Self::build(
            params,
            kind,
            (trunk, Tracking::Frozen),
            (head, Tracking::Trained),
        )
    }

    /// A frozen trunk under adapters that take gradients, as the head does.
    pub fn adapted(
        params: &Params,
        kind: HeadKind,
        trunk: &ParamStore,
        adapters: &Adapters,
        head: &ParamStore,
    ) -> Result<Self> {
        Self::frozen_trunk(params, kind, trunk, head)?.with_adapters(
            params,
            adapters,
            Tracking::Trained,
        )
    }

    /// The same values as [`Self::adapted`] without a graph.
    pub fn adapted_frozen(
        params: &Params,
        kind: HeadKind,
        trunk: &ParamStore,
        adapters: &Adapters,
        head: &ParamStore,
    ) -> Result<Self> {
        Self::frozen(params, kind, trunk, head)?.with_adapters(params, adapters, Tracking::Frozen)
    }

    fn with_adapters(
        mut self,
        params: &Params,
        adapters: &Adapters,
        tracking: Tracking,
    ) -> Result<Self> {
        let tensors = params.value_trunk_shapes();
        adapters.check_all_used(tensors.iter().map(|(name, _)| name.as_str()))?;
        self.body.adapt(adapters, tracking)?;
        Ok(self)
    }

    /// Nothing takes gradients.
    pub fn frozen(
        params: &Params,
        kind: HeadKind,
        trunk: &ParamStore,
        head: &ParamStore,
    ) -> Result<Self> {
        Self::build(
            params,
            kind,
            (trunk, Tracking::Frozen),
            (head, Tracking::Frozen),
        )
    }

    fn build(
        params: &Params,
        kind: HeadKind,
        trunk: (&ParamStore, Tracking),
        head: (&ParamStore, Tracking),
    ) -> Result<Self> {
        let body = Body::new(params, trunk.0, trunk.1)?;
        let names: Vec<_> = head_shapes(kind, params.dim)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let layers = names
            .chunks_exact(2)
            .map(|pair| {
                Ok((
                    head.1.tensor(head.0, &pair[0])?,
                    head.1.tensor(head.0, &pair[1])?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self { body, layers })
    }

    /// Computes the products with the trunk's weights in another way.
    #[must_use]
    pub fn with_products(mut self, products: crate::Products) -> Self {
        self.body.set_products(products);
        self
    }

    /// Uses rotary tables from outside.
    #[must_use]
    pub fn with_rotary(mut self, rotary: crate::Rotary) -> Self {
        self.body.set_rotary(rotary);
        self
    }

    /// See [`crate::MtpModel::num_packed_in_block`].
    pub fn num_packed_in_block(&self) -> usize {
        self.body.num_packed_in_block()
    }

    /// The normalised trunk output `[b, s, d]` for `ids [b, s]`.
    pub fn hidden(&self, ids_bs: &Tensor) -> Result<Tensor> {
        let trunk = self.body.trunk(ids_bs, &mut Unobserved)?;
        self.body.normed(&trunk)
    }

    /// The head's raw output `[b, s]`: V itself for regression objectives, its logit for `bce`.
    pub fn values(&self, ids_bs: &Tensor) -> Result<Tensor> {
        self.values_observed(ids_bs, &mut Unobserved)
    }

    /// [`Self::values`] with an observer at every site.
    pub fn values_observed<O: Observer>(
        &self,
        ids_bs: &Tensor,
        observer: &mut O,
    ) -> Result<Tensor> {
        let trunk = self.body.trunk(ids_bs, observer)?;
        let hidden = observer.observe(Site::ValueHidden, self.body.normed(&trunk)?)?;
        observer.observe(Site::Value, self.head(&hidden)?)
    }

    /// [`Self::values`] for training: a trunk that learns, or whose adapters do, goes back block by block, with the
    /// activations of its last `num_kept` blocks kept and the others computed again; through a frozen one nothing goes back.
    pub fn taped(&self, ids_bs: &Tensor, num_kept: usize) -> Result<ValueTape> {
        let record = || NormedTape::record(&self.body, ids_bs, num_kept);
        let trunk = self.body.is_trained().then(record).transpose()?;
        let hidden_bsd = match &trunk {
            Some(tape) => Var::from_tensor(tape.hidden())?.into_inner(),
            None => self.hidden(ids_bs)?,
        };
        Ok(ValueTape {
            values_bs: self.head(&hidden_bsd)?,
            layers: self.layers.clone(),
            trunk,
            hidden_bsd,
        })
    }

    fn head(&self, hidden_bsd: &Tensor) -> Result<Tensor> {
        let mut x = hidden_bsd.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            if index > 0 {
                x = gelu(&x)?;
            }
            x = ops::linear(&x, weight)?.broadcast_add(bias)?;
        }
        match x.dims() {
            [b, s, 1] => Ok(x.reshape((*b, *s))?),
            other => Err(Error::Shape(format!(
                "value head gives {other:?}, expected [b, s, 1]"
            ))),
        }
    }
}

/// GELU, x Φ(x) = x (1 + erf(x / √2)) / 2 (Hendrycks and Gimpel 2016, section 2), by `erf`: the gradient of candle's
/// `gelu_erf` has 0.398942 for 1 / √(2π), and is off by 3e-7.
fn gelu(x: &Tensor) -> Result<Tensor> {
    let normal_cdf = (((x / 2f64.sqrt())?.erf()? + 1.0)? * 0.5)?;
    Ok((x * normal_cdf)?)
}

/// A forward pass of a value model, and what going back needs.
///
/// The trunk goes back as [`crate::TrunkTape`] does. The head has a graph of candle's: beside a block it is nothing.
pub struct ValueTape {
    /// None where the trunk is frozen.
    trunk: Option<NormedTape>,
    /// What the head read: a variable where the trunk wants the gradient of it.
    hidden_bsd: Tensor,
    layers: Vec<(Tensor, Tensor)>,
    values_bs: Tensor,
}

impl ValueTape {
    /// The head's raw output `[b, s]`.
    pub fn values(&self) -> &Tensor {
        &self.values_bs
    }

    /// Takes the gradient `[b, s]` of the values back to the embedding. `take` gets the gradient of one parameter after
    /// another, those of the head first, each once.
    ///
    /// # Errors
    /// What `take` says, and what the operations say.
    pub fn backward<E: From<Error>>(
        self,
        gradient_bs: &Tensor,
        mut take: impl FnMut(TensorId, &Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let of_head = self.head_gradients(gradient_bs)?;
        for tensor in self.layers.iter().flat_map(|(weight, bias)| [weight, bias]) {
            if let Some(gradient) = of_head.get(tensor) {
                take(tensor.id(), gradient)?;
            }
        }
        let Some(trunk) = self.trunk else {
            return Ok(());
        };
        let of_hidden = of_head.get(&self.hidden_bsd);
        trunk.backward(of_hidden.expect("the head reads it"), take)
    }

    fn head_gradients(&self, gradient_bs: &Tensor) -> Result<GradStore> {
        let product = (&self.values_bs * gradient_bs)?.sum_all()?;
        Ok(product.backward()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{LoraSettings, LoraTarget};
    use candle_core::{DType, Device};

    fn params() -> Params {
        Params {
            dim: 16,
            n_layers: 3,
            n_heads: 2,
            n_kv_heads: 2,
            multiple_of: 8,
            n_future_tokens: 1,
            ..Params::micro_mtp(29)
        }
    }

    fn stores(kind: HeadKind) -> (ParamStore, ParamStore) {
        let base = ParamStore::init(&params(), 5, DType::F64, &Device::Cpu).unwrap();
        let trunk = ParamStore::value_trunk_from(&params(), &base).unwrap();
        let head =
            ParamStore::init_value_head(kind, &params(), 5, 0.5, DType::F64, &Device::Cpu).unwrap();
        (trunk, head)
    }

    fn ids() -> Tensor {
        Tensor::from_vec(vec![1u32, 5, 9, 2, 1, 7, 7, 2], (2, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_fresh_head_says_one_half_everywhere_and_still_learns() {
        for kind in [HeadKind::Linear, HeadKind::Mlp] {
            let (trunk, head) = stores(kind);
            let model = ValueModel::new(&params(), kind, &trunk, &head).unwrap();
            let values = model.values(&ids()).unwrap();
            assert_eq!(values.to_vec2::<f64>().unwrap(), [[0.5; 4]; 2]);
            let loss = (values - 1.0).unwrap().sqr().unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let last = head.iter().nth(head.len() - 2).unwrap().1;
            let sum = grads
                .get(last)
                .unwrap()
                .abs()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap();
            assert!(sum > 0.0, "{kind:?}");
        }
    }

    #[test]
    fn hidden_rows_have_unit_rms_before_the_norm_weight() {
        let (trunk, head) = stores(HeadKind::Linear);
        let hidden = ValueModel::frozen(&params(), HeadKind::Linear, &trunk, &head)
            .unwrap()
            .hidden(&ids())
            .unwrap();
        for row in hidden.reshape((8, 16)).unwrap().to_vec2::<f64>().unwrap() {
            let rms = (row.iter().map(|x| x * x).sum::<f64>() / 16.0).sqrt();
            // The norm's eps of 1e-5 keeps it just below 1.
            assert!((0.999..1.0).contains(&rms), "rms {rms}");
        }
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A gradient of the values in which no two positions are alike.
    fn seed() -> Tensor {
        Tensor::arange(0f64, 8.0, &Device::Cpu)
            .and_then(|t| t.affine(0.3, -0.7)?.reshape((2, 4)))
            .unwrap()
    }

    /// What a tape hands out, by name.
    fn taken(tape: ValueTape, stores: [&ParamStore; 2]) -> BTreeMap<String, Vec<f64>> {
        let mut taken = BTreeMap::new();
        tape.backward(&seed(), |id, gradient| {
            let mut all = stores.into_iter().flat_map(ParamStore::iter);
            let (name, var) = all.find(|(_, var)| var.id() == id).expect("a parameter");
            assert_eq!(gradient.dims(), var.dims(), "{name}");
            let before = taken.insert(name.to_owned(), numbers(gradient));
            assert!(before.is_none(), "{name} comes twice");
            Ok::<(), Error>(())
        })
        .unwrap();
        taken
    }

    /// A head that no longer starts at zero: the trunk gets gradients.
    fn moved(head: &ParamStore) {
        for (_, var) in head.iter() {
            let noise = Tensor::arange(0f64, var.elem_count() as f64, &Device::Cpu).unwrap();
            let noise = noise.sin().unwrap().reshape(var.shape()).unwrap();
            var.set(&(var.as_tensor() + noise * 0.1).unwrap()).unwrap();
        }
    }

    /// What the whole graph and the tapes of a model give to what it trains, and that it is the same.
    fn agree(model: &ValueModel, trained: [&ParamStore; 2]) {
        let whole = model.values(&ids()).unwrap();
        let product = (&whole * &seed()).unwrap().sum_all().unwrap();
        let graph = product.backward().unwrap();
        let expected: BTreeMap<String, Vec<f64>> = trained
            .into_iter()
            .flat_map(ParamStore::iter)
            .map(|(name, var)| (name.to_owned(), numbers(graph.get(var).unwrap())))
            .collect();
        assert!(
            expected
                .values()
                .all(|numbers| numbers.iter().any(|x| *x != 0.0)),
            "a gradient of zeros shows nothing"
        );
        for num_kept in 0..=params().num_trunk_blocks() {
            let tape = model.taped(&ids(), num_kept).unwrap();
            assert_eq!(numbers(tape.values()), numbers(&whole));
            // Equal numbers, not near ones: the graph runs the same operations.
            assert_eq!(taken(tape, trained), expected, "{num_kept} kept");
        }
    }

    #[test]
    fn every_way_of_keeping_gives_the_gradients_of_the_whole_graph() {
        for kind in [HeadKind::Linear, HeadKind::Mlp] {
            let (trunk, head) = stores(kind);
            moved(&head);
            let model = ValueModel::new(&params(), kind, &trunk, &head).unwrap();
            agree(&model, [&trunk, &head]);
        }
    }

    /// Adapters of a value model none of which is zero.
    fn adapters() -> Adapters {
        let settings = LoraSettings {
            r: 3,
            alpha: 4.0,
            targets: LoraTarget::ALL.to_vec(),
        };
        let made =
            Adapters::init_value_trunk(&params(), settings, 2, DType::F64, &Device::Cpu).unwrap();
        moved(made.store());
        made
    }

    #[test]
    fn adapters_and_head_get_the_gradients_of_the_whole_graph_and_the_trunk_none() {
        let adapters = adapters();
        for kind in [HeadKind::Linear, HeadKind::Mlp] {
            let (trunk, head) = stores(kind);
            moved(&head);
            let model = ValueModel::adapted(&params(), kind, &trunk, &adapters, &head).unwrap();
            // Two blocks of seven matrices with two adapters each. A gradient of the trunk would be no parameter's.
            assert_eq!(adapters.store().len(), 28);
            agree(&model, [adapters.store(), &head]);
        }
    }

    #[test]
    fn gradients_of_adapters_and_heads_match_finite_differences() {
        const STEP: f64 = 1e-5;
        for kind in [HeadKind::Linear, HeadKind::Mlp] {
            let ((trunk, head), adapters) = (stores(kind), adapters());
            moved(&head);
            let model = ValueModel::adapted(&params(), kind, &trunk, &adapters, &head).unwrap();
            let tape = model.taped(&ids(), 1).unwrap();
            let gradients = taken(tape, [adapters.store(), &head]);
            let sum = || {
                let values = numbers(&model.values(&ids()).unwrap());
                let products = values.iter().zip(numbers(&seed())).map(|(v, s)| v * s);
                products.sum::<f64>()
            };
            for (index, (name, var)) in adapters.store().iter().chain(head.iter()).enumerate() {
                let before = numbers(var);
                let at = index % before.len();
                let moved = |by: f64| {
                    let mut values = before.clone();
                    values[at] += by;
                    let values = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
                    var.set(&values).unwrap();
                    sum()
                };
                let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                moved(0.0);
                let off = (slope - gradients[name][at]).abs();
                assert!(
                    off < 1e-8,
                    "{kind:?} {name}: {slope} and {}",
                    gradients[name][at]
                );
            }
        }
    }

    #[test]
    fn the_merged_trunk_has_the_values_of_the_adapted_one_bit_for_bit() {
        let ((trunk, head), adapters) = (stores(HeadKind::Linear), adapters());
        moved(&head);
        let kind = HeadKind::Linear;
        let adapted = ValueModel::adapted_frozen(&params(), kind, &trunk, &adapters, &head);
        let values = numbers(&adapted.unwrap().values(&ids()).unwrap());
        let merged = adapters.merge(&trunk).unwrap();
        let of = |trunk| ValueModel::frozen(&params(), kind, trunk, &head).unwrap();
        assert_eq!(numbers(&of(&merged).values(&ids()).unwrap()), values);
        assert_ne!(numbers(&of(&trunk).values(&ids()).unwrap()), values);
        let shapes = |store: &ParamStore| -> Vec<(String, Vec<usize>)> {
            let all = store.iter();
            all.map(|(name, var)| (name.to_owned(), var.dims().to_vec()))
                .collect()
        };
        assert_eq!(shapes(&merged), shapes(&trunk));
    }

    #[test]
    fn nothing_goes_back_through_a_frozen_trunk() {
        let (trunk, head) = stores(HeadKind::Mlp);
        let model = ValueModel::frozen_trunk(&params(), HeadKind::Mlp, &trunk, &head).unwrap();
        let tape = model.taped(&ids(), 1).unwrap();
        assert!(tape.trunk.is_none());
        let names: Vec<String> = taken(tape, [&trunk, &head]).into_keys().collect();
        let mut all: Vec<&str> = head.iter().map(|(name, _)| name).collect();
        all.sort_unstable();
        assert_eq!(names, all);
    }
}

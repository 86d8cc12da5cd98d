//! The value model: a trunk of its own and a head that estimates success.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::model::{Body, Tracking};
use crate::observer::{Observer, Site, Unobserved};
use crate::{Error, ParamStore, Params, Result, ops};

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

    fn head(&self, hidden_bsd: &Tensor) -> Result<Tensor> {
        let mut x = hidden_bsd.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            if index > 0 {
                x = x.gelu_erf()?;
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

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_frozen_trunk_gets_no_gradient() {
        let (trunk, head) = stores(HeadKind::Mlp);
        let model = ValueModel::frozen_trunk(&params(), HeadKind::Mlp, &trunk, &head).unwrap();
        let grads = model
            .values(&ids())
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        assert!(trunk.iter().all(|(_, var)| grads.get(var).is_none()));
        assert!(head.iter().all(|(_, var)| grads.get(var).is_some()));
    }
}

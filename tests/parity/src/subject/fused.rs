//! A planted fault: attention through one of candle's fused operations, which have no backward pass.

use candle_core::{Result, Tensor};
use wmtp_model::{Observer, ParamStore, Params, Point, Rotary, Site};

use super::{Mutation, Run};

/// The operation that is fused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    Softmax,
    Rotary,
}

impl Fused {
    /// The one that a fault is about.
    pub(super) fn of(mutation: &Mutation) -> Option<Self> {
        match mutation {
            Mutation::FusedAttention => Some(Self::Softmax),
            Mutation::FusedRotary => Some(Self::Rotary),
            _ => None,
        }
    }
}

/// Records like the run itself, and lets gradients go back through the fused operation alone: the outputs of every
/// attention keep their values to the bit and take the graph of a twin of it.
pub(super) struct FusedAttention<'a, 'b> {
    pub(super) fused: Fused,
    pub(super) run: &'a mut Run<'b>,
    pub(super) params: &'a Params,
    pub(super) store: &'a ParamStore,
    pub(super) rotary: &'a Rotary,
    /// What the next block takes: embeddings, then the trunk's residual stream.
    pub(super) input: Option<Tensor>,
}

impl Observer for FusedAttention<'_, '_> {
    fn observe(&mut self, site: Site, tensor: Tensor) -> wmtp_model::Result<Tensor> {
        let onward = self.run.observe(site, tensor)?;
        let prefix = match site {
            Site::Embed | Site::Trunk(_, Point::Resid) => {
                self.input = Some(onward.clone());
                return Ok(onward);
            }
            Site::Trunk(block, Point::AttnHeads) => format!("layers.{block}"),
            Site::Head(horizon, Point::AttnHeads) => self.params.head_prefix(horizon),
            _ => return Ok(onward),
        };
        let input = self.input.as_ref().expect("embeddings come first");
        let twin = self.twin(input, &prefix)?;
        Ok((onward.detach() + (&twin - twin.detach())?)?)
    }
}

impl FusedAttention<'_, '_> {
    fn twin(&self, x_bsd: &Tensor, prefix: &str) -> Result<Tensor> {
        let (b, s, _) = x_bsd.dims3()?;
        let (heads, kv_heads, e) = (
            self.params.n_heads,
            self.params.n_kv_heads,
            self.params.head_dim(),
        );
        let weight = |name: &str| {
            let var = self.store.get(&format!("{prefix}.{name}.weight"));
            var.expect("the model was built from this store")
                .as_tensor()
        };
        let eps = self.params.norm_eps as f32;
        let normed = candle_nn::ops::rms_norm_slow(x_bsd, weight("attention_norm"), eps)?;
        let project = |name: &str, count: usize| {
            let rows = normed.broadcast_matmul(&weight(name).t()?)?;
            rows.reshape((b, s, count, e))?
                .transpose(1, 2)?
                .contiguous()
        };
        let table = |data: &[f64]| {
            let shape = (s, self.rotary.half());
            Tensor::from_slice(data, shape, x_bsd.device())?.to_dtype(x_bsd.dtype())
        };
        let (cos, sin) = (table(self.rotary.cos(s))?, table(self.rotary.sin(s))?);
        #[expect(
            clippy::disallowed_methods,
            reason = "its missing backward pass is the fault"
        )]
        let rotated = |x: Tensor| match self.fused {
            Fused::Rotary => candle_nn::rotary_emb::rope_i(&x, &cos, &sin),
            Fused::Softmax => candle_nn::rotary_emb::rope_i_slow(&x, &cos, &sin),
        };
        let shared = |x: Tensor| {
            let group = heads / kv_heads;
            let copies = x.unsqueeze(2)?.repeat((1, 1, group, 1, 1))?;
            copies.reshape((b, heads, s, e))
        };
        let q = rotated(project("attention.wq", heads)?)?;
        let k = shared(rotated(project("attention.wk", kv_heads)?)?)?;
        let v = shared(project("attention.wv", kv_heads)?)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (e as f64).sqrt())?;
        let future = (0..s * s).map(|i| {
            if i % s > i / s {
                f64::NEG_INFINITY
            } else {
                0.0
            }
        });
        let future = Tensor::from_iter(future, x_bsd.device())?.reshape((s, s))?;
        let scores = scores.broadcast_add(&future.to_dtype(x_bsd.dtype())?)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "its missing backward pass is the fault"
        )]
        let shares = match self.fused {
            Fused::Softmax => candle_nn::ops::softmax_last_dim(&scores)?,
            Fused::Rotary => candle_nn::ops::softmax(&scores, 3)?,
        };
        shares
            .matmul(&v)?
            .transpose(1, 2)?
            .reshape((b, s, heads * e))
    }
}

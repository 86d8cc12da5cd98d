//! Forward pass of head 1 with a key-value cache.
//!
//! The extra prediction heads take no part: plain decoding needs the trunk and the block of head 1 only.
//! The fused candle operations used here have no backward pass, which is why training code may not use them.

use candle_core::{DType, Device, IndexOp, Tensor, Var};
use candle_nn::kv_cache::KvCache;
use wmtp_model::{ParamStore, Params};

use crate::error::{Error, Result};

/// Sequence axis of the cached keys and values, `[b, g, s, e]`.
const SEQUENCE_AXIS: usize = 2;

/// Weights of the trunk and head 1, ready for decoding.
#[derive(Debug, Clone)]
pub struct InferenceModel {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    norm_eps: f32,
    embeddings_vd: Tensor,
    blocks: Vec<Block>,
    norm_d: Tensor,
    output_vd: Tensor,
    cos: Tensor,
    sin: Tensor,
    max_tokens: usize,
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    ffn_norm: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
}

/// Keys and values of the positions read so far, one entry a block.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<KvCache>,
    len: usize,
}

impl Cache {
    /// The same cache for `rows`: row i of the result is row `rows[i]` of this one.
    pub(crate) fn select(&self, rows: &[u32], capacity: usize, device: &Device) -> Result<Self> {
        let index = Tensor::new(rows, device)?;
        let blocks = self
            .blocks
            .iter()
            .map(|block| {
                let mut copy = KvCache::new(SEQUENCE_AXIS, capacity);
                if let (Some(k), Some(v)) = (block.k()?, block.v()?) {
                    let k = k.contiguous()?.index_select(&index, 0)?;
                    let v = v.contiguous()?.index_select(&index, 0)?;
                    copy.append(&k, &v)?;
                }
                Ok(copy)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            blocks,
            len: self.len,
        })
    }
}

impl InferenceModel {
    /// Takes the weights out of a store, without copying them.
    ///
    /// `max_tokens` bounds prompt and continuation together; the rotary table is made for it.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the store does not hold the trunk and head 1 of `params`.
    pub fn new(params: &Params, store: &ParamStore, max_tokens: usize) -> Result<Self> {
        let tensor = |name: &str| {
            store
                .get(name)
                .map(Var::as_detached_tensor)
                .ok_or_else(|| Error::MissingParameter {
                    name: name.to_owned(),
                })
        };
        let output_vd = tensor("output.weight")?;
        let (cos, sin) = rotary_table(params, max_tokens, output_vd.dtype(), output_vd.device())?;
        Ok(Self {
            num_heads: params.n_heads,
            num_kv_heads: params.n_kv_heads,
            head_dim: params.head_dim(),
            norm_eps: params.norm_eps as f32,
            embeddings_vd: tensor("tok_embeddings.weight")?,
            // The block after the trunk is head 1.
            blocks: (0..=params.num_trunk_blocks())
                .map(|index| Block::new(index, &tensor))
                .collect::<Result<_>>()?,
            norm_d: tensor("norm.weight")?,
            output_vd,
            cos,
            sin,
            max_tokens,
        })
    }

    /// Positions that prompt and continuation may take together.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(crate) fn device(&self) -> &Device {
        self.output_vd.device()
    }

    pub(crate) fn empty_cache(&self, capacity: usize) -> Cache {
        Cache {
            blocks: self
                .blocks
                .iter()
                .map(|_| KvCache::new(SEQUENCE_AXIS, capacity))
                .collect(),
            len: 0,
        }
    }

    /// Reads `ids_bs` after what the cache holds; returns the logits of the last position, `[b, v]`.
    pub(crate) fn forward(&self, ids_bs: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (b, s) = ids_bs.dims2()?;
        let hidden = self.embeddings_vd.index_select(&ids_bs.flatten_all()?, 0)?;
        let mut hidden_bsd = hidden.reshape((b, s, ()))?;
        let cos = self.cos.narrow(0, cache.len, s)?;
        let sin = self.sin.narrow(0, cache.len, s)?;
        for (block, block_cache) in self.blocks.iter().zip(&mut cache.blocks) {
            hidden_bsd = self.block(block, &hidden_bsd, &cos, &sin, block_cache)?;
        }
        cache.len += s;
        let last_bd = hidden_bsd.i((.., s - 1, ..))?.contiguous()?;
        let normed_bd = rms_norm(&last_bd, &self.norm_d, self.norm_eps)?;
        Ok(normed_bd.matmul(&self.output_vd.t()?)?)
    }

    fn block(
        &self,
        block: &Block,
        hidden_bsd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let normed = rms_norm(hidden_bsd, &block.attention_norm, self.norm_eps)?;
        let attended = self.attention(block, &normed, cos, sin, cache)?;
        let hidden_bsd = (hidden_bsd + attended)?;
        let normed = rms_norm(&hidden_bsd, &block.ffn_norm, self.norm_eps)?;
        let gate = linear(&normed, &block.w1)?.silu()?;
        let fed = linear(&(gate * linear(&normed, &block.w3)?)?, &block.w2)?;
        Ok((hidden_bsd + fed)?)
    }

    fn attention(
        &self,
        block: &Block,
        normed_bsd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let (b, s, _) = normed_bsd.dims3()?;
        let split = |x: Tensor, heads: usize| -> Result<Tensor> {
            Ok(x.reshape((b, s, heads, self.head_dim))?
                .transpose(1, 2)?
                .contiguous()?)
        };
        let q_bnse = split(linear(normed_bsd, &block.wq)?, self.num_heads)?;
        let k_bgse = split(linear(normed_bsd, &block.wk)?, self.num_kv_heads)?;
        let v_bgse = split(linear(normed_bsd, &block.wv)?, self.num_kv_heads)?;
        let q_bnse = rotate(&q_bnse, cos, sin)?;
        let (k, v) = cache.append(&rotate(&k_bgse, cos, sin)?, &v_bgse)?;
        let group = self.num_heads / self.num_kv_heads;
        let (k, v) = (repeat_heads(&k, group)?, repeat_heads(&v, group)?);
        let scores = (q_bnse.matmul(&k.t()?)? / (self.head_dim as f64).sqrt())?;
        let scores = if s == 1 {
            scores
        } else {
            scores.broadcast_add(&causal_mask(s, k.dim(2)?, &scores)?)?
        };
        let mixed = softmax(&scores)?.matmul(&v.contiguous()?)?;
        let merged = mixed
            .transpose(1, 2)?
            .reshape((b, s, self.num_heads * self.head_dim))?;
        linear(&merged, &block.wo)
    }
}

impl Block {
    fn new(index: usize, tensor: &impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let part = |suffix: &str| tensor(&format!("layers.{index}.{suffix}.weight"));
        Ok(Self {
            attention_norm: part("attention_norm")?,
            wq: part("attention.wq")?,
            wk: part("attention.wk")?,
            wv: part("attention.wv")?,
            wo: part("attention.wo")?,
            ffn_norm: part("ffn_norm")?,
            w1: part("feed_forward.w1")?,
            w2: part("feed_forward.w2")?,
            w3: part("feed_forward.w3")?,
        })
    }
}

/// `x·Wᵀ` over the last axis; `w` is stored `[out, in]`.
fn linear(x_bsd: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (b, s, d) = x_bsd.dims3()?;
    let flat = x_bsd.reshape((b * s, d))?.matmul(&w.t()?)?;
    Ok(flat.reshape((b, s, ()))?)
}

/// Repeats every key/value head for the query heads that share it (grouped-query attention).
fn repeat_heads(x_bgse: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x_bgse.clone());
    }
    let (b, g, s, e) = x_bgse.dims4()?;
    let wide = x_bgse.unsqueeze(2)?.expand((b, g, times, s, e))?;
    Ok(wide.reshape((b, g * times, s, e))?)
}

/// `[s, t]`: 0 where position t - s + i may see position j, minus infinity elsewhere.
fn causal_mask(s: usize, t: usize, like: &Tensor) -> Result<Tensor> {
    let seen = t - s;
    let mask: Vec<f32> = (0..s)
        .flat_map(|i| {
            (0..t).map(move |j| {
                if j <= seen + i {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Ok(Tensor::from_vec(mask, (s, t), like.device())?.to_dtype(like.dtype())?)
}

/// Cosines and sines `[max_tokens, e / 2]`, computed in f64 and rounded once.
fn rotary_table(
    params: &Params,
    max_tokens: usize,
    dtype: DType,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let half = params.head_dim() / 2;
    let angles: Vec<f64> = (0..max_tokens)
        .flat_map(|position| {
            (0..half).map(move |pair| {
                position as f64
                    / params
                        .rope_theta
                        .powf(2.0 * pair as f64 / (2 * half) as f64)
            })
        })
        .collect();
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = angles.iter().map(|&angle| f(angle)).collect();
        Ok(Tensor::from_vec(values, (max_tokens, half), device)?.to_dtype(dtype)?)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

#[expect(clippy::disallowed_methods, reason = "decoding records no gradient")]
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps)?)
}

#[expect(clippy::disallowed_methods, reason = "decoding records no gradient")]
fn rotate(x_bhse: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::rotary_emb::rope_i(x_bhse, cos, sin)?)
}

#[expect(clippy::disallowed_methods, reason = "decoding records no gradient")]
fn softmax(x: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::softmax_last_dim(&x.contiguous()?)?)
}

//! The forward pass of decoding on one thread of the host, in f32.

use super::attend::HostCache;
use super::packed::PackedLinear;
use super::{Angles, Span, parameter};
use crate::kernels::{HeadLayout, Write, rms_norm, rotate, swiglu};
use crate::params::{ATTENTION_NORM, FFN_NORM, GATE_UP, QKV, W2, WO};
use crate::{Error, ParamStore, Params, Result};

/// A frozen block.
#[derive(Debug)]
pub struct HostBlock {
    layout: HeadLayout,
    eps: f64,
    attention_norm: Vec<f32>,
    qkv: PackedLinear,
    wo: PackedLinear,
    ffn_norm: Vec<f32>,
    gate_up: PackedLinear,
    w2: PackedLinear,
}

impl HostBlock {
    /// Packs the block whose parameters are called `prefix.…`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks one of them.
    pub(super) fn new(params: &Params, store: &ParamStore, prefix: &str) -> Result<Self> {
        let get = |name: &str| parameter(store, &format!("{prefix}.{name}.weight"));
        let stacked = |names: &[&str]| -> Result<PackedLinear> {
            let parts: Vec<_> = names.iter().map(|name| get(name)).collect::<Result<_>>()?;
            PackedLinear::new(&parts.iter().map(|var| var.as_tensor()).collect::<Vec<_>>())
        };
        Ok(Self {
            layout: HeadLayout::new(params),
            eps: params.norm_eps,
            attention_norm: get(ATTENTION_NORM)?.to_vec1()?,
            qkv: stacked(&QKV)?,
            wo: stacked(&[WO])?,
            ffn_norm: get(FFN_NORM)?.to_vec1()?,
            gate_up: stacked(&GATE_UP)?,
            w2: stacked(&[W2])?,
        })
    }

    /// A cache that has read nothing.
    pub(super) fn empty_cache(&self) -> HostCache {
        HostCache::new(self.layout)
    }

    /// See [`super::RowBlock::forward`].
    pub(super) fn forward(
        &self,
        x: &[f32],
        spans: &mut [Span<'_>],
        angles: &Angles,
    ) -> Result<Vec<f32>> {
        let dim = self.attention_norm.len();
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        assert_eq!(x.len(), rows * dim, "spans of {rows} rows");
        let normed = normed(x, &self.attention_norm, self.eps);
        let mut qkv = vec![0.0; rows * self.qkv.width()];
        self.qkv.apply(&normed, &mut qkv, Write::Replace);
        let (mixed, mut x) = self.attend(x, &mut qkv, spans, angles)?;
        self.wo.apply(&mixed, &mut x, Write::Add);
        self.feed_forward(&mut x);
        Ok(x)
    }

    /// Rotates queries and keys, appends keys and values, and attends where rows are kept. Returns the mixtures
    /// `[kept, n·e]` and the kept rows of `x`.
    fn attend(
        &self,
        x: &[f32],
        qkv: &mut [f32],
        spans: &mut [Span<'_>],
        angles: &Angles,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let HeadLayout {
            heads,
            kv_heads,
            head_dim,
        } = self.layout;
        let (query, key, dim) = (
            heads * head_dim,
            kv_heads * head_dim,
            self.attention_norm.len(),
        );
        let kept: usize = spans.iter().map(|span| span.kept).sum();
        let packed = query + 2 * key;
        let mut mixed = vec![0.0; kept * query];
        let mut left = Vec::with_capacity(kept * dim);
        let (mut x, mut qkv, mut out) = (x, qkv, mixed.as_mut_slice());
        let mut scores = Vec::new();
        for span in spans {
            let (own, rest) = std::mem::take(&mut qkv).split_at_mut(span.rows * packed);
            qkv = rest;
            let cache = span.cache.host()?;
            for row in own.chunks_exact_mut(packed) {
                let (cos, sin) = angles.at(cache.len());
                rotate(row, packed, heads + kv_heads, cos, sin, head_dim / 2, 1.0);
                let (k, v) = row[query..].split_at(key);
                cache.push(k, v);
            }
            let passed = span.rows - span.kept;
            let (own_out, rest) = std::mem::take(&mut out).split_at_mut(span.kept * query);
            out = rest;
            cache.attend(&own[passed * packed..], packed, own_out, &mut scores);
            left.extend_from_slice(&x[passed * dim..span.rows * dim]);
            x = &x[span.rows * dim..];
        }
        Ok((mixed, left))
    }

    fn feed_forward(&self, x: &mut [f32]) {
        let normed = normed(x, &self.ffn_norm, self.eps);
        let rows = x.len() / self.ffn_norm.len();
        let width = self.gate_up.width() / 2;
        let mut gate_up = vec![0.0; rows * 2 * width];
        self.gate_up.apply(&normed, &mut gate_up, Write::Replace);
        let mut act = vec![0.0; rows * width];
        swiglu(&gate_up, width, &mut act);
        self.w2.apply(&act, x, Write::Add);
    }
}

/// The embeddings of a frozen model.
#[derive(Debug)]
pub struct HostEmbedding {
    dim: usize,
    table: Vec<f32>,
}

impl HostEmbedding {
    /// Copies `tok_embeddings.weight`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks it.
    pub(super) fn new(store: &ParamStore) -> Result<Self> {
        let table = parameter(store, "tok_embeddings.weight")?;
        Ok(Self {
            dim: table.dim(1)?,
            table: table.flatten_all()?.to_vec1()?,
        })
    }

    /// Width d of a row.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Rows `[ids, d]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an id outside the vocabulary.
    pub(super) fn read(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(ids.len() * self.dim);
        for &id in ids {
            let row = self.table.chunks_exact(self.dim).nth(id as usize);
            rows.extend_from_slice(row.ok_or_else(|| {
                let vocab = self.table.len() / self.dim;
                Error::Shape(format!("id {id} of a vocabulary of {vocab}"))
            })?);
        }
        Ok(rows)
    }
}

/// The shared norm and the unembedding.
#[derive(Debug)]
pub struct HostOutput {
    norm: Vec<f32>,
    eps: f64,
    output: PackedLinear,
}

impl HostOutput {
    /// Packs `output.weight`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks a parameter.
    pub(super) fn new(params: &Params, store: &ParamStore) -> Result<Self> {
        Ok(Self {
            norm: parameter(store, "norm.weight")?.to_vec1()?,
            eps: params.norm_eps,
            output: PackedLinear::new(&[parameter(store, "output.weight")?.as_tensor()])?,
        })
    }

    /// Logits of a row, v.
    pub(super) fn vocab_size(&self) -> usize {
        self.output.width()
    }

    /// Logits `[rows, v]` of a head's output `x [rows, d]`.
    pub(super) fn logits(&self, x: &[f32]) -> Vec<f32> {
        let normed = normed(x, &self.norm, self.eps);
        let mut logits = vec![0.0; x.len() / self.norm.len() * self.output.width()];
        self.output.apply(&normed, &mut logits, Write::Replace);
        logits
    }
}

fn normed(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let mut inverse = vec![0.0; x.len() / weight.len()];
    rms_norm(x, weight, eps, &mut out, &mut inverse);
    out
}

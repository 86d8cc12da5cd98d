//! Blocks of a frozen model that read row by row, with keys and values kept: the forward pass of decoding, in f32 on
//! one thread.
//!
//! A row is one position of one sequence; the rows of a call may belong to any sequences at any positions. What
//! comes out for a row is the same to the bit whatever rows are read beside it, and however the positions before it
//! were cut into calls: batches and speculation cannot change a text.

mod attend;
mod packed;

use candle_core::{DType, Var};

pub use attend::KeyValues;
use packed::PackedLinear;

use crate::kernels::{HeadLayout, Write, rms_norm, rotate, swiglu};
use crate::{Error, ParamStore, Params, Result, Rotary};

/// The next positions of one sequence, as a block reads them.
#[derive(Debug)]
pub struct Span<'a> {
    /// What this block has read of the sequence; the span follows it.
    pub cache: &'a mut KeyValues,
    /// Positions to read.
    pub rows: usize,
    /// How many of them, from the last back, have an output. The others leave keys and values only.
    pub kept: usize,
}

/// A frozen block.
#[derive(Debug)]
pub struct RowBlock {
    layout: HeadLayout,
    eps: f64,
    attention_norm: Vec<f32>,
    qkv: PackedLinear,
    wo: PackedLinear,
    ffn_norm: Vec<f32>,
    gate_up: PackedLinear,
    w2: PackedLinear,
}

impl RowBlock {
    /// Packs the block whose parameters are called `prefix.…`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks one of them.
    pub fn new(params: &Params, store: &ParamStore, prefix: &str) -> Result<Self> {
        let get = |name: &str| parameter(store, &format!("{prefix}.{name}.weight"));
        let stacked = |names: &[&str]| -> Result<PackedLinear> {
            let parts: Vec<_> = names.iter().map(|name| get(name)).collect::<Result<_>>()?;
            PackedLinear::new(&parts.iter().map(|var| var.as_tensor()).collect::<Vec<_>>())
        };
        Ok(Self {
            layout: HeadLayout {
                heads: params.n_heads,
                kv_heads: params.n_kv_heads,
                head_dim: params.head_dim(),
            },
            eps: params.norm_eps,
            attention_norm: get("attention_norm")?.to_vec1()?,
            qkv: stacked(&["attention.wq", "attention.wk", "attention.wv"])?,
            wo: stacked(&["attention.wo"])?,
            ffn_norm: get("ffn_norm")?.to_vec1()?,
            gate_up: stacked(&["feed_forward.w1", "feed_forward.w3"])?,
            w2: stacked(&["feed_forward.w2"])?,
        })
    }

    /// A cache that has read nothing.
    pub fn empty_cache(&self) -> KeyValues {
        KeyValues::new(self.layout)
    }

    /// Reads `x [rows, d]`, the spans behind each other; returns the outputs `[kept rows, d]`.
    ///
    /// # Panics
    /// When the rows of the spans are not those of `x`, or lie behind the end of `angles`.
    pub fn forward(&self, x: &[f32], spans: &mut [Span<'_>], angles: &Angles) -> Vec<f32> {
        let dim = self.attention_norm.len();
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        assert_eq!(x.len(), rows * dim, "spans of {rows} rows");
        let normed = normed(x, &self.attention_norm, self.eps);
        let mut qkv = vec![0.0; rows * self.qkv.width()];
        self.qkv.apply(&normed, &mut qkv, Write::Replace);
        let (mixed, mut x) = self.attend(x, &mut qkv, spans, angles);
        self.wo.apply(&mixed, &mut x, Write::Add);
        self.feed_forward(&mut x);
        x
    }

    /// Turns queries and keys, appends keys and values, and attends where rows are kept. Returns the mixtures
    /// `[kept, n·e]` and the kept rows of `x`.
    fn attend(
        &self,
        x: &[f32],
        qkv: &mut [f32],
        spans: &mut [Span<'_>],
        angles: &Angles,
    ) -> (Vec<f32>, Vec<f32>) {
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
            for row in own.chunks_exact_mut(packed) {
                let (cos, sin) = angles.at(span.cache.len());
                rotate(row, packed, heads + kv_heads, cos, sin, head_dim / 2, 1.0);
                let (k, v) = row[query..].split_at(key);
                span.cache.push(k, v);
            }
            let passed = span.rows - span.kept;
            let (own_out, rest) = std::mem::take(&mut out).split_at_mut(span.kept * query);
            out = rest;
            span.cache
                .attend(&own[passed * packed..], packed, own_out, &mut scores);
            left.extend_from_slice(&x[passed * dim..span.rows * dim]);
            x = &x[span.rows * dim..];
        }
        (mixed, left)
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
pub struct RowEmbedding {
    dim: usize,
    table: Vec<f32>,
}

impl RowEmbedding {
    /// Copies `tok_embeddings.weight`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks it.
    pub fn new(store: &ParamStore) -> Result<Self> {
        let table = parameter(store, "tok_embeddings.weight")?;
        Ok(Self {
            dim: table.dim(1)?,
            table: table.flatten_all()?.to_vec1()?,
        })
    }

    /// Width d of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows `[ids, d]`, appended to `rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an id outside the vocabulary.
    pub fn read(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<()> {
        for &id in ids {
            let row = self.table.chunks_exact(self.dim).nth(id as usize);
            rows.extend_from_slice(row.ok_or_else(|| {
                let vocab = self.table.len() / self.dim;
                Error::Shape(format!("id {id} of a vocabulary of {vocab}"))
            })?);
        }
        Ok(())
    }
}

/// The shared norm and the unembedding.
#[derive(Debug)]
pub struct RowOutput {
    norm: Vec<f32>,
    eps: f64,
    output: PackedLinear,
}

impl RowOutput {
    /// Packs `output.weight`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when the store lacks a parameter.
    pub fn new(params: &Params, store: &ParamStore) -> Result<Self> {
        Ok(Self {
            norm: parameter(store, "norm.weight")?.to_vec1()?,
            eps: params.norm_eps,
            output: PackedLinear::new(&[parameter(store, "output.weight")?.as_tensor()])?,
        })
    }

    /// Logits of a row, v.
    pub fn vocab_size(&self) -> usize {
        self.output.width()
    }

    /// Logits `[rows, v]` of a head's output `x [rows, d]`.
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        let normed = normed(x, &self.norm, self.eps);
        let mut logits = vec![0.0; x.len() / self.norm.len() * self.output.width()];
        self.output.apply(&normed, &mut logits, Write::Replace);
        logits
    }
}

/// Cosines and sines of the positions that a model may read, in f32.
#[derive(Debug)]
pub struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// The table for `positions` positions, computed in f64 and rounded once.
    pub fn new(params: &Params, positions: usize) -> Self {
        let rotary = Rotary::with_positions(params, positions);
        let rounded = |table: &[f64]| table.iter().map(|x| *x as f32).collect();
        Self {
            half: rotary.half(),
            cos: rounded(rotary.cos(positions)),
            sin: rounded(rotary.sin(positions)),
        }
    }

    /// Positions of the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let own = position * self.half..(position + 1) * self.half;
        (&self.cos[own.clone()], &self.sin[own])
    }
}

fn parameter<'a>(store: &'a ParamStore, name: &str) -> Result<&'a Var> {
    let var = store.get(name).ok_or_else(|| Error::MissingTensor {
        origin: "decoding".to_owned(),
        name: name.to_owned(),
    })?;
    match var.dtype() {
        DType::F32 => Ok(var),
        other => Err(Error::Shape(format!(
            "decoding reads f32, {name} is {other:?}"
        ))),
    }
}

fn normed(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let mut inverse = vec![0.0; x.len() / weight.len()];
    rms_norm(x, weight, eps, &mut out, &mut inverse);
    out
}

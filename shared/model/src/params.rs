//! Model configuration as Meta's `params.json` states it, and the tensors it implies.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// 1-based distance from a source position to the token it predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Horizon(usize);

impl Horizon {
    /// The next token: what head 1 predicts, as every language model does.
    pub const NEXT: Self = Self(1);

    /// The horizon `k`, or `None` for 0.
    pub fn new(k: usize) -> Option<Self> {
        (k > 0).then_some(Self(k))
    }

    /// The distance `k`, at least 1.
    pub fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for Horizon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The keys of `params.json` (spec 1.1). `n_layers` counts the prediction heads' blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawParams")]
pub struct Params {
    /// Hidden size d.
    pub dim: usize,
    /// Blocks in total: trunk plus one per horizon.
    pub n_layers: usize,
    /// Query heads n.
    pub n_heads: usize,
    /// Key/value heads g; `n_heads` when absent.
    pub n_kv_heads: usize,
    /// Vocabulary size v.
    pub vocab_size: usize,
    /// The feed-forward width is rounded up to a multiple of this.
    pub multiple_of: usize,
    /// Factor on the feed-forward width before rounding; 1 when absent.
    pub ffn_dim_multiplier: f64,
    /// RMSNorm epsilon.
    pub norm_eps: f64,
    /// Rotary base; 10 000 when absent.
    pub rope_theta: f64,
    /// Number of horizons H; 1 when absent.
    pub n_future_tokens: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParams {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    /// Meta's files of Llama 2 say -1 and leave it to the tokenizer.
    vocab_size: i64,
    multiple_of: usize,
    ffn_dim_multiplier: Option<f64>,
    norm_eps: f64,
    rope_theta: Option<f64>,
    n_future_tokens: Option<usize>,
}

impl TryFrom<RawParams> for Params {
    type Error = Error;

    fn try_from(raw: RawParams) -> Result<Self> {
        let vocab_size = usize::try_from(raw.vocab_size).map_err(|_| {
            Error::Params(format!(
                "vocab_size is {}: write the tokenizer's size in its place (Llama 2's is 32000)",
                raw.vocab_size
            ))
        })?;
        let params = Self {
            dim: raw.dim,
            n_layers: raw.n_layers,
            n_heads: raw.n_heads,
            n_kv_heads: raw.n_kv_heads.unwrap_or(raw.n_heads),
            vocab_size,
            multiple_of: raw.multiple_of,
            ffn_dim_multiplier: raw.ffn_dim_multiplier.unwrap_or(1.0),
            norm_eps: raw.norm_eps,
            rope_theta: raw.rope_theta.unwrap_or(10_000.0),
            n_future_tokens: raw.n_future_tokens.unwrap_or(1),
        };
        params.validate()?;
        Ok(params)
    }
}

/// Name of the norm before a block's attention, without the block's prefix and `.weight` as all that follow.
pub(crate) const ATTENTION_NORM: &str = "attention_norm";
/// Matrices of queries, keys and values.
pub(crate) const QKV: [&str; 3] = ["attention.wq", "attention.wk", "attention.wv"];
/// Output of attention.
pub(crate) const WO: &str = "attention.wo";
/// Norm before the feed-forward half.
pub(crate) const FFN_NORM: &str = "ffn_norm";
/// Its gate and its way up.
pub(crate) const GATE_UP: [&str; 2] = ["feed_forward.w1", "feed_forward.w3"];
/// Its way down.
pub(crate) const W2: &str = "feed_forward.w2";

/// Names of a block's tensors in canonical order.
const BLOCK_TENSORS: [&str; 9] = [
    QKV[0],
    QKV[1],
    QKV[2],
    WO,
    GATE_UP[0],
    GATE_UP[1],
    W2,
    ATTENTION_NORM,
    FFN_NORM,
];

impl Params {
    /// The micro policy of the demo: 64 wide, 6 trunk blocks, 4 horizons, 4 heads. So narrow that weights, gradients
    /// and moments stay in a processor's cache.
    pub fn micro_mtp(vocab_size: usize) -> Self {
        Self {
            dim: 64,
            n_layers: 10,
            n_heads: 4,
            n_kv_heads: 4,
            vocab_size,
            multiple_of: 64,
            ffn_dim_multiplier: 1.0,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            n_future_tokens: 4,
        }
    }

    /// What tests of files and layouts work on: 2 trunk blocks and 2 heads, 16 wide, with grouped queries.
    #[cfg(test)]
    pub(crate) fn small() -> Self {
        Self {
            dim: 16,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: 2,
            multiple_of: 8,
            n_future_tokens: 2,
            ..Self::micro_mtp(23)
        }
    }

    /// Meta's `7B_1T_4` (spec 1.1), which tests of counts know the numbers of.
    #[cfg(test)]
    pub(crate) fn meta_7b() -> Self {
        Self {
            dim: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 32,
            multiple_of: 256,
            ..Self::micro_mtp(32_000)
        }
    }

    /// The micro reference: the same trunk with the next-token head alone.
    pub fn micro_ref(vocab_size: usize) -> Self {
        Self {
            n_layers: 7,
            n_future_tokens: 1,
            ..Self::micro_mtp(vocab_size)
        }
    }

    /// Reads and checks a `params.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let raw: RawParams =
            serde_json::from_slice(&bytes).map_err(|reason| Error::corrupt(path, reason))?;
        Self::try_from(raw).map_err(|error| match error {
            Error::Params(reason) => Error::Params(format!("{}: {reason}", path.display())),
            other => other,
        })
    }

    /// Parses `params.json` bytes.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|reason| Error::Params(reason.to_string()))
    }

    /// `params.json` bytes, keys in the order of the fields.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("numbers and names always serialize");
        bytes.push(b'\n');
        bytes
    }

    /// Writes `params.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_json()).map_err(|source| Error::io(path, source))
    }

    /// Checks what no layer could repair later.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::Params(reason));
        let sizes = [
            ("dim", self.dim),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("vocab_size", self.vocab_size),
            ("multiple_of", self.multiple_of),
            ("n_future_tokens", self.n_future_tokens),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return fail(format!("{name} is 0, expected at least 1"));
        }
        if self.n_layers <= self.n_future_tokens {
            return fail(format!(
                "n_layers {} counts the {} head blocks and leaves no trunk",
                self.n_layers, self.n_future_tokens
            ));
        }
        if !self.dim.is_multiple_of(self.n_heads) || !self.head_dim().is_multiple_of(2) {
            return fail(format!(
                "dim {} does not split into {} heads of even size",
                self.dim, self.n_heads
            ));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return fail(format!(
                "n_heads {} is no multiple of n_kv_heads {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        let factors = [
            ("norm_eps", self.norm_eps),
            ("rope_theta", self.rope_theta),
            ("ffn_dim_multiplier", self.ffn_dim_multiplier),
        ];
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if let Some((name, value)) = factors.iter().find(|(_, value)| !positive(*value)) {
            return fail(format!("{name} is {value}, expected a positive number"));
        }
        if self.ffn_dim() == 0 {
            return fail(format!(
                "ffn_dim_multiplier {} leaves no feed-forward width at dim {}",
                self.ffn_dim_multiplier, self.dim
            ));
        }
        Ok(())
    }

    /// Feed-forward width: `multiple_of · ⌈⌊mult·⌊8·dim/3⌋⌋ / multiple_of⌉`.
    ///
    /// ```
    /// assert_eq!(wmtp_model::Params::micro_mtp(512).ffn_dim(), 192);
    /// ```
    pub fn ffn_dim(&self) -> usize {
        let wanted = (self.ffn_dim_multiplier * (8 * self.dim / 3) as f64) as usize;
        wanted.div_ceil(self.multiple_of) * self.multiple_of
    }

    /// Size e of one head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Shared blocks before the heads.
    pub fn num_trunk_blocks(&self) -> usize {
        self.n_layers - self.n_future_tokens
    }

    /// Number of horizons H.
    pub fn num_horizons(&self) -> usize {
        self.n_future_tokens
    }

    /// The horizons 1 to H.
    pub fn horizons(&self) -> impl Iterator<Item = Horizon> + use<> {
        (1..=self.n_future_tokens).map(Horizon)
    }

    /// Number of scalars in all tensors.
    pub fn num_params(&self) -> usize {
        self.tensor_shapes()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Floating-point operations of one block's products with weights, forward: two for each weight of a matrix. Queries,
    /// keys and values are made of `positions`; what comes behind attention is made of `predicting` ones, which are all of
    /// them but in the block of a head.
    pub fn block_product_flops(&self, positions: usize, predicting: usize) -> f64 {
        let (query, key) = (
            self.n_heads * self.head_dim(),
            self.n_kv_heads * self.head_dim(),
        );
        let into_attention = positions * (query + 2 * key);
        let behind = predicting * (query + 3 * self.ffn_dim());
        2.0 * (self.dim * (into_attention + behind)) as f64
    }

    /// Floating-point operations of one block's attention, forward, over `rows` sequences of `width` positions: it is
    /// causal and sees half of the pairs.
    pub fn block_attention_flops(&self, rows: usize, width: usize) -> f64 {
        2.0 * (rows * width) as f64 * (width * self.n_heads * self.head_dim()) as f64
    }

    /// Floating-point operations of the unembedding, forward, for so many targets.
    pub fn unembedding_flops(&self, targets: usize) -> f64 {
        2.0 * (targets * self.dim * self.vocab_size) as f64
    }

    /// All tensors of the model with their shapes, in canonical order (Meta names).
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![(
            "tok_embeddings.weight".to_owned(),
            vec![self.vocab_size, self.dim],
        )];
        for block in 0..=self.num_trunk_blocks() {
            self.push_block(&mut shapes, &trunk_prefix(block));
        }
        for horizon in self.horizons().skip(1) {
            self.push_block(&mut shapes, &self.head_prefix(horizon));
        }
        shapes.push(("norm.weight".to_owned(), vec![self.dim]));
        shapes.push(("output.weight".to_owned(), vec![self.vocab_size, self.dim]));
        shapes
    }

    /// The tensors of a value model's trunk: embeddings, trunk blocks and the norm.
    pub fn value_trunk_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![(
            "tok_embeddings.weight".to_owned(),
            vec![self.vocab_size, self.dim],
        )];
        for block in 0..self.num_trunk_blocks() {
            self.push_block(&mut shapes, &trunk_prefix(block));
        }
        shapes.push(("norm.weight".to_owned(), vec![self.dim]));
        shapes
    }

    /// Name prefix of the block that serves a horizon: head 1 is the last of `layers`.
    pub fn head_prefix(&self, horizon: Horizon) -> String {
        if horizon.get() == 1 {
            trunk_prefix(self.num_trunk_blocks())
        } else {
            format!("extra_heads.{}", horizon.get() - 2)
        }
    }

    fn push_block(&self, shapes: &mut Vec<(String, Vec<usize>)>, prefix: &str) {
        let (dim, ffn) = (self.dim, self.ffn_dim());
        let kv = self.n_kv_heads * self.head_dim();
        for name in BLOCK_TENSORS {
            let shape = match name {
                ATTENTION_NORM | FFN_NORM => vec![dim],
                W2 => vec![dim, ffn],
                name if GATE_UP.contains(&name) => vec![ffn, dim],
                name if QKV[1..].contains(&name) => vec![kv, dim],
                _ => vec![dim, dim],
            };
            shapes.push((format!("{prefix}.{name}.weight"), shape));
        }
    }
}

/// Name prefix of block `index` under `layers`.
pub(crate) fn trunk_prefix(index: usize) -> String {
    format!("layers.{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_7b_layout_has_291_tensors_and_the_known_parameter_count() {
        let params = Params::meta_7b();
        assert_eq!(params.num_params(), 6_738_415_616);
        assert_eq!(params.tensor_shapes().len(), 291);
        assert_eq!(params.head_prefix(Horizon(1)), "layers.28");
        assert_eq!(params.head_prefix(Horizon(4)), "extra_heads.2");
    }

    #[test]
    fn ffn_width_follows_the_rounding_rule_of_the_spec() {
        let width = |dim| {
            Params {
                dim,
                ..Params::meta_7b()
            }
            .ffn_dim()
        };
        assert_eq!(
            [width(4096), width(512), width(384), width(256), width(128)],
            [11_008, 1536, 1024, 768, 512]
        );
    }

    #[test]
    fn the_arithmetic_of_the_7b_block_is_counted() {
        let params = Params::meta_7b();
        let (products, attention, unembedding) = (
            params.block_product_flops(3, 3),
            params.block_attention_flops(2, 2048),
            params.unembedding_flops(5),
        );
        // Scores and sums take 2 x 2 x 4096 operations for each of the pairs, which are half of both squares.
        let pairs = 2048.0 * 2048.0;
        assert_eq!(
            (products, attention, unembedding),
            (
                // Two for each weight of the block's matrices; its two norms hold 8,192 more.
                3.0 * 2.0 * 202_375_168.0,
                pairs * 4.0 * 4096.0,
                5.0 * 2.0 * 4096.0 * 32_000.0
            )
        );
    }

    #[test]
    fn json_round_trips_and_fills_llama_defaults() {
        let params = Params::micro_mtp(512);
        assert_eq!(Params::from_json(&params.to_json()).unwrap(), params);
        let short = br#"{"dim":64,"n_layers":3,"n_heads":4,"vocab_size":61,"multiple_of":8,"norm_eps":1e-5}"#;
        let read = Params::from_json(short).unwrap();
        assert_eq!((read.n_kv_heads, read.n_future_tokens), (4, 1));
    }

    #[test]
    fn the_vocabulary_that_metas_llama_2_leaves_open_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params.json");
        let llama_2 = br#"{"dim":4096,"multiple_of":256,"n_heads":32,"n_layers":32,"norm_eps":1e-05,"vocab_size":-1}"#;
        std::fs::write(&path, llama_2).unwrap();
        for (message, place) in [
            (Params::load(&path).unwrap_err().to_string(), "params.json"),
            (Params::from_json(llama_2).unwrap_err().to_string(), ""),
        ] {
            for part in ["vocab_size is -1", "the tokenizer's size", place] {
                assert!(message.contains(part), "{message}");
            }
            assert!(!message.contains("damaged"), "{message}");
        }
    }

    #[test]
    fn a_size_without_a_meaning_is_named_with_its_value() {
        type Change = fn(&mut Params);
        let good = Params::micro_mtp(512);
        let cases: [(Change, &str); 6] = [
            (|one| one.vocab_size = 0, "vocab_size is 0"),
            (|one| one.multiple_of = 0, "multiple_of is 0"),
            (|one| one.norm_eps = -1.0, "norm_eps is -1"),
            (|one| one.rope_theta = f64::NAN, "rope_theta is NaN"),
            (
                |one| one.ffn_dim_multiplier = 0.0,
                "ffn_dim_multiplier is 0",
            ),
            // Floored before it is rounded up to a multiple.
            (
                |one| one.ffn_dim_multiplier = 1e-3,
                "ffn_dim_multiplier 0.001 leaves no feed-forward width at dim 64",
            ),
        ];
        for (spoil, expected) in cases {
            let mut params = good.clone();
            spoil(&mut params);
            let message = params.validate().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn unknown_keys_and_models_without_a_trunk_are_refused() {
        let unknown = br#"{"dim":64,"n_layers":3,"n_heads":4,"vocab_size":61,"multiple_of":8,"norm_eps":1e-5,"dimm":1}"#;
        assert!(
            Params::from_json(unknown)
                .unwrap_err()
                .to_string()
                .contains("dimm")
        );
        let no_trunk = Params {
            n_layers: 4,
            ..Params::micro_mtp(512)
        };
        assert!(
            no_trunk
                .validate()
                .unwrap_err()
                .to_string()
                .contains("no trunk")
        );
    }
}

//! Cross-entropy of an unembedding with one weight per row, and the gather that selects rows for it.

use candle_core::Tensor;

pub use crate::ops::{LossGradients, SPAN_ROWS};

use crate::{Error, Products, Result, ops};

/// A weighted sum of cross-entropies and its terms.
#[derive(Debug, Clone)]
pub struct WeightedLoss {
    /// `Σ w_i · ce_i`, a scalar that differentiates to the hidden rows and the unembedding.
    pub sum: Tensor,
    /// Unweighted cross-entropy of each row, in nats; rows of weight 0 included.
    pub ce: Vec<f64>,
}

/// `Σ w_i · ce_i` with `ce_i = −log softmax(hidden_i · unembeddingᵀ)[target_i]` (spec 1.3).
///
/// `hidden [n, d]`, `unembedding [v, d]`. The caller divides by its number of targets; weights carry no
/// gradient and stay f64, since rounding them to f32 is visible in f64 comparisons. Of the logits those
/// of some rows exist at once: [`SPAN_ROWS`] on the CPU, 4,096 on a device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let hidden = Tensor::new(&[[0f64, 0.0]], &Device::Cpu)?;
/// let unembedding = Tensor::new(&[[1f64, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let loss = wmtp_model::loss::weighted_cross_entropy(
///     &hidden,
///     &unembedding,
///     &[1],
///     &[3.0],
///     wmtp_model::Products::F32,
/// )?;
/// assert!((loss.ce[0] - 2f64.ln()).abs() < 1e-12);
/// assert!((loss.sum.to_scalar::<f64>()? - 3.0 * 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn weighted_cross_entropy(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    weights: &[f64],
    products: Products,
) -> Result<WeightedLoss> {
    let (sum, ce) = ops::linear_cross_entropy(hidden, unembedding, targets, weights, products)?;
    Ok(WeightedLoss { sum, ce })
}

/// The gradients of `Σ w_i · ce_i` without a graph, as [`weighted_cross_entropy`] would give them: they are made in the
/// pass that computes the loss. That of the unembedding is made where it is a variable.
pub fn cross_entropy_gradients(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    weights: &[f64],
    products: Products,
) -> Result<LossGradients> {
    Ok(ops::cross_entropy_gradients(
        hidden,
        unembedding,
        targets,
        weights,
        products,
    )?)
}

/// Cross-entropy of each row in nats, without a graph.
pub fn cross_entropy(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    products: Products,
) -> Result<Vec<f64>> {
    let weights = vec![0.0; targets.len()];
    let (hidden, unembedding) = (hidden.detach(), unembedding.detach());
    let (_, ce) = ops::linear_cross_entropy(&hidden, &unembedding, targets, &weights, products)?;
    Ok(ce)
}

/// The rows `rows` of `x [.., d]`, counted over all dimensions before the last, as `[rows, d]`.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let Some((dim, before)) = x.dims().split_last() else {
        return Err(Error::Shape("a scalar has no rows to select".to_owned()));
    };
    let flat = x.reshape((before.iter().product::<usize>(), *dim))?;
    Ok(ops::embedding(&flat, rows)?)
}

//! The reference's own distance at a precision, and the elements that it can be asked of.

use crate::{Case, Precision, Values};

/// Relative noise of a gradient in f32 where the manifest states none.
const GRADIENT_NOISE: f64 = 1e-6;

/// The reference's own distance from its f64 run.
#[derive(Debug, Clone, PartialEq)]
pub struct Floor {
    /// `‖a−b‖ / ‖b‖` of the reference's run at this precision.
    pub rel_l2: f64,
    /// Elements whose distance may be held against it; all where `None`.
    pub resolved: Option<Vec<bool>>,
}

impl Floor {
    /// The floor of a key, where the manifest states one for this precision. There is none for f64: the golden
    /// is the reference's f64 run.
    pub(crate) fn of(case: &Case, key: &str, precision: Precision) -> Option<Self> {
        if precision == Precision::F64 {
            return None;
        }
        let rel_l2 = case.noise_floor(key, precision)?;
        let resolved = key
            .strip_prefix("param.step1.")
            .and_then(|name| resolved(case, name, precision));
        Some(Self { rel_l2, resolved })
    }
}

/// Elements of a parameter whose first step moves by less than half an ulp of the parameter when the gradient
/// moves by its noise.
///
/// Adam's first step is `lr · g / (|g| + eps)` with the clipped gradient g: near |g| = eps a rounding of g
/// moves it by up to the learning rate. How far the reference itself got there is luck (`spec/parity.md` 4.9).
fn resolved(case: &Case, name: &str, precision: Precision) -> Option<Vec<bool>> {
    let optimizer = case.optimizer().ok()?;
    let gradient = case.golden.get(&format!("grad.{name}"))?;
    let weight = case.weights.get(name)?;
    let norm = case.golden.get("trace.grad_norm")?.data.first()?;
    let clip = (optimizer.clip / (norm + 1e-6)).min(1.0);
    let noise = case
        .noise_floor(&format!("grad.{name}"), precision)
        .unwrap_or(GRADIENT_NOISE);
    let noise = clip * noise * root_mean_square(gradient);
    let half_ulp = f64::from(f32::EPSILON) / 4.0 * root_mean_square(weight);
    let moves = |g: &f64| {
        let spread = clip * g.abs() + optimizer.eps;
        optimizer.lr * optimizer.eps * noise / (spread * spread)
    };
    Some(gradient.data.iter().map(|g| moves(g) < half_ulp).collect())
}

fn root_mean_square(values: &Values) -> f64 {
    let squares: f64 = values.data.iter().map(|x| x * x).sum();
    (squares / values.data.len().max(1) as f64).sqrt()
}

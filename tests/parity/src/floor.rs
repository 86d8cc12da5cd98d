//! The reference's own distance at a precision, and the elements that it can be asked of.

use crate::compare::{Comparison, Gate};
use crate::subject::{Results, TOKEN_WEIGHTS};
use crate::{Case, Precision, Values};

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
    pub(crate) fn of(
        case: &Case,
        key: &str,
        precision: Precision,
        actual: &Results,
    ) -> Option<Self> {
        if precision == Precision::F64 {
            return None;
        }
        if key.starts_with("grad.") {
            return Some(Self {
                rel_l2: gradient_floor(case, key, precision, actual)?,
                resolved: None,
            });
        }
        let resolved = key
            .strip_prefix("param.step1.")
            .and_then(|name| resolved(case, name, precision, actual));
        Some(Self {
            rel_l2: case.noise_floor(key, precision)?,
            resolved,
        })
    }
}

/// The reference's low-precision runs took the token weights of its f64 run, ours made its own: gradients are
/// linear in them, so how far ours are from the golden's is noise that they were given.
fn gradient_floor(case: &Case, key: &str, precision: Precision, actual: &Results) -> Option<f64> {
    let arithmetic = case.noise_floor(key, precision)?;
    let given = match (actual.get(TOKEN_WEIGHTS), case.golden.get(TOKEN_WEIGHTS)) {
        (Some(ours), Some(golden)) if ours.shape == golden.shape => {
            Comparison::of(ours, golden, Gate::Exact, None).rel_l2
        }
        _ => 0.0,
    };
    Some(arithmetic + given)
}

/// Elements of a parameter whose first step moves by less than half an ulp of the parameter when the gradient
/// moves by its noise.
///
/// Adam's first step is `lr · g / (|g| + eps)` with the clipped gradient g: near |g| = eps a rounding of g
/// moves it by up to the learning rate. How far the reference itself got there is luck (`spec/parity.md` 4.9).
fn resolved(case: &Case, name: &str, precision: Precision, actual: &Results) -> Option<Vec<bool>> {
    let optimizer = case.optimizer().ok()?;
    let key = format!("grad.{name}");
    let gradient = case.golden.get(&key)?;
    let weight = case.weights.get(name)?;
    let after = case.golden.get(&format!("param.step1.{name}"))?;
    if [&gradient.shape, &weight.shape] != [&after.shape; 2] {
        return None;
    }
    let norm = case.golden.get("trace.grad_norm")?.data.first()?;
    let clip = (optimizer.clip / (norm + 1e-6)).min(1.0);
    let noise = gradient_floor(case, &key, precision, actual)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const GRADIENT: &str = "grad.layers.0.attention.wq.weight";
    const PARAMETER: &str = "param.step1.layers.0.attention.wq.weight";

    fn nano() -> (Case, Results) {
        let case = Case::load(Path::new("goldens/nano")).expect("the committed golden is whole");
        let weights = case.golden[TOKEN_WEIGHTS].clone();
        let results = Results::from([(TOKEN_WEIGHTS.to_owned(), weights)]);
        (case, results)
    }

    #[test]
    fn gradients_may_differ_by_what_their_weights_differ() {
        let (case, mut results) = nano();
        let floor = |results: &Results| {
            let floor = Floor::of(&case, GRADIENT, Precision::F32, results);
            floor.expect("nano states it").rel_l2
        };
        let same = floor(&results);
        assert_eq!(Some(same), case.noise_floor(GRADIENT, Precision::F32));
        let weights = results.get_mut(TOKEN_WEIGHTS).unwrap();
        weights.data.iter_mut().for_each(|w| *w *= 1.0 + 1e-6);
        assert!((floor(&results) - same - 1e-6).abs() < 1e-10);
        assert_eq!(Floor::of(&case, GRADIENT, Precision::F64, &results), None);
    }

    #[test]
    fn elements_with_a_gradient_near_epsilon_are_left_out() {
        let (mut case, results) = nano();
        let gradient = &mut case.golden.get_mut(GRADIENT).unwrap().data;
        gradient[..3].copy_from_slice(&[1e-8, -1e-7, 0.05]);
        let floor = Floor::of(&case, PARAMETER, Precision::F32, &results).unwrap();
        let resolved = floor.resolved.unwrap();
        assert_eq!(resolved[..3], [false, false, true]);
        let kept = resolved.iter().filter(|resolved| **resolved).count();
        assert!(
            kept * 100 > resolved.len() * 98,
            "{kept} of {}",
            resolved.len()
        );
    }

    #[test]
    fn a_gradient_of_another_shape_says_nothing_of_its_parameter() {
        let (mut case, results) = nano();
        let gradient = case.golden.get_mut(GRADIENT).unwrap();
        gradient.shape[0] -= 1;
        let count = gradient.shape.iter().product();
        gradient.data.truncate(count);
        let floor = Floor::of(&case, PARAMETER, Precision::F32, &results).unwrap();
        assert_eq!(floor.resolved, None);
    }
}

//! From values to advantages: the scores of the verifiable algorithm.

/// TD errors of one response, one per target token.
///
/// `values` are V at the states in which a response token is about to be chosen (positions `p-1 ..= T-2`),
/// so there are as many as targets. The reward arrives at the last target only:
/// `delta_j = gamma * V_j - V_{j-1}`, and `delta_last = reward - V_last`.
pub fn td_errors(values: &[f64], reward: f64, gamma: f64) -> Vec<f64> {
    let Some(&last) = values.last() else {
        return Vec::new();
    };
    let mut deltas: Vec<f64> = values
        .windows(2)
        .map(|pair| gamma * pair[1] - pair[0])
        .collect();
    deltas.push(reward - last);
    deltas
}

/// Generalised advantage estimates from TD errors: `A_j = delta_j + gamma * lambda * A_{j+1}`.
pub fn gae(td_errors: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    let mut advantages = td_errors.to_vec();
    let mut next = 0.0;
    for advantage in advantages.iter_mut().rev() {
        *advantage += gamma * lambda * next;
        next = *advantage;
    }
    advantages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tests::assert_close;
    use proptest::prelude::*;

    const VALUES: [f64; 4] = [0.5, 0.55, 0.4, 0.7];

    #[test]
    fn three_values_give_the_first_worked_deltas() {
        assert_close(
            &td_errors(&[0.5, 0.7, 0.9], 1.0, 1.0),
            &[0.2, 0.2, 0.1],
            1e-12,
        );
    }

    #[test]
    fn right_and_wrong_solutions_give_the_worked_advantages() {
        let right = td_errors(&VALUES, 1.0, 1.0);
        assert_close(&right, &[0.05, -0.15, 0.30, 0.30], 1e-12);
        assert_close(
            &gae(&right, 1.0, 0.95),
            &[0.435_462, 0.405_750, 0.585_000, 0.300_000],
            1e-6,
        );

        let wrong = td_errors(&VALUES, 0.0, 1.0);
        assert_close(&wrong, &[0.05, -0.15, 0.30, -0.70], 1e-12);
        assert_close(
            &gae(&wrong, 1.0, 0.95),
            &[-0.421_912, -0.496_750, -0.365_000, -0.700_000],
            1e-6,
        );
    }

    #[test]
    fn an_empty_response_has_no_advantages() {
        assert!(gae(&td_errors(&[], 1.0, 1.0), 1.0, 0.95).is_empty());
    }

    proptest! {
        /// With gamma = lambda = 1 the sum telescopes: the advantage is what was won over the state's value.
        #[test]
        fn undiscounted_advantages_are_reward_minus_value(
            values in prop::collection::vec(0.0f64..1.0, 1..40),
            reward in prop::sample::select(vec![0.0, 1.0]),
        ) {
            let advantages = gae(&td_errors(&values, reward, 1.0), 1.0, 1.0);
            for (advantage, value) in advantages.iter().zip(&values) {
                prop_assert!((advantage - (reward - value)).abs() < 1e-9);
            }
        }

        #[test]
        fn lambda_zero_leaves_the_td_errors(values in prop::collection::vec(0.0f64..1.0, 1..40)) {
            let deltas = td_errors(&values, 1.0, 0.9);
            prop_assert_eq!(gae(&deltas, 0.9, 0.0), deltas);
        }
    }
}

//! The catalogue: low-risk changes of one setting, each with the figures that call for it.

use serde_json::{Value, json};
use wmtp_recipe::{Algo, Recipe, Rho1Weighting};
use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow};
use wmtp_stats::wording::{percent, points, signed, signed_range};

use crate::figures::Figures;
use crate::training::WeightFacts;

/// A version as the catalogue looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The board that it stands on.
    pub board: &'a Leaderboard,
    /// Its row.
    pub row: &'a LeaderboardRow,
    /// Its figures.
    pub figures: &'a Figures,
    /// Its recipe.
    pub recipe: &'a Recipe,
}

/// A change of one setting.
pub struct Entry {
    /// Its name in action files.
    pub name: &'static str,
    /// The setting.
    pub key: &'static str,
    /// What is hoped for.
    pub goal: &'static str,
    /// What may go wrong.
    pub risk: &'static str,
    /// Whether it mends the version itself; others start from a version that is no dead end.
    pub mends: bool,
    propose: fn(&Case<'_>) -> Option<Proposal>,
}

/// An entry whose pre-condition holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The setting's new value.
    pub value: Value,
    /// The figure that calls for it.
    pub because: String,
    /// What it should do.
    pub expected_impact: String,
}

impl Entry {
    /// The change for a version, where its pre-condition holds.
    pub fn propose(&self, case: &Case<'_>) -> Option<Proposal> {
        (self.propose)(case)
    }
}

/// Share of tokens at a bound from which the bound shapes the weights.
const MANY_AT_BOUND: f64 = 0.05;
/// Standard deviation below which weights are hardly weights.
const NEARLY_UNIFORM: f64 = 0.25;
/// Normalised entropy below which a few tokens carry everything.
const CONCENTRATED: f64 = 0.8;

/// Every change, the first ones preferred.
pub const CATALOGUE: [Entry; 14] = [
    Entry {
        name: "weigh-by-advantage",
        key: "experiment.algo",
        goal: "learn whether tokens that decide over correctness are worth more",
        risk: "weights of a weak value model add noise to the gradient; the step size stays, since their mean is 1",
        mends: false,
        propose: |case| {
            (case.recipe.experiment.algo == Algo::Baseline).then(|| Proposal {
                value: json!("verifiable"),
                because: format!(
                    "{} counts every token the same and solves {}",
                    case.id(),
                    case.level()
                ),
                expected_impact: case.unknown_sign(),
            })
        },
    },
    Entry {
        name: "halve-blend",
        key: "weights.blend",
        goal: "keep what the weights teach and lose half of what they cost",
        risk: "low: it moves towards plain multi-token prediction",
        mends: true,
        propose: |case| {
            let loss = case.loss_to_baseline()?;
            let blend = case.recipe.weights.blend;
            (case.has_weights() && !case.is_hard() && blend > 0.2).then(|| Proposal {
                value: json!(blend / 2.0),
                because: format!(
                    "{} lies {} behind its baseline {} ({})",
                    case.id(),
                    points(-loss.difference.difference).trim_start_matches('+'),
                    loss.other,
                    signed_range(&loss.difference.interval)
                ),
                expected_impact: format!(
                    "pass_at_1 {} against {}, if the cost is in proportion to the share of the weights",
                    points(-loss.difference.difference / 2.0),
                    case.id()
                ),
            })
        },
    },
    Entry {
        name: "train-value-model",
        key: "stage1.epochs",
        goal: "weights from a value model that knows which programs pass",
        risk: "a longer stage 1 may learn the training problems by heart; its accuracy is measured on held-out ones",
        mends: true,
        propose: |case| {
            let (accuracy, gate) = (
                case.figures.training.value_accuracy?,
                case.recipe.stage1.gate,
            );
            (case.recipe.experiment.algo.needs_advantages() && accuracy < gate).then(|| Proposal {
                value: json!(case.recipe.stage1.epochs * 2.0),
                because: format!(
                    "its value model ranks {} of held-out pairs right, and a useful one {}",
                    percent(accuracy),
                    percent(gate)
                ),
                expected_impact: format!(
                    "pairwise accuracy above {}; {}",
                    percent(accuracy),
                    case.unknown_sign()
                ),
            })
        },
    },
    Entry {
        name: "soften-weights",
        key: "weights.temperature",
        goal: "let the order among strong tokens count again",
        risk: "low: softer weights lie nearer to plain multi-token prediction",
        mends: true,
        propose: |case| {
            let (facts, temperature) = (case.weights()?, case.recipe.weights.temperature);
            (!case.selects() && facts.clip_high > MANY_AT_BOUND && temperature < 4.0).then(|| {
                Proposal {
                    value: json!(temperature * 2.0),
                    because: format!(
                        "{} of its tokens sit at the upper bound of the weights",
                        percent(facts.clip_high)
                    ),
                    expected_impact: format!(
                        "fewer than {} at the bound; {}",
                        percent(facts.clip_high),
                        case.unknown_sign()
                    ),
                }
            })
        },
    },
    Entry {
        name: "sharpen-weights",
        key: "weights.temperature",
        goal: "give the weights a say at all",
        risk: "sharper weights have more variance; their mean stays 1 and their bounds hold",
        mends: true,
        propose: |case| {
            let (facts, temperature) = (case.weights()?, case.recipe.weights.temperature);
            (!case.selects() && facts.std < NEARLY_UNIFORM && temperature > 0.3).then(|| Proposal {
                value: json!(temperature / 2.0),
                because: format!("its weights spread by {:.2} around 1 only", facts.std),
                expected_impact: format!(
                    "a spread above {:.2}; {}",
                    facts.std,
                    case.unknown_sign()
                ),
            })
        },
    },
    Entry {
        name: "control-by-shuffling",
        key: "experiment.algo",
        goal: "learn whether it matters which token gets which weight",
        risk: "none for the result: a control is not meant to win",
        mends: false,
        propose: |case| case.control("shuffled"),
    },
    Entry {
        name: "control-by-chance",
        key: "experiment.algo",
        goal: "learn whether weights that know nothing do the same",
        risk: "none for the result: a control is not meant to win",
        mends: false,
        propose: |case| case.control("random_matched"),
    },
    Entry {
        name: "narrow-weights",
        key: "weights.w_max",
        goal: "keep single tokens from carrying a step",
        risk: "low: a narrower range lies nearer to plain multi-token prediction",
        mends: true,
        propose: |case| {
            let facts = case.weights()?;
            // Selected tokens have one weight, and a bound above it moves none.
            let binds = !case.selects() || facts.clip_high > 0.0;
            (binds && facts.entropy < CONCENTRATED && case.recipe.weights.w_max > 2.0).then(|| {
                Proposal {
                    value: json!(2.0),
                    because: format!(
                        "the normalised entropy of its weights is {:.2}: few tokens carry much",
                        facts.entropy
                    ),
                    expected_impact: format!(
                        "an entropy above {:.2}; {}",
                        facts.entropy,
                        case.unknown_sign()
                    ),
                }
            })
        },
    },
    Entry {
        name: "weigh-by-excess",
        key: "experiment.algo",
        goal: "learn whether tokens that a reference finds easier are worth more",
        risk: "a weak reference calls noise learnable; the step size stays, since the mean of the weights is 1",
        mends: false,
        propose: |case| {
            let fits = matches!(
                case.recipe.experiment.algo,
                Algo::Baseline | Algo::Verifiable
            );
            fits.then(|| Proposal {
                value: json!("rho1"),
                because: format!("{} solves {} without a reference", case.id(), case.level()),
                expected_impact: case.unknown_sign(),
            })
        },
    },
    Entry {
        name: "rewards-alone",
        key: "score.lambda_gae",
        goal: "take the advantage from the outcome, not from differences of values",
        risk: "advantages of one program become more alike, so that weights say less about single tokens",
        mends: false,
        propose: |case| {
            let accuracy = case.figures.training.value_accuracy?;
            (case.recipe.experiment.algo == Algo::Verifiable && case.recipe.score.lambda_gae < 1.0)
                .then(|| Proposal {
                    value: json!(1.0),
                    because: format!(
                        "advantages lean on a value model that ranks {} of pairs right",
                        percent(accuracy)
                    ),
                    expected_impact: case.unknown_sign(),
                })
        },
    },
    Entry {
        name: "learnt-is-learnt",
        key: "rho1.min_ce_diff",
        goal: "ignore tokens whose excess is too small to mean anything",
        risk: "low: it silences small scores and changes no large one",
        mends: false,
        propose: |case| {
            let least = case.recipe.rho1.min_ce_diff;
            let facts = case.weights()?;
            (case.recipe.experiment.algo == Algo::Rho1 && least < 0.1).then(|| Proposal {
                value: json!(least * 5.0),
                because: format!(
                    "its weights spread by {:.2}, down to excesses of {least} nats",
                    facts.std
                ),
                expected_impact: case.unknown_sign(),
            })
        },
    },
    Entry {
        name: "best-share-of-tokens",
        key: "rho1.weighting",
        goal: "train on the tokens with the most excess and spare the others",
        risk: "unselected tokens keep a small weight alone, so rare forms may be forgotten",
        mends: false,
        propose: |case| {
            let fits = case.recipe.experiment.algo == Algo::Rho1
                && case.recipe.rho1.weighting == Rho1Weighting::Continuous;
            let facts = case.weights().filter(|_| fits)?;
            Some(Proposal {
                value: json!("topk"),
                because: format!("continuous weights spread by {:.2} around 1", facts.std),
                expected_impact: case.unknown_sign(),
            })
        },
    },
    Entry {
        name: "train-longer",
        key: "optim.epochs",
        goal: "reach the end of learning",
        risk: "more compute for every version",
        mends: false,
        propose: |case| {
            let (best, last) = (
                case.figures.training.best_step?,
                case.figures.training.last_step?,
            );
            (best >= last as f64).then(|| Proposal {
                value: json!(case.recipe.optim.epochs * 1.5),
                because: format!("its validation loss was smallest at its last step, {last}"),
                expected_impact: "a smaller validation loss".to_owned(),
            })
        },
    },
    Entry {
        name: "halve-learning-rate",
        key: "optim.lr",
        goal: "go on improving until the last step",
        risk: "slower learning",
        mends: false,
        propose: |case| {
            let (best, last) = (
                case.figures.training.best_step?,
                case.figures.training.last_step?,
            );
            (best < 0.7 * last as f64).then(|| Proposal {
                value: json!(case.recipe.optim.lr / 2.0),
                because: format!("its validation loss was smallest at step {best:.0} of {last}"),
                expected_impact: "a validation loss that falls until the end".to_owned(),
            })
        },
    },
];

impl Case<'_> {
    fn id(&self) -> &str {
        &self.row.version_id
    }

    fn level(&self) -> String {
        self.row.estimate.map_or_else(
            || "none known".to_owned(),
            |estimate| percent(estimate.mean),
        )
    }

    /// Whether weights that mean something shape the training.
    fn has_weights(&self) -> bool {
        matches!(self.recipe.experiment.algo, Algo::Verifiable | Algo::Rho1)
    }

    /// Whether scores are compared alone: no temperature then shapes the weights.
    fn selects(&self) -> bool {
        self.recipe.experiment.algo == Algo::Rho1
            && self.recipe.rho1.weighting == Rho1Weighting::Topk
    }

    /// Whether tokens that are left out weigh nothing, which no blend may change.
    fn is_hard(&self) -> bool {
        self.selects() && self.recipe.rho1.hard
    }

    fn weights(&self) -> Option<WeightFacts> {
        self.figures.training.weights.filter(|_| self.has_weights())
    }

    /// The comparison with the baseline, where its interval lies below 0.
    fn loss_to_baseline(&self) -> Option<&Comparison> {
        let against = self.row.against_baseline.as_ref()?;
        (against.difference.interval.high < 0.0).then_some(against)
    }

    fn control(&self, algo: &str) -> Option<Proposal> {
        let gain = self.row.against_baseline.as_ref()?;
        let is_gain = gain.difference.interval.low > 0.0;
        let is_there = self.board.rows.iter().any(|row| row.algo == algo);
        let fits = self.recipe.experiment.algo == Algo::Verifiable && is_gain && !is_there;
        fits.then(|| Proposal {
            value: json!(algo),
            because: format!(
                "{} leads its baseline {} by {} ({}), and no control says that its weights are the reason",
                self.id(),
                gain.other,
                points(gain.difference.difference).trim_start_matches('+'),
                signed_range(&gain.difference.interval)
            ),
            expected_impact: format!(
                "pass_at_1 {} points against {}, if the place of the weights is what helps",
                signed(-gain.difference.difference),
                self.id()
            ),
        })
    }

    /// For changes that may help or harm: from where on the tasks would show it.
    fn unknown_sign(&self) -> String {
        let least = self
            .board
            .resolution
            .map(|resolution| resolution.significant)
            .or_else(|| Some(self.row.estimate?.interval.half_width()));
        match least {
            Some(least) => format!(
                "pass_at_1 against {} may move either way; these {} tasks call a difference significant from about {} points on",
                self.id(),
                self.board.num_tasks,
                signed(least).trim_start_matches('+')
            ),
            None => format!("pass_at_1 against {} may move either way", self.id()),
        }
    }
}

//! Rules between settings (specification 3.4).

use crate::Error;
use crate::resolve::{Origin, Resolved};
use crate::schema::{Algo, LoraTarget, Normalise, Recipe, Rho1, Rho1Weighting, Weights, Whiten};

/// Tokens of the longest row that a model reads: the positions for which it has angles, twice the longest sequence of the
/// 7B model. A test holds it against the model's own number.
pub const MAX_LENGTH: usize = 4096;

impl Recipe {
    /// Checks every rule that the settings alone can break.
    ///
    /// # Errors
    /// [`Error::Rule`] names the first setting that breaks one.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_version()?;
        self.validate_data()?;
        self.validate_training()?;
        self.validate_lora()?;
        self.validate_baseline()?;
        self.validate_weights()?;
        self.validate_evaluation()
    }

    fn validate_version(&self) -> Result<(), Error> {
        let id = &self.version.id;
        let is_name = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if !is_name(id) {
            let rule = "a version has a name of letters, digits, `-`, `_` and `.`, such as v001";
            return Err(Error::rule("version.id", format!("\"{id}\""), rule));
        }
        if self.version.parent.as_deref() == Some(id) {
            return Err(Error::rule(
                "version.parent",
                id,
                "a version is not its own parent",
            ));
        }
        if self.version.parent.is_some() != self.version.change.is_some() {
            let rule = "a parent and the one change against it are given together or not at all";
            let given = self.version.change.as_deref().unwrap_or("null");
            return Err(Error::rule("version.change", given, rule));
        }
        Ok(())
    }

    fn validate_data(&self) -> Result<(), Error> {
        at_least("model.horizon", self.model.horizon, 1)?;
        let length = self.data.max_length;
        let rule = format!("from 8 to {MAX_LENGTH}, where the positions of models end");
        let holds = (8..=MAX_LENGTH).contains(&length);
        ensure("data.max_length", length, holds, rule)?;
        at_least("data.num_problems", self.data.num_problems, 1)?;
        at_least(
            "data.solutions_per_problem",
            self.data.solutions_per_problem,
            2,
        )?;
        // 256 bytes, begin, end and padding.
        at_least("data.vocab_size", self.data.vocab_size, 259)?;
        share("data.validation_share", self.data.validation_share)?;
        share("data.test_share", self.data.test_share)?;
        let held_out = self.data.validation_share + self.data.test_share;
        if held_out >= 1.0 {
            let rule = "validation and test together leave something to train on";
            return Err(Error::rule("data.test_share", self.data.test_share, rule));
        }
        Ok(())
    }

    fn validate_training(&self) -> Result<(), Error> {
        let optim = &self.optim;
        positive("optim.epochs", optim.epochs)?;
        positive("optim.lr", optim.lr)?;
        positive("optim.eps", optim.eps)?;
        positive("optim.grad_clip", optim.grad_clip)?;
        for (key, beta) in [("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)] {
            ensure(key, beta, (0.0..1.0).contains(&beta), "0 <= beta < 1")?;
        }
        let decay = optim.weight_decay;
        ensure("optim.weight_decay", decay, decay >= 0.0, "at least 0")?;
        share("optim.warmup_ratio", optim.warmup_ratio)?;
        share("optim.min_lr_ratio", optim.min_lr_ratio)?;
        at_least("optim.batch_sequences", optim.batch_sequences, 1)?;
        at_least("optim.eval_every_steps", optim.eval_every_steps, 1)?;
        at_least(
            "optim.checkpoint_every_steps",
            optim.checkpoint_every_steps,
            1,
        )?;
        at_least("optim.keep_last", optim.keep_last, 1)?;
        at_least(
            "optim.micro_batch_sequences",
            optim.micro_batch_sequences,
            1,
        )?;
        let whole = optim
            .batch_sequences
            .is_multiple_of(optim.micro_batch_sequences);
        let rule = format!(
            "it divides optim.batch_sequences, {}",
            optim.batch_sequences
        );
        ensure(
            "optim.micro_batch_sequences",
            optim.micro_batch_sequences,
            whole,
            rule,
        )?;

        if let Some(minutes) = optim.checkpoint_minutes {
            at_least("optim.checkpoint_minutes", minutes, 1)?;
        }
        if let Some(patience) = optim.early_stop_patience {
            at_least("optim.early_stop_patience", patience, 1)?;
        }
        let delta = optim.early_stop_min_delta;
        ensure(
            "optim.early_stop_min_delta",
            delta,
            delta >= 0.0,
            "at least 0",
        )?;
        let used = delta == 0.0 || optim.early_stop_patience.is_some();
        let rule = "it means something only beside optim.early_stop_patience";
        ensure("optim.early_stop_min_delta", delta, used, rule)?;

        positive("stage1.epochs", self.stage1.epochs)?;
        let lr = self.stage1.lr_trunk;
        let rule = "at least 0, which freezes the trunk";
        ensure("stage1.lr_trunk", lr, lr >= 0.0, rule)?;
        let r = self.stage1.lora_r;
        let rule = "the adapters of a trunk learn at stage1.lr_trunk, which is 0 and freezes it";
        ensure("stage1.lora_r", r, r == 0 || lr > 0.0, rule)?;
        positive("stage1.lr_head", self.stage1.lr_head)?;
        at_least("stage1.batch_sequences", self.stage1.batch_sequences, 1)?;
        share("stage1.gate", self.stage1.gate)?;
        positive("reference.epochs", self.reference.epochs)?;
        positive("reference.lr", self.reference.lr)?;
        at_least(
            "reference.batch_sequences",
            self.reference.batch_sequences,
            1,
        )
    }

    fn validate_lora(&self) -> Result<(), Error> {
        positive("lora.alpha", self.lora.alpha)?;
        let dropout = self.lora.dropout;
        let holds = (0.0..1.0).contains(&dropout);
        ensure("lora.dropout", dropout, holds, "0 <= dropout < 1")?;
        let used = dropout == 0.0 || self.lora.r > 0;
        let rule = "it means something only beside lora.r above 0";
        ensure("lora.dropout", dropout, used, rule)?;
        let targets = &self.lora.targets;
        let words: Vec<_> = targets.iter().map(|target| target.as_str()).collect();
        let order: Vec<_> = LoraTarget::ALL.iter().map(|one| one.as_str()).collect();
        let holds = !targets.is_empty() && targets.is_sorted_by(|a, b| a < b);
        let rule = format!("at least one, each once, in the order {}", order.join(", "));
        ensure(
            "lora.targets",
            format!("[{}]", words.join(", ")),
            holds,
            rule,
        )
    }

    fn validate_weights(&self) -> Result<(), Error> {
        share("score.gamma", self.score.gamma)?;
        share("score.lambda_gae", self.score.lambda_gae)?;
        let ratio = self.rho1.ratio;
        ensure(
            "rho1.ratio",
            ratio,
            ratio > 0.0 && ratio <= 1.0,
            "0 < ratio <= 1",
        )?;
        self.validate_hard_selection()?;
        let diff = self.rho1.min_ce_diff;
        ensure("rho1.min_ce_diff", diff, diff >= 0.0, "at least 0 nats")?;
        let weights = &self.weights;
        positive("weights.temperature", weights.temperature)?;
        let eps_holds = weights.eps > 0.0 && weights.eps <= 1.0;
        ensure("weights.eps", weights.eps, eps_holds, "0 < eps <= 1")?;
        ensure(
            "weights.w_max",
            weights.w_max,
            weights.w_max >= 1.0,
            "at least 1",
        )?;
        let floor = weights.entropy_floor;
        let rule = "0 <= floor < 1: only equal weights have an entropy of 1";
        let holds = (0.0..1.0).contains(&floor);
        ensure("weights.entropy_floor", floor, holds, rule)?;
        share("weights.blend", weights.blend)?;
        self.validate_scopes()
    }

    /// Advantages are known before the step and are of the data set; the excess of Rho-1 moves with the policy and is
    /// known only within a micro-batch.
    fn validate_scopes(&self) -> Result<(), Error> {
        let (whiten, normalise) = (self.weights.whiten, self.weights.normalise);
        let algo = self.experiment.algo;
        if algo.needs_advantages() {
            let rule = format!("{algo} has scores of a data set: auto, dataset or own");
            ensure("weights.whiten", whiten, whiten != Whiten::Ema, rule)?;
            let rule =
                format!("{algo} weighs all targets of a step at once: auto, step or sequence");
            let holds = normalise != Normalise::MicroBatch;
            return ensure("weights.normalise", normalise, holds, rule);
        }
        if algo.needs_reference() {
            let rule = "the excess of rho1 moves with the policy: auto, ema or own";
            ensure("weights.whiten", whiten, whiten != Whiten::Dataset, rule)?;
            let rule =
                "rho1 knows the excess of one micro-batch at a time: auto, micro_batch or sequence";
            let holds = normalise != Normalise::Step;
            ensure("weights.normalise", normalise, holds, rule)?;
            return self.validate_selection();
        }
        Ok(())
    }

    /// A selection compares scores: what shapes an exponential of them would change nothing.
    fn validate_selection(&self) -> Result<(), Error> {
        if self.rho1.weighting == Rho1Weighting::Continuous {
            return Ok(());
        }
        let (weights, default) = (&self.weights, Weights::default());
        let rule = "rho1.weighting topk compares scores and whitens none";
        let holds = weights.whiten == Whiten::Auto;
        ensure("weights.whiten", weights.whiten, holds, rule)?;
        let shapes = [
            (
                "weights.temperature",
                weights.temperature,
                default.temperature,
            ),
            (
                "weights.entropy_floor",
                weights.entropy_floor,
                default.entropy_floor,
            ),
        ];
        for (key, value, default) in shapes {
            let rule = format!(
                "rho1.weighting topk compares scores and takes no exponential of them: leave it at {default}"
            );
            ensure(key, value, value.to_bits() == default.to_bits(), rule)?;
        }
        let rule = "with rho1.hard the tokens left out weigh nothing, and a blend would give them weight: leave it at 1";
        let holds = !self.rho1.hard || weights.blend >= 1.0;
        ensure("weights.blend", weights.blend, holds, rule)
    }

    /// A baseline has no scores, whoever sets them.
    fn validate_baseline(&self) -> Result<(), Error> {
        if self.experiment.algo != Algo::Baseline {
            return Ok(());
        }
        let set = Self::default().differences(self);
        let stray = set
            .into_iter()
            .find_map(|key| Some((key, self.unread(key)?)));
        stray.map_or(Ok(()), |(key, rule)| {
            Err(Error::rule(key, self.words(key), rule))
        })
    }

    /// A setting's value as messages have it.
    fn words(&self, key: &str) -> String {
        let value = self.setting(key).unwrap_or_default();
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Why the weights would be the same whatever a setting of scores says: the algorithm does not read it. Nothing where it
    /// does. Settings of stage 1 are not looked at: a version holds them for those that are derived from it.
    pub fn unread(&self, key: &str) -> Option<String> {
        let algo = self.experiment.algo;
        match key.split('.').next() {
            Some("score" | "rho1" | "weights") if algo == Algo::Baseline => Some(
                "the baseline weighs every token the same, so its recipe sets no scores".to_owned(),
            ),
            Some("score") if !algo.needs_advantages() => {
                Some(format!("{algo} has no advantages, and does not read it"))
            }
            Some("rho1") if !algo.needs_reference() => {
                Some(format!("{algo} has no excess loss, and does not read it"))
            }
            _ if key == "rho1.ratio" && self.rho1.weighting == Rho1Weighting::Continuous => {
                Some("it means something only beside rho1.weighting topk".to_owned())
            }
            _ => None,
        }
    }

    /// Refuses a change after which the same bytes are trained.
    pub(crate) fn ensure_effect(&self, key: &str, before: &Self) -> Result<(), Error> {
        if let Some(rule) = self.unread(key) {
            return Err(Error::rule(key, self.words(key), rule));
        }
        let is_scope = ["weights.whiten", "weights.normalise"].contains(&key);
        let algo = self.experiment.algo;
        let rule = format!("it is that already, which is what auto stands for with {algo}");
        let holds = !is_scope || self.scopes() != before.scopes();
        ensure(key, self.words(key), holds, rule)
    }

    /// What `auto` stands for, where it stands.
    fn scopes(&self) -> (Whiten, Normalise) {
        let has_advantages = self.experiment.algo.needs_advantages();
        let whiten = match self.weights.whiten {
            Whiten::Auto if has_advantages => Whiten::Dataset,
            Whiten::Auto => Whiten::Ema,
            named => named,
        };
        let normalise = match self.weights.normalise {
            Normalise::Auto if has_advantages => Normalise::Step,
            Normalise::Auto => Normalise::MicroBatch,
            named => named,
        };
        (whiten, normalise)
    }

    /// Where the tokens left out weigh nothing, the others share the weight of all.
    fn validate_hard_selection(&self) -> Result<(), Error> {
        let Rho1 {
            weighting,
            ratio,
            hard,
            ..
        } = self.rho1;
        if !hard {
            return Ok(());
        }
        let rule = "it means something only beside rho1.weighting topk";
        ensure("rho1.hard", hard, weighting == Rho1Weighting::Topk, rule)?;
        let w_max = self.weights.w_max;
        let rule = format!(
            "with rho1.hard a token that is kept weighs 1 / ratio, and weights.w_max is {w_max}: raise one of the two"
        );
        ensure("rho1.ratio", ratio, ratio * w_max >= 1.0, rule)
    }

    fn validate_evaluation(&self) -> Result<(), Error> {
        let evaluation = &self.evaluation;
        let temperature = evaluation.temperature;
        ensure(
            "evaluation.temperature",
            temperature,
            temperature >= 0.0,
            "at least 0",
        )?;
        let top_p = evaluation.top_p;
        ensure(
            "evaluation.top_p",
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "0 < top_p <= 1",
        )?;
        at_least("evaluation.num_samples", evaluation.num_samples as usize, 1)?;
        self.validate_search()?;
        at_least("evaluation.max_new_tokens", evaluation.max_new_tokens, 1)?;
        positive("evaluation.cpu_secs", evaluation.cpu_secs)?;
        positive("evaluation.wall_secs", evaluation.wall_secs)?;
        at_least("evaluation.memory_mib", evaluation.memory_mib as usize, 16)?;
        if let Some(limit) = evaluation.max_problems {
            at_least("evaluation.max_problems", limit, 1)?;
        }
        let samples = evaluation.num_samples;
        let ks_hold = !evaluation.ks.is_empty()
            && evaluation.ks.iter().all(|k| (1..=samples).contains(k))
            && evaluation.ks.is_sorted_by(|a, b| a < b);
        let rule = format!("rising numbers from 1 to evaluation.num_samples, {samples}");
        ensure(
            "evaluation.ks",
            format!("{:?}", evaluation.ks),
            ks_hold,
            rule,
        )
    }
}

impl Recipe {
    /// Drawing and searching exclude each other.
    fn validate_search(&self) -> Result<(), Error> {
        let evaluation = &self.evaluation;
        let (temperature, beams) = (evaluation.temperature, evaluation.beams);
        if let Some(most) = evaluation.top_k {
            at_least("evaluation.top_k", most, 1)?;
            let rule = "it means something only where tokens are drawn, at an evaluation.temperature above 0";
            ensure("evaluation.top_k", most, temperature > 0.0, rule)?;
        }
        at_least("evaluation.beams", beams, 1)?;
        let penalty = evaluation.length_penalty;
        ensure(
            "evaluation.length_penalty",
            penalty,
            penalty >= 0.0,
            "at least 0",
        )?;
        if beams == 1 {
            let is_default = (penalty - 1.0).abs() < f64::EPSILON;
            let rule = "it means something only beside evaluation.beams above 1";
            return ensure("evaluation.length_penalty", penalty, is_default, rule);
        }
        let rule = format!(
            "a beam search draws nothing: evaluation.temperature must be 0, it is {temperature}"
        );
        ensure("evaluation.beams", beams, temperature == 0.0, rule)?;
        let samples = evaluation.num_samples;
        let rule = format!(
            "a beam search finds one text: evaluation.num_samples must be 1, it is {samples}"
        );
        ensure("evaluation.beams", beams, samples == 1, rule)
    }
}

/// Settings that the algorithm does not read are a mistake where they are meant for it: in a baseline wherever they come from,
/// with other algorithms in the file of the version itself. What it extends, `--set` and variables serve several versions.
pub(crate) fn origins(resolved: &Resolved, own: Option<&str>) -> Result<(), Error> {
    let recipe = &resolved.recipe;
    let is_baseline = recipe.experiment.algo == Algo::Baseline;
    let differing = Recipe::default().differences(recipe);
    // Another algorithm tried on a recipe does not make the recipe wrong.
    let is_tried = ["experiment.algo", "rho1.weighting"]
        .iter()
        .filter_map(|key| resolved.origin(key))
        .any(|origin| !matches!(origin, Origin::Default | Origin::Recipe(_)));
    let is_meant = |key: &&str, origin: &Origin| match origin {
        Origin::Default => false,
        _ if is_baseline => true,
        Origin::Recipe(location) => !is_tried && own == Some(location) && differing.contains(key),
        _ => false,
    };
    for (key, origin) in &resolved.origins {
        if is_meant(key, origin)
            && let Some(rule) = recipe.unread(key)
        {
            return Err(Error::rule(key, format!("set by {origin}"), rule));
        }
    }
    Ok(())
}

fn ensure(
    key: &str,
    value: impl ToString,
    holds: bool,
    rule: impl Into<String>,
) -> Result<(), Error> {
    if holds {
        return Ok(());
    }
    Err(Error::rule(key, value, rule))
}

fn at_least(key: &str, value: usize, least: usize) -> Result<(), Error> {
    ensure(key, value, value >= least, format!("at least {least}"))
}

fn positive(key: &str, value: f64) -> Result<(), Error> {
    ensure(key, value, value > 0.0, "more than 0")
}

fn share(key: &str, value: f64) -> Result<(), Error> {
    ensure(key, value, (0.0..=1.0).contains(&value), "from 0 to 1")
}

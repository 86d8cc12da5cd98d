//! The schema: every setting with its type, default and meaning.
//!
//! Defaults are the column "[REC] default" of the specification, 1.12; micro-sized recipes override them. One differs: `model.dtype`
//! is f32, where the column has bf16 beside an f32 master copy, since bf16 is slower than f32 on most processors.

use serde::{Deserialize, Serialize};
use wmtp_records::Split;

use crate::setting::{Affects, Leaf, Shape, section, words};

words! {
    /// How tokens get their weights.
    Algo {
        /// Every token counts the same.
        Baseline = "baseline",
        /// Advantages of a value model that has seen whether programs pass.
        Verifiable = "verifiable",
        /// Excess loss against a tuned reference.
        Rho1 = "rho1",
        /// Control: weights drawn from the histogram that `verifiable` gives, unrelated to the tokens.
        RandomMatched = "random_matched",
        /// Control: the weights of `verifiable`, shuffled within each sequence.
        Shuffled = "shuffled",
    }
}

impl Algo {
    /// Whether weights come from the advantages of stage 1.
    pub fn needs_advantages(self) -> bool {
        matches!(
            self,
            Self::Verifiable | Self::RandomMatched | Self::Shuffled
        )
    }

    /// Whether weights come from the cross-entropies of the tuned reference.
    pub fn needs_reference(self) -> bool {
        self == Self::Rho1
    }
}

impl Optim {
    /// [`Optim::activation_mib`] in bytes.
    pub fn activation_bytes(&self) -> Option<usize> {
        self.activation_mib.map(|mib| mib << 20)
    }
}

words! {
    /// Number format of weights and arithmetic.
    Dtype {
        /// 32 bits.
        F32 = "f32",
        /// 64 bits; for parity runs.
        F64 = "f64",
        /// Products with weights in 16 bits, everything else in 32: up to twice the rate of f32 on AMD's processors with
        /// AVX512-BF16, somewhat less than f32's with AVX-512 otherwise, far less elsewhere.
        Bf16 = "bf16",
    }
}

words! {
    /// Where the rows come from.
    DataSource {
        /// The project's own generator of small problems.
        Micropy = "micropy",
        /// Raw rows of MBPP.
        Mbpp = "mbpp",
        /// Raw rows of CodeContests, as JSON lines.
        CodeContests = "codecontests",
    }
}

words! {
    /// Who gives problems to the splits.
    SplitBy {
        /// The rows, where they tell their split, and the shares where they do not.
        Auto = "auto",
        /// The shares, whatever the rows tell.
        Shares = "shares",
    }
}

words! {
    /// What the sandbox must hold before any program is run.
    SandboxTier {
        /// Every layer.
        Full = "full",
        /// What the platform enforces; the scores say what that is.
        Degraded = "degraded",
    }
}

words! {
    /// What the value model learns.
    ValueObjective {
        /// Mean squared error against the Monte-Carlo outcome at every position.
        MseMc = "mse_mc",
        /// Binary cross-entropy against the outcome at every position.
        Bce = "bce",
    }
}

words! {
    /// Shape of the value head.
    ValueHeadKind {
        /// One linear map.
        Linear = "linear",
        /// One hidden layer.
        Mlp = "mlp",
    }
}

words! {
    /// How excess loss becomes a score.
    ExcessScore {
        /// Policy minus reference.
        SignedExcess = "signed_excess",
        /// Its absolute value.
        AbsExcess = "abs_excess",
    }
}

words! {
    /// How the Rho-1 score becomes a weight.
    Rho1Weighting {
        /// Exponential weights, as for advantages.
        Continuous = "continuous",
        /// The best share of tokens counts, the rest does not.
        Topk = "topk",
    }
}

words! {
    /// Whose mean and deviation whiten scores.
    Whiten {
        /// The data set's for advantages, running ones for Rho-1.
        Auto = "auto",
        /// Those of the training split, as stage 1 stored them.
        Dataset = "dataset",
        /// Running ones, an exponential moving average over steps.
        Ema = "ema",
        /// Those of the scores that are normalised together.
        Own = "own",
    }
}

words! {
    /// Whose weights have mean 1 together.
    Normalise {
        /// The step's for advantages, the micro-batch's for Rho-1.
        Auto = "auto",
        /// All targets of an optimiser step.
        Step = "step",
        /// All targets of a micro-batch.
        MicroBatch = "micro_batch",
        /// The targets of one sequence, so that no sequence counts more than another.
        Sequence = "sequence",
    }
}

words! {
    /// A matrix of every block that can carry an adapter, by Meta's names.
    LoraTarget {
        /// Queries.
        Wq = "wq",
        /// Keys.
        Wk = "wk",
        /// Values.
        Wv = "wv",
        /// Output of attention.
        Wo = "wo",
        /// Gate of the feed-forward half.
        W1 = "w1",
        /// Its way down.
        W2 = "w2",
        /// Its way up.
        W3 = "w3",
    }
}

section! {
    /// What this recipe is called and how it differs from its parent.
    Version("version") {
        /// Name of the version, such as `v002`.
        id: String = String::new();
        /// Version that this one was derived from.
        parent: Option<String> = None;
        /// The one change against the parent, in words.
        change: Option<String> = None;
    }
}

section! {
    /// What is compared on which data.
    Experiment("experiment") {
        /// How tokens get their weights.
        algo: Algo = Algo::Baseline;
        /// Name of the processed data set.
        dataset: String = "micropy".to_owned() => Runtime;
    }
}

section! {
    /// The models by name, and their arithmetic.
    Model("model") {
        /// Bundle that the policy starts from.
        base: String = "meta-llama-mtp".to_owned() => Runtime;
        /// Bundle that the Rho-1 reference starts from.
        reference: String = "ref-sheared-llama-2.7b".to_owned() => Runtime;
        /// Bundle that the value model starts from.
        value: String = "ref-sheared-llama-2.7b".to_owned() => Runtime;
        /// Number of prediction heads; must be the bundle's `n_future_tokens`.
        horizon: usize = 4;
        /// Number format of weights and arithmetic.
        dtype: Dtype = Dtype::F32;
    }
}

section! {
    /// How raw rows become a data set.
    Data("data") {
        /// Where the rows come from.
        source: DataSource = DataSource::Micropy;
        /// Longest row in tokens, template, begin and end tokens included; longer rows are dropped.
        max_length: usize = 2048;
        /// Size of the vocabulary that prepare-data trains.
        vocab_size: usize = 8000;
        /// Problems that micropy generates.
        num_problems: usize = 600;
        /// Correct and incorrect solutions wanted per problem, together.
        solutions_per_problem: usize = 8;
        /// Seed of generator and splits.
        split_seed: u64 = 42;
        /// Who gives problems to the splits: `auto` leaves it to the rows where they tell, `shares` overrules them.
        split_by: SplitBy = SplitBy::Auto;
        /// Share of the problems held out for choosing.
        validation_share: f64 = 0.1;
        /// Share of the problems held out for the final report.
        test_share: f64 = 0.2;
    }
}

section! {
    /// Optimiser, schedule and batches of stage 2.
    Optim("optim") {
        /// Passes over the correct training rows.
        epochs: f64 = 1.0;
        /// Sequences per optimiser step.
        batch_sequences: usize = 96;
        /// Sequences per forward pass; divides the batch.
        micro_batch_sequences: usize = 12;
        /// Peak learning rate.
        lr: f64 = 1e-5;
        /// Decay of the first moment.
        beta1: f64 = 0.9;
        /// Decay of the second moment.
        beta2: f64 = 0.95;
        /// Added to the root of the second moment.
        eps: f64 = 1e-8;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.01;
        /// Largest global gradient norm.
        grad_clip: f64 = 1.0;
        /// Share of the steps in which the learning rate rises.
        warmup_ratio: f64 = 0.03;
        /// Last learning rate as a share of the peak.
        min_lr_ratio: f64 = 0.005;
        /// Steps between two evaluations on the validation rows.
        eval_every_steps: usize = 100;
        /// Steps between two saved states.
        checkpoint_every_steps: usize = 100 => Runtime;
        /// Minutes after the last saved state when the next is due, whatever the step; never when null.
        checkpoint_minutes: Option<usize> = Some(15) => Runtime;
        /// Saved states of a run that a collection of the store keeps; older ones go with `wmtp-store gc`.
        keep_last: usize = 2 => Runtime;
        /// Memory for the trunk's activations, MiB; blocks beyond it are computed again on the way back. All when null.
        activation_mib: Option<usize> = None => Runtime;
        /// Validations in a row without an improvement after which training stops early; never when null.
        early_stop_patience: Option<usize> = None;
        /// Fall of the validation loss that counts as an improvement; 0 means any.
        early_stop_min_delta: f64 = 0.0;
    }
}

section! {
    /// Low-rank adapters of the policy, trained in place of its weights.
    Lora("lora") {
        /// Rank of the adapters; 0 trains every weight instead. They learn best at an `optim.lr` of about 1e-4.
        r: usize = 0;
        /// The adapters' product counts alpha / r.
        alpha: f64 = 32.0;
        /// Matrices that carry one, in the trunk and in every head.
        targets: Vec<LoraTarget> = LoraTarget::ALL.to_vec();
        /// Share of the adapters' input that is dropped in training, for each matrix by a mask of its own; on the CPU alone.
        dropout: f64 = 0.0;
    }
}

section! {
    /// The value model.
    Stage1("stage1") {
        /// Passes over the labelled training rows.
        epochs: f64 = 0.5;
        /// Sequences per optimiser step.
        batch_sequences: usize = 64;
        /// Peak learning rate of the trunk; 0 freezes it and trains the value head alone.
        lr_trunk: f64 = 2e-5;
        /// Rank of adapters that are trained in place of the trunk's weights, at `lr_trunk`, with `lora.alpha` and
        /// `lora.targets`, and merged into them at the end; 0 trains every weight instead.
        lora_r: usize = 0;
        /// Peak learning rate of the value head.
        lr_head: f64 = 1e-4;
        /// What the value model learns.
        objective: ValueObjective = ValueObjective::MseMc;
        /// Shape of the value head.
        head: ValueHeadKind = ValueHeadKind::Linear;
        /// Pairwise accuracy on held-out problems that a useful value model reaches, over solutions of similar length where there
        /// are thirty pairs of them.
        gate: f64 = 0.58;
        /// Whether a value model below the gate stops the chain.
        enforce_gate: bool = false;
    }
}

section! {
    /// The tuned reference of Rho-1.
    Reference("reference") {
        /// Passes over the correct training rows.
        epochs: f64 = 1.0;
        /// Sequences per optimiser step.
        batch_sequences: usize = 96;
        /// Peak learning rate.
        lr: f64 = 1e-5;
        /// Rank of adapters that are trained in place of the weights, with `lora.alpha` and `lora.targets`, and merged into
        /// them at the end; 0 trains every weight instead.
        lora_r: usize = 0;
    }
}

section! {
    /// From values to advantages.
    Score("score") {
        /// Discount per token.
        gamma: f64 = 1.0;
        /// Decay of the generalised advantage estimate.
        lambda_gae: f64 = 0.95;
    }
}

section! {
    /// From excess loss to scores.
    Rho1("rho1") {
        /// How excess loss becomes a score.
        score: ExcessScore = ExcessScore::SignedExcess;
        /// How the score becomes a weight.
        weighting: Rho1Weighting = Rho1Weighting::Continuous;
        /// Share of tokens kept by `topk`.
        ratio: f64 = 0.6;
        /// Tokens that `topk` leaves out weigh nothing, as in the paper; else the lower bound. `ratio` must then be at least
        /// 1 / `weights.w_max`.
        hard: bool = false;
        /// Excess below which a token counts as learnt, nats.
        min_ce_diff: f64 = 0.01;
    }
}

section! {
    /// From scores to token weights.
    Weights("weights") {
        /// Divides the whitened score; `rho1.weighting: topk` takes no exponential and has none.
        temperature: f64 = 1.0;
        /// Smallest weight.
        eps: f64 = 0.1;
        /// Largest weight.
        w_max: f64 = 3.0;
        /// Smallest normalised entropy of the weights, below which the temperature rises; none with `rho1.weighting: topk`.
        entropy_floor: f64 = 0.01;
        /// Share of the computed weight; the rest is 1. It stays 1 with `rho1.hard`.
        blend: f64 = 1.0;
        /// Whose mean and deviation whiten the scores: `dataset` with advantages, `ema` (running ones) with Rho-1, or `own`,
        /// those of the scores that are normalised together; `auto` is the first or the second.
        whiten: Whiten = Whiten::Auto;
        /// Whose weights have mean 1 together: those of a `step` with advantages, of a `micro_batch` with Rho-1, or of each
        /// `sequence`; `auto` is the first or the second.
        normalise: Normalise = Normalise::Auto;
    }
}

section! {
    /// How checkpoints are judged.
    Evaluation("evaluation") {
        /// Split whose problems are solved.
        split: Split = Split::Validation;
        /// Divides the logits before sampling.
        temperature: f64 = 0.2;
        /// Tokens that may be drawn at most, before the nucleus is cut; all when null.
        top_k: Option<usize> = None;
        /// Nucleus of the sampling.
        top_p: f64 = 0.95;
        /// Texts that a beam search grows side by side; 1 draws instead.
        beams: usize = 1;
        /// Of the beam search: a text of n tokens scores log p / n^penalty, 1 being the mean.
        length_penalty: f64 = 1.0;
        /// Sampled programs per problem.
        num_samples: u32 = 20;
        /// The k of each pass@k.
        ks: Vec<u32> = vec![1, 5, 10];
        /// Longest generated program in tokens.
        max_new_tokens: usize = 512;
        /// Whether the other heads propose tokens while few texts are open; the text is the same either way.
        speculate: bool = true => Runtime;
        /// Problems solved, in the data set's order; all when null.
        max_problems: Option<usize> = None;
        /// Problems at most whose samples are laid out for people, chosen by the seed.
        infer_samples: usize = 10;
        /// CPU seconds a program may use.
        cpu_secs: f64 = 10.0;
        /// Wall-clock seconds a program may use.
        wall_secs: f64 = 60.0;
        /// Memory a program may use, MiB.
        memory_mib: u64 = 1024;
        /// Least sandbox in which programs are run; below it the job refuses.
        sandbox: SandboxTier = SandboxTier::Full => Runtime;
    }
}

/// A resolved recipe: every setting of an experiment, none of the environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// What this recipe is called and how it differs from its parent.
    pub version: Version,
    /// What is compared on which data.
    pub experiment: Experiment,
    /// Drives everything through named streams; see [`crate::seed::stream`].
    pub seed: u64,
    /// The models by name, and their arithmetic.
    pub model: Model,
    /// How raw rows become a data set.
    pub data: Data,
    /// Optimiser, schedule and batches of stage 2.
    pub optim: Optim,
    /// Low-rank adapters of the policy, trained in place of its weights.
    pub lora: Lora,
    /// The value model.
    pub stage1: Stage1,
    /// The tuned reference of Rho-1.
    pub reference: Reference,
    /// From values to advantages.
    pub score: Score,
    /// From excess loss to scores.
    pub rho1: Rho1,
    /// From scores to token weights.
    pub weights: Weights,
    /// How checkpoints are judged.
    pub evaluation: Evaluation,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            version: Version::default(),
            experiment: Experiment::default(),
            seed: 42,
            model: Model::default(),
            data: Data::default(),
            optim: Optim::default(),
            lora: Lora::default(),
            stage1: Stage1::default(),
            reference: Reference::default(),
            score: Score::default(),
            rho1: Rho1::default(),
            weights: Weights::default(),
            evaluation: Evaluation::default(),
        }
    }
}

const SEED: &[Leaf] = &[Leaf {
    key: "seed",
    shape: Shape::Count,
    affects: Affects::Output,
    doc: " Drives everything through named streams.",
}];

/// Every setting of the schema, in the order of [`Recipe`].
pub fn leaves() -> impl Iterator<Item = &'static Leaf> {
    [
        Version::LEAVES,
        Experiment::LEAVES,
        SEED,
        Model::LEAVES,
        Data::LEAVES,
        Optim::LEAVES,
        Lora::LEAVES,
        Stage1::LEAVES,
        Reference::LEAVES,
        Score::LEAVES,
        Rho1::LEAVES,
        Weights::LEAVES,
        Evaluation::LEAVES,
    ]
    .into_iter()
    .flatten()
}

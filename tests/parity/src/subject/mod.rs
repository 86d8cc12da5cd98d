//! Our side of the comparison: the workspace's own code on a case's inputs, one module a kind of case.

mod adamw;
mod batch;
mod fused;
mod fv;
mod generate;
mod layout;
mod lora;
mod model;
mod passk;
mod rho1;
mod rope;
mod step;
mod tokenizer;
mod weighting;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use wmtp_model::{Observer, ParamStore, Params, Products, Site};

use crate::{Case, Error, Kind, Values};

pub(crate) use batch::ModelConfig;
pub(crate) use model::{MEAN_WEIGHT, TOKEN_WEIGHTS};

/// Element type of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Single precision, as training computes.
    F32,
    /// Double precision, the golden's own.
    F64,
    /// Single precision with products of bf16 factors.
    Bf16,
}

impl Precision {
    /// The name used in manifests, reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
        }
    }

    /// The precision at which a case is run: only a trained policy multiplies bf16 numbers.
    pub(crate) fn of(self, kind: Kind) -> Self {
        match (self, kind) {
            (Self::Bf16, Kind::Model | Kind::Lora) => Self::Bf16,
            (Self::Bf16, _) => Self::F32,
            _ => self,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Bf16 => DType::F32,
            Self::F64 => DType::F64,
        }
    }
}

/// What a stage is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Our own upstream results, as training would have them.
    Chained,
    /// The golden's results of the stages before it.
    Isolated,
}

impl Mode {
    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chained => "chained",
            Self::Isolated => "isolated",
        }
    }
}

/// A deliberate fault in the subject (`spec/parity.md` 4.10). Product code knows none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Norm epsilon 1e-6 for 1e-5.
    NormEpsilon,
    /// Attention scores divided by √d instead of √e.
    AttentionScale,
    /// Rotary pairs (i, i + e/2) instead of (2i, 2i + 1).
    HalfSplitRotary,
    /// Every position takes the angles of the next one and the first pair none: a wrong table.
    RotaryTable,
    /// A value head with a bias of 0.1: what follows it inherits the fault and has none of its own.
    ValueBias,
    /// A horizon's weight taken at the source position instead of the target.
    WeightAtSource,
    /// The loss divided by the sum of weights instead of the number of targets.
    DivideByWeights,
    /// One parameter takes no gradient.
    CutGradient(String),
    /// The graph is cut behind the last norm, as by a norm without a backward pass.
    FusedNorm,
    /// Gradients go back through candle's fused softmax, which has no backward pass.
    FusedAttention,
    /// Adam's epsilon 1e-6 for 1e-8.
    AdamEpsilon,
    /// Weight decay 0.01 for 0.1.
    WeightDecay,
    /// The clip coefficient is computed and not applied.
    NoClipping,
    /// The clip coefficient without the 1e-6 in its denominator.
    ClipWithoutEpsilon,
    /// The product of the adapters counts once instead of α/r times.
    LoraScale,
    /// A takes the place of B and B that of A, wherever their shapes allow it.
    LoraSwap,
    /// The unembedding of the base is trained along with the adapters.
    LoraLeak,
    /// Merging alone forgets α/r.
    LoraMerge,
    /// Scores whitened with what an earlier step of another scale left, where the first step has nothing to go by.
    StaleStatistics,
    /// The last token of a word counts for the slot behind it.
    WordSlots,
    /// Heads are patched with their mean in the slot before the last.
    PatchSlot,
    /// Heads are ranked by the size of their effect, whatever its sign.
    AbsoluteRanking,
    /// The function vector is left in the space of the heads' outputs.
    HeadSpace,
    /// The function vector is added before a block instead of behind it.
    InjectBefore,
}

/// What our code computed, by golden key.
pub(crate) type Results = BTreeMap<String, Values>;

/// One run of the subject: what it is given and what it found.
struct Run<'a> {
    case: &'a Case,
    precision: Precision,
    mode: Mode,
    device: Device,
    mutation: Option<&'a Mutation>,
    results: Results,
}

impl Run<'_> {
    fn record(&mut self, key: impl Into<String>, values: Values) {
        self.results.insert(key.into(), values);
    }

    /// What later stages take for `key`: our result, or the golden's in isolated mode.
    fn upstream(&self, key: &str) -> Result<&Values, Error> {
        let golden = self.case.golden.get(key);
        golden
            .filter(|_| self.mode == Mode::Isolated)
            .or_else(|| self.results.get(key))
            .ok_or_else(|| self.case.bad(format!("golden {key} is missing")))
    }

    fn products(&self) -> Products {
        match self.precision {
            Precision::F32 | Precision::F64 => Products::F32,
            Precision::Bf16 => Products::Bf16,
        }
    }

    fn has(&self, mutation: &Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn weight(&self, name: &str) -> Result<Tensor, Error> {
        Ok(self
            .case
            .weight(name)?
            .tensor(self.precision.dtype(), &self.device)?)
    }

    /// The weights of a model, each under its name behind `prefix` in the case's file.
    fn store(&self, params: &Params, prefix: &str) -> Result<ParamStore, Error> {
        let named = |(name, _): (String, Vec<usize>)| {
            let tensor = self.weight(&format!("{prefix}{name}"))?;
            Ok((name, tensor))
        };
        let tensors = params.tensor_shapes().into_iter().map(named);
        Ok(ParamStore::from_tensors(
            tensors.collect::<Result<_, Error>>()?,
        )?)
    }
}

/// Records what passes each site. In isolated mode the golden's values go on, with our gradient.
impl Observer for Run<'_> {
    fn observe(&mut self, site: Site, tensor: Tensor) -> wmtp_model::Result<Tensor> {
        let key = site.to_string();
        let ours = Values::of(&tensor)?;
        let golden = self
            .case
            .golden
            .get(&key)
            .filter(|_| self.mode == Mode::Isolated);
        let onward = match golden {
            Some(golden) if golden.shape == ours.shape => {
                let correction =
                    (golden.tensor(tensor.dtype(), tensor.device())? - tensor.detach())?;
                (&tensor + correction)?
            }
            _ => tensor,
        };
        // The value model passes the trunk's sites again; the policy was there first.
        self.results.entry(key).or_insert(ours);
        Ok(onward)
    }
}

/// Runs our code on a case and returns every result by its golden key.
pub(crate) fn run(
    case: &Case,
    precision: Precision,
    mode: Mode,
    device: &Device,
    mutation: Option<&Mutation>,
) -> Result<Results, Error> {
    let mut run = Run {
        case,
        precision,
        mode,
        device: device.clone(),
        mutation,
        results: Results::new(),
    };
    match case.kind {
        Kind::Model => model::run(&mut run)?,
        Kind::Lora => lora::run(&mut run)?,
        Kind::Fv => fv::run(&mut run)?,
        Kind::Rope => rope::run(&mut run)?,
        Kind::Weighting => weighting::run(&mut run)?,
        Kind::Rho1 | Kind::Rho1Step => rho1::run(&mut run)?,
        Kind::AdamW => adamw::run(&mut run)?,
        Kind::Layout => layout::run(&mut run)?,
        Kind::Generate => generate::run(&mut run)?,
        Kind::Tokenizer => tokenizer::run(&mut run)?,
        Kind::PassK => passk::run(&mut run)?,
    }
    Ok(run.results)
}

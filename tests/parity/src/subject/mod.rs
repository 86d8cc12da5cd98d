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

pub(crate) use batch::{ModelConfig, is_wide};
pub(crate) use model::{MEAN_WEIGHT, NO_TARGET, TOKEN_WEIGHTS};

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
            (Self::Bf16, Kind::Model | Kind::Lora | Kind::Rho1Step) => Self::Bf16,
            (Self::Bf16, _) => Self::F32,
            _ => self,
        }
    }

    /// Type of the tensors that hold a run's numbers.
    pub(crate) fn dtype(self) -> DType {
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
    /// Gradients go back through candle's fused rotation, which has none either.
    FusedRotary,
    /// The pass that trains halves the gradients of the second head's block; its plain twin does not.
    HalvedHead,
    /// Queries of the second block that are no numbers.
    NotANumber,
    /// The model computes in another element type than the run's.
    OtherType,
    /// Responses begin one token early: the last token of the prompt is a target too.
    EarlyResponse,
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

/// What one run of the subject found.
pub(crate) struct Outcome {
    pub(crate) results: Results,
    /// Losses and gradients of the plain twin of the pass that trains, where both ran.
    pub(crate) twin: Option<Results>,
    /// Why the subject went no further.
    pub(crate) stopped: Option<Error>,
}

/// One run of the subject: what it is given and what it found.
struct Run<'a> {
    case: &'a Case,
    precision: Precision,
    mode: Mode,
    device: Device,
    mutation: Option<&'a Mutation>,
    results: Results,
    twin: Option<Results>,
}

impl<'a> Run<'a> {
    fn record(&mut self, key: impl Into<String>, values: Values) {
        self.results.insert(key.into(), values);
    }

    /// What later stages take for `key`, which is recorded: our result, or the golden's in isolated mode.
    fn upstream(&self, key: &str) -> &Values {
        let ours = self.results.get(key);
        let ours = ours.expect("what later stages take is recorded before them");
        self.given(key, &ours.shape).unwrap_or(ours)
    }

    /// The golden's result that isolated mode goes on with: one that is finite and of our own's shape.
    fn given(&self, key: &str, shape: &[usize]) -> Option<&'a Values> {
        let golden = self.case.golden.get(key);
        golden
            .filter(|_| self.mode == Mode::Isolated)
            .filter(|golden| golden.shape == shape && golden.is_finite())
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
        self.tensor(self.case.weight(name)?)
    }

    /// A weight of the shape that the configuration gives it.
    fn weight_of(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.tensor(self.case.weight_of(name, shape)?)
    }

    fn tensor(&self, weight: &Values) -> Result<Tensor, Error> {
        let dtype = match (self.has(&Mutation::OtherType), self.precision.dtype()) {
            (false, dtype) => dtype,
            (true, DType::F64) => DType::F32,
            (true, _) => DType::F64,
        };
        Ok(weight.tensor(dtype, &self.device)?)
    }

    /// The weights of a model, each under its name behind `prefix` in the case's file.
    fn store(&self, params: &Params, prefix: &str) -> Result<ParamStore, Error> {
        let named = |(name, shape): (String, Vec<usize>)| {
            let tensor = self.weight_of(&format!("{prefix}{name}"), &shape)?;
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
        let onward = match self.given(&key, &ours.shape) {
            Some(golden) => {
                let golden = golden.tensor(tensor.dtype(), tensor.device())?;
                // Nothing brings NaN or an infinity back to a number.
                if ours.is_finite() {
                    (&tensor + (golden - tensor.detach())?)?
                } else {
                    golden
                }
            }
            None => tensor,
        };
        // The value model passes the trunk's sites again; the policy was there first.
        self.results.entry(key).or_insert(ours);
        Ok(onward)
    }
}

/// Runs our code on a case and returns every result by its golden key. A subject that fails keeps what it found before;
/// an error of this function is one of the case, or of a file that cannot be written.
pub(crate) fn run(
    case: &Case,
    precision: Precision,
    mode: Mode,
    device: &Device,
    mutation: Option<&Mutation>,
) -> Result<Outcome, Error> {
    let mut run = Run {
        case,
        precision,
        mode,
        device: device.clone(),
        mutation,
        results: Results::new(),
        twin: None,
    };
    let end = match case.kind {
        Kind::Model => model::run(&mut run),
        Kind::Lora => lora::run(&mut run),
        Kind::Fv => fv::run(&mut run),
        Kind::Rope => rope::run(&mut run),
        Kind::Weighting => weighting::run(&mut run),
        Kind::Rho1 | Kind::Rho1Step => rho1::run(&mut run),
        Kind::AdamW => adamw::run(&mut run),
        Kind::Layout => layout::run(&mut run),
        Kind::Generate => generate::run(&mut run),
        Kind::Tokenizer => tokenizer::run(&mut run),
        Kind::PassK => passk::run(&mut run),
    };
    let stopped = match end.map_err(|error| of_case(case, error)) {
        Err(error @ (Error::Golden { .. } | Error::Write { .. })) => return Err(error),
        end => end.err(),
    };
    Ok(Outcome {
        results: run.results,
        twin: run.twin,
        stopped,
    })
}

/// Settings come from the manifest alone: what refuses them refuses the case.
fn of_case(case: &Case, error: Error) -> Error {
    use wmtp_weighting::Error as Weighting;
    match error {
        Error::Model(wmtp_model::Error::Params(_))
        | Error::Weighting(Weighting::Setting { .. })
        | Error::Training(wmtp_training::Error::Weighting(Weighting::Setting { .. })) => {
            case.bad(error.said())
        }
        other => other,
    }
}

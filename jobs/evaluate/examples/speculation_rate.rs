//! Our side of `make bench-decode`'s second table: what the heads' proposals gain on a model that learnt micropy.
//!
//! `speculation_rate MODEL.safetensors WIDTH STEPS` trains a model of 12 trunk blocks and 4 heads of that width (a multiple
//! of the demo's 64) for STEPS steps of 8 programs, unless the file is there, and decodes validation prompts with and
//! without proposals. Prints one JSON object; fails where a text differs.

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use wmtp_data_sets::{PaddedBatch, micropy};
use wmtp_decoding::{
    Choice, DrawKey, Ended, Generated, Generator, InferenceModel, Prompt, Sampling, Tally,
};
use wmtp_model::{DType, Device, Horizon, MtpModel, ParamStore, Params, RowSetup};
use wmtp_records::Split;
use wmtp_tokens::{TokenizedSample, Tokenizer, encode_pair, encode_prompt};
use wmtp_training::engine::Engine;
use wmtp_training::heads::{Learner, StepLoss, Target, accumulate};
use wmtp_training::optimizer::parameters;
use wmtp_training::scorer::{StepRow, StepStats};
use wmtp_training::{AdamWSettings, Gradients, OptimSettings, Room, Scorer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TRUNK_BLOCKS: usize = 12;
/// A second depth, whose times tell what a block costs.
const SHALLOW: usize = 4;
const BATCH: usize = 8;
const PROMPTS: usize = 24;
const NEW_TOKENS: usize = 48;
const MAX_TOKENS: usize = 320;
/// Times that both ways are gone.
const ROUNDS: usize = 7;

/// Every token counts the same.
struct Alike;

impl Scorer for Alike {
    fn begin_step(&mut self, _: u64, _: &[StepRow]) -> wmtp_training::Result<()> {
        Ok(())
    }

    fn needs_policy_ce(&self) -> bool {
        false
    }

    fn weigh(
        &mut self,
        _: Horizon,
        targets: &[Target],
        _: Option<&[f64]>,
    ) -> wmtp_training::Result<Vec<f64>> {
        Ok(vec![1.0; targets.len()])
    }

    fn end_step(&mut self) -> Vec<StepStats> {
        Vec::new()
    }
}

/// Programs to learn from, and prompts to continue.
struct Texts {
    vocab_size: usize,
    end_token: u32,
    train: Vec<TokenizedSample>,
    prompts: Vec<Vec<u32>>,
}

fn texts() -> Result<Texts> {
    let problems = micropy::generate(&micropy::Settings {
        num_problems: 800,
        validation_share: 0.125,
        test_share: 0.075,
        solutions_per_problem: 2,
        incorrect_per_problem: 0,
        seed: 42,
    });
    let of = |split| problems.iter().filter(move |one| one.split == split);
    let pairs: Vec<(&str, &str)> = of(Split::Train)
        .flat_map(|one| {
            one.solutions
                .iter()
                .map(|program| (one.problem.prompt.as_str(), program.as_str()))
        })
        .collect();
    let whole: Vec<String> = pairs
        .iter()
        .map(|(prompt, program)| format!("{prompt}{program}"))
        .collect();
    let tokenizer = Tokenizer::train(&whole, 1024)?;
    Ok(Texts {
        vocab_size: tokenizer.vocab_size(),
        end_token: tokenizer.eos(),
        train: pairs
            .iter()
            .map(|(prompt, program)| encode_pair(&tokenizer, prompt, program))
            .collect::<std::result::Result<_, _>>()?,
        prompts: of(Split::Validation)
            .take(PROMPTS)
            .map(|one| encode_prompt(&tokenizer, &one.problem.prompt))
            .collect(),
    })
}

fn params(width: usize, trunk: usize, vocab_size: usize) -> Params {
    let micro = Params::micro_mtp(vocab_size);
    Params {
        dim: width,
        n_layers: trunk + micro.n_future_tokens,
        ..micro
    }
}

fn batch(rows: &[&TokenizedSample]) -> PaddedBatch {
    let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    PaddedBatch {
        ids: rows
            .iter()
            .flat_map(|row| {
                row.ids
                    .iter()
                    .copied()
                    .chain(std::iter::repeat_n(0, width - row.ids.len()))
            })
            .collect(),
        rows: rows.len(),
        width,
        lengths: rows.iter().map(|row| row.ids.len()).collect(),
        prompt_lens: rows.iter().map(|row| row.prompt_len).collect(),
    }
}

fn train(params: &Params, samples: &[TokenizedSample], steps: usize) -> Result<ParamStore> {
    let store = ParamStore::init(params, 42, DType::F32, &Device::Cpu)?;
    let model = MtpModel::new(params, &store)?;
    let settings = OptimSettings {
        adamw: AdamWSettings {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        grad_clip: 1.0,
        warmup_ratio: 0.03,
        min_lr_ratio: 0.005,
        micro_batch_sequences: BATCH,
        eval_every_steps: 0,
        early_stop: None,
        room: Room::Measured,
    };
    let mut engine = Engine::new(parameters(&store, 4e-3), &settings, steps as u64)?;
    let mut gradients = Gradients::zeros(engine.parameters())?;
    for step in 0..steps {
        // A stride prime to the number of samples visits all of them in turn, far apart.
        let rows: Vec<_> = (0..BATCH)
            .map(|row| &samples[(step * BATCH + row) * 7919 % samples.len()])
            .collect();
        let targets = |k: Horizon| {
            let of = |row: &&TokenizedSample| row.ids.len() - row.prompt_len.max(k.get());
            rows.iter().map(of).sum()
        };
        let counts: Vec<usize> = params.horizons().map(targets).collect();
        let mut loss = StepLoss::new(&counts);
        gradients.clear()?;
        let learner = Learner {
            model: &model,
            parameters: engine.parameters(),
            activation_bytes: None,
            dropout: None,
        };
        accumulate(
            &learner,
            &batch(&rows),
            0,
            &mut Alike,
            &mut loss,
            &mut gradients,
        )?;
        engine.apply(loss.weighted(), &mut gradients, true)?;
    }
    Ok(store)
}

/// What this thread has computed for so far, by the kernel's count.
fn cpu_secs() -> Result<f64> {
    // The count is brought up to date when the thread gives the core away.
    std::thread::yield_now();
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = counts.split_whitespace().next().ok_or("an empty count")?;
    Ok(nanos.parse::<f64>()? / 1e9)
}

/// One way through all prompts.
struct Pass {
    texts: Vec<Vec<Generated>>,
    tally: Tally,
    secs: f64,
}

fn decode(
    generator: &Generator,
    texts: &Texts,
    batch: usize,
    sampling: Option<Sampling>,
) -> Result<Pass> {
    let mut queue = texts.prompts.iter().enumerate().map(|(number, ids)| {
        let key = DrawKey::new(42, "bench", number as u32);
        let choice = sampling.map_or(Choice::Greedy, |sampling| Choice::Draw(sampling, key));
        let prompt = Prompt {
            ids,
            choices: vec![choice],
            beam: None,
        };
        (number, prompt)
    });
    let mut found = vec![Vec::new(); texts.prompts.len()];
    let done = |ended: Ended| {
        found[ended.prompt] = vec![ended.text];
        ControlFlow::Continue(())
    };
    let start = cpu_secs()?;
    let tally = generator.generate_all(batch, || queue.next(), done)?;
    Ok(Pass {
        secs: cpu_secs()? - start,
        texts: found,
        tally,
    })
}

/// Both ways through all prompts in turn, without the time that plain decoding takes to read them. The least time of each
/// is kept, since neighbours on the machine only add to it, and the gain of every round.
fn compare(
    params: &Params,
    store: &ParamStore,
    texts: &Texts,
    batch: usize,
    sampling: Option<Sampling>,
) -> Result<serde_json::Value> {
    let generator = |model, tokens| Generator::new(model, texts.end_token, tokens);
    let plain = || InferenceModel::new(params, store, MAX_TOKENS, &RowSetup::HOST);
    let proposing = InferenceModel::speculative(params, store, MAX_TOKENS, &RowSetup::HOST)?;
    let ways = [
        generator(plain()?, 1),
        generator(plain()?, NEW_TOKENS),
        generator(proposing, NEW_TOKENS),
    ];
    let (mut least, mut gains) = ([f64::INFINITY; 2], Vec::new());
    let mut last = None;
    for _ in 0..ROUNDS {
        let pass = |way: &Generator| decode(way, texts, batch, sampling);
        let [prompts, slow, fast] = [pass(&ways[0])?, pass(&ways[1])?, pass(&ways[2])?];
        if slow.texts != fast.texts {
            return Err("proposals changed a text".into());
        }
        let secs = [slow.secs - prompts.secs, fast.secs - prompts.secs];
        gains.push(secs[0] / secs[1]);
        least = [least[0].min(secs[0]), least[1].min(secs[1])];
        last = Some(fast);
    }
    let Pass { texts, tally, .. } = last.ok_or("no round")?;
    let tokens: usize = texts.iter().flatten().map(|text| text.ids.len()).sum();
    Ok(json!({
        "trunk_blocks": params.num_trunk_blocks(),
        "batch": batch,
        "temperature": sampling.map_or(0.0, |sampling| sampling.temperature),
        "tokens": tokens,
        "plain_secs": least[0],
        "secs": least[1],
        "gains": gains,
        "forwards": tally.forwards,
        "tokens_per_forward": tally.tokens_per_forward(),
        "proposed": tally.proposed,
        "accepted": tally.accepted,
    }))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, width, steps] = arguments.as_slice() else {
        return Err("usage: see the first lines of the source".into());
    };
    let (file, width, steps) = (Path::new(file), width.parse()?, steps.parse()?);
    let texts = texts()?;
    let deep = params(width, TRUNK_BLOCKS, texts.vocab_size);
    if !file.exists() {
        train(&deep, &texts.train, steps)?.save(file)?;
    }
    let store = ParamStore::load(file, &deep, DType::F32, &Device::Cpu)?;
    let cool = Sampling {
        temperature: 0.2,
        top_k: None,
        top_p: 0.95,
    };
    let mut found = Vec::new();
    for (batch, sampling) in [(1, None), (1, Some(cool)), (2, None), (4, None)] {
        found.push(compare(&deep, &store, &texts, batch, sampling)?);
    }
    let shallow = params(width, SHALLOW, texts.vocab_size);
    let untrained = ParamStore::init(&shallow, 42, DType::F32, &Device::Cpu)?;
    found.push(compare(&shallow, &untrained, &texts, 1, None)?);
    writeln!(std::io::stdout(), "{}", json!(found))?;
    Ok(())
}

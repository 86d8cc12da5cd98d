//! A tiny model and toy sequences, shared by the tests of this crate.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use wmtp_data_sets::TokenFile;
use wmtp_model::{ParamStore, Params, Products};
use wmtp_tokens::TokenizedSample;
use wmtp_training::{AdamWSettings, OptimSettings, PolicySettings, Room, TokenScores, Trainer};

/// Two trunk blocks and two heads of width 16.
pub(crate) fn tiny(n_future_tokens: usize) -> Params {
    Params {
        dim: 16,
        n_layers: 2 + n_future_tokens,
        n_heads: 2,
        n_kv_heads: 2,
        vocab_size: 23,
        multiple_of: 8,
        ffn_dim_multiplier: 1.0,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        n_future_tokens,
    }
}

pub(crate) fn store(params: &Params, dtype: DType) -> ParamStore {
    ParamStore::init(params, 7, dtype, &Device::Cpu).expect("the tiny model is valid")
}

/// All weights of a store, bit by bit.
pub(crate) fn bits(store: &ParamStore) -> Vec<u32> {
    let values = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let all = store.iter().flat_map(|(_, var)| values(var));
    all.map(f32::to_bits).collect()
}

/// Prompts that name a start and a stride, responses that count by it; two labels per problem.
pub(crate) fn counting(rows: usize) -> TokenFile {
    counting_to(rows, |row| 4 + row % 4)
}

/// The same with responses of so many tokens before the end.
pub(crate) fn counting_to(rows: usize, length: impl Fn(usize) -> usize) -> TokenFile {
    let mut file = TokenFile::default();
    for row in 0..rows {
        let (start, stride) = (row % 5, 1 + row % 3);
        let correct = row % 4 != 3;
        let mut ids = vec![1, 3 + start as u32, 10 + stride as u32];
        let prompt_len = ids.len();
        for index in 0..length(row) {
            let wrong = usize::from(!correct && index > 1) * 2;
            ids.push(3 + ((start + index * stride + wrong) % 20) as u32);
        }
        ids.push(2);
        file.push(&TokenizedSample { ids, prompt_len }, Some(correct));
    }
    file
}

/// Some advantage for every response token of the correct rows.
pub(crate) fn some_scores(file: &TokenFile) -> TokenScores {
    let of = |row: usize| {
        let score = |index: usize| ((row * 5 + index * 3) % 7) as f32 / 3.0 - 1.0;
        (row, (0..file.row(row).response_len()).map(score).collect())
    };
    TokenScores::new(file.correct_rows().into_iter().map(of))
}

pub(crate) fn optim() -> OptimSettings {
    OptimSettings {
        adamw: AdamWSettings {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        grad_clip: 1.0,
        warmup_ratio: 0.1,
        min_lr_ratio: 0.05,
        micro_batch_sequences: 3,
        eval_every_steps: 4,
        early_stop: None,
        room: Room::Measured,
    }
}

pub(crate) fn settings() -> PolicySettings {
    PolicySettings {
        lr: 1e-2,
        optim: optim(),
        epochs: 4.0,
        batch_sequences: 8,
        products: Products::F32,
        activation_bytes: None,
        dropout: None,
        w_max: 3.0,
        order_seed: 5,
    }
}

/// Two to four different steps before the last one, rising; the seed chooses them.
pub(crate) fn stops(seed: u64, total: u64) -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = 2 + seed as usize % 3;
    let chosen = rand::seq::index::sample(&mut rng, total as usize - 1, count);
    let mut stops: Vec<u64> = chosen.iter().map(|index| index as u64 + 1).collect();
    stops.sort_unstable();
    stops
}

/// Goes on from what was saved, if anything was, until so many steps are done, and saves again.
pub(crate) fn go_on(trainer: &mut dyn Trainer, saved: Option<&TempDir>, until: u64) -> TempDir {
    if let Some(saved) = saved {
        trainer.restore(saved.path()).expect("it was saved");
    }
    while trainer.step() < until {
        trainer.advance().expect("the step works");
    }
    let dir = tempfile::tempdir().expect("there is room");
    trainer.save(dir.path()).expect("there is room");
    dir
}

/// Name and bytes of every file in a folder.
pub(crate) fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("the folder exists");
    entries
        .map(|entry| {
            let path = entry.expect("the folder is readable").path();
            let name = path.file_name().expect("it is an entry").to_string_lossy();
            (
                name.into_owned(),
                std::fs::read(&path).expect("it is a file"),
            )
        })
        .collect()
}

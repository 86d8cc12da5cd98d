//! Our side of `make bench-decode`: greedy texts of one model, timed.
//!
//! `decode_rate DIM TRUNK HEADS FFN ATTENTION_HEADS VOCAB PROMPT BATCH TOKENS REPEATS` prints one JSON object with the
//! CPU seconds of every repeat (BATCH texts of TOKENS new tokens upon prompts of PROMPT tokens, random weights, head 1).

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use wmtp_decoding::{Choice, Generator, InferenceModel, Prompt};
use wmtp_model::{DType, Device, ParamStore, Params, RowSetup};

/// As in the jobs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this thread has computed for so far, by the kernel's count.
fn cpu_secs() -> Result<f64, Box<dyn Error>> {
    // The count is brought up to date when the thread gives the core away.
    std::thread::yield_now();
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = counts.split_whitespace().next().ok_or("an empty count")?;
    Ok(nanos.parse::<f64>()? / 1e9)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let &[
        dim,
        trunk,
        heads,
        ffn,
        n_heads,
        vocab_size,
        prompt,
        batch,
        tokens,
        repeats,
    ] = arguments.as_slice()
    else {
        return Err("usage: see the first lines of the source".into());
    };
    let params = Params {
        dim,
        n_layers: trunk + heads,
        n_heads,
        n_kv_heads: n_heads,
        vocab_size,
        // One rounding step up to the wanted width.
        multiple_of: ffn,
        ffn_dim_multiplier: 1.0,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        n_future_tokens: heads,
    };
    let store = ParamStore::init(&params, 42, DType::F32, &Device::Cpu)?;
    let model = InferenceModel::new(&params, &store, prompt + tokens, &RowSetup::HOST)?;
    // No token of the vocabulary ends a text.
    let generator = Generator::new(model, u32::MAX, tokens);
    let prompts: Vec<Vec<u32>> = (0..batch)
        .map(|text| {
            (0..prompt)
                .map(|i| ((text * prompt + i) * 7919 % vocab_size) as u32)
                .collect()
        })
        .collect();
    let mut secs = Vec::new();
    for _ in 0..repeats {
        let mut queue = prompts.iter().enumerate().map(|(number, ids)| {
            let choices = vec![Choice::Greedy];
            (
                number,
                Prompt {
                    ids,
                    choices,
                    beam: None,
                },
            )
        });
        let start = cpu_secs()?;
        generator.generate_all(batch, || queue.next(), |_| ControlFlow::Continue(()))?;
        secs.push(cpu_secs()? - start);
    }
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "secs": secs }))?;
    Ok(())
}

//! Feeds a parser of untrusted bytes with mutations of a kept corpus, on stable Rust.
//!
//! A target is an ordinary test that hands its parser to [`run`]. It says in a few words how each input ended; an input
//! that ends as none did before joins the corpus of the run, so that later ones go on from there: the messages of a
//! parser that names what is wrong tell where in it an input came to. Input that makes it panic is written into the
//! corpus, where every later run begins with it.
//!
//! `WMTP_FUZZ_SECS` is the time of each target, 1 s without it; `WMTP_FUZZ_SEED` repeats a run, `WMTP_FUZZ_KEEP=1` writes
//! what joined the corpus into its folder.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Longer inputs say nothing that shorter ones do not.
const MAX_BYTES: usize = 1 << 16;
/// Inputs of a run's corpus.
const MAX_INPUTS: usize = 4_096;
/// Larger ones are not written into the folder.
const MAX_KEPT_BYTES: usize = 4_096;
/// Numbers at which sizes and offsets break.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    (1 << 53) + 1,
    u64::MAX >> 1,
    u64::MAX,
];

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// Inputs that were parsed.
    pub inputs: u64,
    /// Ways in which they ended.
    pub outcomes: usize,
}

/// Feeds a parser from a folder of inputs until the time is over.
///
/// # Panics
/// When the folder is empty, and with the parser when that panics; then the input is in the folder.
pub fn run(folder: &Path, parse: impl Fn(&[u8]) -> String) -> Report {
    let seed = variable("WMTP_FUZZ_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(variable("WMTP_FUZZ_SECS").unwrap_or(1));
    let keep = variable("WMTP_FUZZ_KEEP") == Some(1);
    let mut corpus = read(folder);
    assert!(!corpus.is_empty(), "{} holds no inputs", folder.display());
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut inputs = 0;
    let begun = Instant::now();
    for input in &corpus {
        seen.insert(end_of(folder, &parse, input, seed));
        inputs += 1;
    }
    while begun.elapsed() < time {
        let input = mutated(&corpus, &mut random);
        inputs += 1;
        if seen.insert(end_of(folder, &parse, &input, seed)) && corpus.len() < MAX_INPUTS {
            if keep && input.len() <= MAX_KEPT_BYTES {
                write(folder, "found", &input);
            }
            corpus.push(input);
        }
    }
    Report {
        inputs,
        outcomes: seen.len(),
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The inputs of a folder, in the order of their names.
fn read(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| fs::read(path).ok())
        .collect()
}

fn write(folder: &Path, kind: &str, input: &[u8]) {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("{kind}-{:016x}", hasher.finish()));
    fs::write(&path, input).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// How an input ended, without the numbers of its message: they differ with every input.
fn end_of(folder: &Path, parse: impl Fn(&[u8]) -> String, input: &[u8], seed: u64) -> String {
    match catch_unwind(AssertUnwindSafe(|| parse(input))) {
        Ok(outcome) => outcome
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .take(120)
            .collect(),
        Err(panic) => {
            write(folder, "crash", input);
            #[expect(
                clippy::print_stderr,
                reason = "whoever runs the target needs to repeat it"
            )]
            {
                eprintln!(
                    "an input of WMTP_FUZZ_SEED={seed} is in {}",
                    folder.display()
                );
            }
            resume_unwind(panic)
        }
    }
}

/// One input of the corpus, altered some times.
fn mutated(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut input = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..1 << random.random_range(0..4) {
        let other = &corpus[random.random_range(0..corpus.len())];
        alter(&mut input, other, random);
    }
    input.truncate(MAX_BYTES);
    input
}

fn alter(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let length = random.random_range(0..=(input.len() - at).min(64));
    match random.random_range(0..8) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => input.insert(at, random.random()),
        3 => drop(input.drain(at..at + length)),
        4 => {
            let copy = input[at..at + length].to_vec();
            input.splice(at..at, copy);
        }
        5 => {
            let edge = EDGES[random.random_range(0..EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.random_range(0..4_usize)].min(input.len() - at);
            input[at..at + width].copy_from_slice(&edge[..width]);
        }
        6 => {
            let from = random.random_range(0..=other.len());
            let end = other.len().min(from + random.random_range(0..=64));
            input.splice(at..at + length, other[from..end].iter().copied());
        }
        _ => {
            let edge = EDGES[random.random_range(0..EDGES.len())].to_string();
            input.splice(at..at, edge.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(inputs: &[&[u8]]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for input in inputs {
            write(dir.path(), "seed", input);
        }
        dir
    }

    /// Each step of the way has a message of its own, and none of them comes by chance from the corpus alone.
    #[test]
    fn messages_lead_to_what_lies_deep() {
        let dir = corpus(&[b"....."]);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..20 {
                run(dir.path(), |input| {
                    let right = input.iter().zip(b"deep").take_while(|(a, b)| a == b);
                    let right = right.count();
                    assert!(right < 4, "found");
                    "x".repeat(right)
                });
            }
        }));
        assert!(panic.is_err(), "the run never came to the end of the way");
        let crash = fs::read_dir(dir.path()).unwrap().flatten();
        let crash = crash.map(|entry| entry.file_name().to_string_lossy().into_owned());
        assert_eq!(crash.filter(|name| name.starts_with("crash")).count(), 1);
    }

    #[test]
    fn every_kept_input_is_parsed() {
        let dir = corpus(&[b"one", b"two"]);
        let kept = std::cell::RefCell::new(HashSet::new());
        let report = run(dir.path(), |input| {
            kept.borrow_mut().insert(input.to_vec());
            String::new()
        });
        assert!(report.inputs > 2 && report.outcomes == 1, "{report:?}");
        let kept = kept.borrow();
        assert!(kept.contains(&b"one"[..]) && kept.contains(&b"two"[..]));
    }
}

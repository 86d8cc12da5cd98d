//! The unbiased estimate of pass@k on a grid of (graded, passing, drawn).

use wmtp_stats::pass_at_k;

use super::Run;
use crate::{Error, Values};

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let shape = &run.case.input("n")?.shape;
    let column = |name| {
        let numbers = run.case.input_of(name, shape)?.data.iter();
        Ok::<_, Error>(numbers.map(|x| *x as u64))
    };
    let grid = column("n")?.zip(column("c")?).zip(column("k")?);
    let estimates: Vec<Option<f64>> = grid.map(|((n, c), k)| pass_at_k(n, c, k)).collect();
    let defined = estimates.iter().map(|e| f64::from(u8::from(e.is_some())));
    run.record("passk.defined", Values::vector(defined.collect()));
    let values = estimates.iter().map(|e| e.unwrap_or(0.0));
    run.record("passk.value", Values::vector(values.collect()));
    Ok(())
}

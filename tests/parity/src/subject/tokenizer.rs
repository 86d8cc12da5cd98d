//! Texts to ids and back.

use wmtp_tokens::Tokenizer;

use super::Run;
use crate::{Error, Values};

/// Fills rows of ids behind their end.
const NO_ID: f64 = -1.0;

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let folder = &run.case.folder;
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json")).map_err(|e| run.case.bad(e))?;
    let bytes = std::fs::read(folder.join("texts.json")).map_err(|e| run.case.bad(e))?;
    let texts: Vec<String> = serde_json::from_slice(&bytes).map_err(|e| run.case.bad(e))?;
    let encoded: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    let counts = encoded.iter().map(|ids| ids.len() as f64).collect();
    let back = encoded
        .iter()
        .zip(&texts)
        .map(|(ids, text)| f64::from(u8::from(tokenizer.decode(ids) == *text)));
    run.record("back.equal", Values::vector(back.collect()));
    let padded = padded(&encoded, run);
    run.record("ids.padded", padded);
    run.record("ids.count", Values::vector(counts));
    Ok(())
}

/// `[texts, width]` at the golden's width, so that the first difference names its text.
fn padded(encoded: &[Vec<u32>], run: &Run) -> Values {
    let golden = run.case.golden.get("ids.padded");
    let width = golden
        .and_then(|golden| golden.shape.get(1).copied())
        .unwrap_or(0);
    let row = |ids: &Vec<u32>| -> Vec<f64> {
        let ids = ids.iter().map(|id| f64::from(*id));
        ids.chain(std::iter::repeat(NO_ID)).take(width).collect()
    };
    let data = encoded.iter().flat_map(row).collect();
    Values::new(vec![encoded.len(), width], data)
}

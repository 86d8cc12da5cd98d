//! The first stage, `contract` (`spec/parity.md` 4.2): what a case and a run have to be before their numbers mean
//! anything.
//!
//! Digests, format version and configuration are judged when a case is read, and one that fails there is no golden. What is
//! left is judged here: the types that tensors are stored in, the type that ours compute in, and a stage for every key.

use candle_core::DType;

use crate::golden::{GOLDEN_FILE, INPUTS_FILE, WEIGHTS_FILE};
use crate::report::{Divergence, StageReport, Status};
use crate::subject::Results;
use crate::{Case, Precision, Values};

/// Whole inputs by name, and what the names of others begin with.
const WHOLE: [&str; 6] = ["c", "ids", "k", "mask", "n", "positions"];
const WHOLE_PREFIXES: [&str; 2] = ["prompt.", "trial."];

/// How a golden key is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// By no stage of this program.
    Never,
    /// Element by element, which every type serves that holds the numbers.
    Exactly,
    /// By distances, which are those from the reference's run in f64.
    ByDistance,
}

/// Judges every tensor of the case and of the run; `compared` knows the stages.
pub(crate) fn judge(
    case: &Case,
    precision: Precision,
    compared: impl Fn(&str) -> Compared,
    actual: &Results,
) -> (StageReport, Option<Divergence>) {
    let golden = case.golden.iter().map(|(key, values)| {
        let reason = match compared(key) {
            Compared::Never => Some("no stage of this program compares it".to_owned()),
            Compared::Exactly => None,
            Compared::ByDistance => stored_otherwise(values, &[DType::F64]),
        };
        (GOLDEN_FILE, key, reason)
    });
    let weights = case.weights.iter().map(|(key, values)| {
        let reason = stored_otherwise(values, &[DType::F32]);
        (WEIGHTS_FILE, key, reason)
    });
    let inputs = case.inputs.iter().map(|(key, values)| {
        let types: &[DType] = if is_whole(key) {
            &[DType::U8, DType::I32, DType::I64]
        } else {
            &[DType::F32, DType::F64]
        };
        (INPUTS_FILE, key, stored_otherwise(values, types))
    });
    let ours = actual.iter().map(|(key, values)| {
        let reason = computed_otherwise(values, precision.dtype());
        (GOLDEN_FILE, key, reason)
    });
    let mut judged = StageReport::new("contract", 0);
    let mut first = None;
    for (file, key, reason) in golden.chain(weights).chain(inputs).chain(ours) {
        judged.keys += 1;
        judged.compared += 1;
        if let Some(reason) = reason {
            judged.mismatched += 1;
            judged.mismatch_count += 1;
            first = first.or_else(|| Some(Divergence::of_key("contract", file, key, reason)));
        }
    }
    judged.status = Status::of(first.is_none());
    (judged, first)
}

fn is_whole(key: &str) -> bool {
    WHOLE.contains(&key) || WHOLE_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn stored_otherwise(values: &Values, types: &[DType]) -> Option<String> {
    let dtype = values.dtype.filter(|dtype| !types.contains(dtype))?;
    let types: Vec<&str> = types.iter().map(DType::as_str).collect();
    let (found, expected) = (dtype.as_str(), types.join(" or "));
    Some(format!("stored in {found}, expected {expected}"))
}

/// Whole numbers have types of their own.
fn computed_otherwise(values: &Values, dtype: DType) -> Option<String> {
    let found = values
        .dtype
        .filter(|found| found.is_float() && *found != dtype)?;
    let (found, expected) = (found.as_str(), dtype.as_str());
    Some(format!("computed in {found}, the run is one in {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn first(case: &Case, compared: Compared, actual: &Results) -> Option<(&'static str, String)> {
        let (judged, first) = judge(case, Precision::F32, |_| compared, actual);
        assert_eq!(judged.mismatch_count > 0, first.is_some());
        first.map(|first| (first.file, first.reason))
    }

    type Pick = fn(&mut Case) -> &mut Values;

    #[test]
    fn every_tensor_has_the_type_that_its_place_asks_for() {
        let sound = Case::load(Path::new("goldens/nano")).expect("the committed golden is whole");
        let (by_distance, none) = (Compared::ByDistance, Results::new());
        assert_eq!(first(&sound, by_distance, &none), None);
        let mut case = sound.clone();
        let changes: [(&'static str, Pick, DType, &str); 4] = [
            (
                GOLDEN_FILE,
                |c| c.golden.get_mut("embed").unwrap(),
                DType::F32,
                "f64",
            ),
            (
                WEIGHTS_FILE,
                |c| c.weights.get_mut("norm.weight").unwrap(),
                DType::F64,
                "f32",
            ),
            (
                INPUTS_FILE,
                |c| c.inputs.get_mut("ids").unwrap(),
                DType::F32,
                "u8 or i32 or i64",
            ),
            (
                INPUTS_FILE,
                |c| c.inputs.get_mut("rope.cos").unwrap(),
                DType::I64,
                "f32 or f64",
            ),
        ];
        for (file, tensor, dtype, expected) in changes {
            let before = tensor(&mut case).dtype.replace(dtype);
            let reason = format!("stored in {}, expected {expected}", dtype.as_str());
            assert_eq!(first(&case, by_distance, &none), Some((file, reason)));
            tensor(&mut case).dtype = before;
        }
        case.golden.get_mut("embed").unwrap().dtype = Some(DType::I64);
        assert_eq!(first(&case, Compared::Exactly, &none), None);
    }

    #[test]
    fn ours_compute_in_the_type_of_the_run() {
        let case = Case::load(Path::new("goldens/passk")).expect("the committed golden is whole");
        let of = |dtype| {
            let values = Values {
                dtype,
                ..Values::vector(vec![1.0])
            };
            let actual = Results::from([("embed".to_owned(), values)]);
            first(&case, Compared::ByDistance, &actual)
        };
        for sound in [None, Some(DType::F32), Some(DType::U32)] {
            assert_eq!(of(sound), None);
        }
        let reason = "computed in f64, the run is one in f32".to_owned();
        assert_eq!(of(Some(DType::F64)), Some((GOLDEN_FILE, reason)));
    }

    #[test]
    fn a_key_without_a_stage_is_a_mismatch() {
        let case = Case::load(Path::new("goldens/passk")).expect("the committed golden is whole");
        let found = first(&case, Compared::Never, &Results::new());
        let reason = "no stage of this program compares it".to_owned();
        assert_eq!(found, Some((GOLDEN_FILE, reason)));
    }
}

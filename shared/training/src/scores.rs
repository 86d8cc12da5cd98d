//! One number per response target: the form in which advantages and reference cross-entropies are stored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::buffer::{bad_file, numbers, read, write};
use crate::error::{Error, Result};

/// Scores of some rows of a data set, one per response target.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScores {
    values: Vec<f32>,
    spans: BTreeMap<usize, (usize, usize)>,
}

impl TokenScores {
    /// From rows with their scores; a row that comes twice keeps the later scores.
    pub fn new(rows: impl IntoIterator<Item = (usize, Vec<f32>)>) -> Self {
        let by_row: BTreeMap<usize, Vec<f32>> = rows.into_iter().collect();
        let mut scores = Self {
            values: Vec::new(),
            spans: BTreeMap::new(),
        };
        for (row, values) in by_row {
            let start = scores.values.len();
            scores.values.extend(values);
            scores.spans.insert(row, (start, scores.values.len()));
        }
        scores
    }

    /// All scores, row after row in ascending order of rows.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.spans.len()
    }

    /// Scores of a row that has this many response targets.
    ///
    /// # Errors
    /// [`Error::BadData`] when the row is absent or has another number of scores: the file then belongs to
    /// another data set.
    pub fn of_row(&self, row: usize, targets: usize) -> Result<&[f32]> {
        let Some(&(start, end)) = self.spans.get(&row) else {
            return Err(Error::BadData(format!(
                "there are no stored scores for row {row}: they were made for another data set"
            )));
        };
        if end - start != targets {
            return Err(Error::BadData(format!(
                "row {row} has {targets} response tokens but {} stored scores: they were made for another \
                 data set",
                end - start
            )));
        }
        Ok(&self.values[start..end])
    }

    /// Writes `{name}: f32[total]`, `offsets: i64[rows + 1]` and `row: u32[rows]`.
    pub fn save(&self, path: &Path, name: &str) -> Result<()> {
        let ends = self.spans.values().map(|&(_, end)| end as i64);
        let offsets: Vec<i64> = std::iter::once(0).chain(ends).collect();
        let column = |dtype, len, bytes| Column {
            dtype,
            shape: [len],
            bytes,
        };
        let values = self.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let bounds = offsets.iter().flat_map(|x| x.to_le_bytes()).collect();
        let rows = self
            .spans
            .keys()
            .flat_map(|&row| (row as u32).to_le_bytes())
            .collect();
        let columns = [
            (name, column(Dtype::F32, self.values.len(), values)),
            ("offsets", column(Dtype::I64, offsets.len(), bounds)),
            ("row", column(Dtype::U32, self.spans.len(), rows)),
        ];
        let bytes = safetensors::serialize(columns, None).map_err(|error| bad_file(path, error))?;
        write(path, &bytes)
    }

    /// Reads what [`TokenScores::save`] wrote.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the file is truncated, lacks a column, or its columns do not fit together.
    pub fn load(path: &Path, name: &str) -> Result<Self> {
        let bytes = read(path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| bad_file(path, error))?;
        let column = |name: &str, dtype: Dtype| {
            let view = file.tensor(name).map_err(|error| bad_file(path, error))?;
            if view.dtype() != dtype || view.shape().len() != 1 {
                return Err(bad_file(path, format!("{name} is no vector of {dtype:?}")));
            }
            Ok(view)
        };
        let values = numbers(column(name, Dtype::F32)?.data(), f32::from_le_bytes);
        let offsets = numbers(column("offsets", Dtype::I64)?.data(), i64::from_le_bytes);
        let rows = numbers(column("row", Dtype::U32)?.data(), u32::from_le_bytes);
        let fits = offsets.len() == rows.len() + 1
            && offsets.first() == Some(&0)
            && offsets.last() == Some(&(values.len() as i64))
            && offsets.is_sorted()
            && rows.is_sorted_by(|a, b| a < b);
        if !fits {
            return Err(bad_file(
                path,
                "offsets, rows and scores do not fit together",
            ));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(bad_file(path, format!("score {index} is not finite")));
        }
        let bounds = offsets
            .windows(2)
            .map(|pair| (pair[0] as usize, pair[1] as usize));
        let spans = rows.iter().map(|&row| row as usize).zip(bounds).collect();
        Ok(Self { values, spans })
    }
}

/// One column of the file.
struct Column {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Vec<u8>,
}

impl View for Column {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TokenScores {
        TokenScores::new([(7, vec![0.5, -1.0]), (2, vec![]), (4, vec![3.25])])
    }

    #[test]
    fn a_file_comes_back_as_it_was_and_with_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            dir.path().join("a.safetensors"),
            dir.path().join("b.safetensors"),
        );
        sample().save(&one, "advantage").unwrap();
        let back = TokenScores::load(&one, "advantage").unwrap();
        assert_eq!(back, sample());
        back.save(&two, "advantage").unwrap();
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        assert!(matches!(
            TokenScores::load(&one, "ce"),
            Err(Error::BadFile { .. })
        ));
    }

    #[test]
    fn rows_are_found_and_checked() {
        let scores = sample();
        assert_eq!(scores.of_row(7, 2).unwrap(), [0.5f32, -1.0].as_slice());
        assert!(scores.of_row(7, 3).is_err());
        assert!(scores.of_row(3, 1).is_err());
    }

    #[test]
    fn a_truncated_file_is_bad_input() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        sample().save(&path, "ce").unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 7, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(
                matches!(TokenScores::load(&path, "ce"), Err(Error::BadFile { .. })),
                "{len}"
            );
        }
    }
}

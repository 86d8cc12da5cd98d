//! Token ids of a split, in the order of its records.
//!
//! A safetensors file `{ids: u32[total], offsets: i64[rows+1], prompt_len: u32[rows], is_correct: u8[rows]}`;
//! `is_correct` is 0, 1, or 255 where the label was never established.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use wmtp_tokens::TokenizedSample;

use crate::Error;

const UNKNOWN_LABEL: u8 = 255;

/// All sequences of a split. Made by prepare-data; read by both training jobs and the evaluator's head losses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    ids: Vec<u32>,
    offsets: Vec<usize>,
    prompt_len: Vec<u32>,
    is_correct: Vec<Option<bool>>,
}

/// One sequence. Response targets are the positions `prompt_len..ids.len()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRow<'a> {
    /// Begin token, prompt, response, end token.
    pub ids: &'a [u32],
    /// Index of the first response token.
    pub prompt_len: usize,
    /// Label by execution.
    pub is_correct: Option<bool>,
}

impl TokenRow<'_> {
    /// Number of response targets, end token included.
    pub fn response_len(&self) -> usize {
        self.ids.len() - self.prompt_len
    }
}

impl Default for TokenFile {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            offsets: vec![0],
            prompt_len: Vec::new(),
            is_correct: Vec::new(),
        }
    }
}

impl TokenFile {
    /// Appends a row.
    pub fn push(&mut self, sample: &TokenizedSample, is_correct: Option<bool>) {
        self.ids.extend_from_slice(&sample.ids);
        self.offsets.push(self.ids.len());
        self.prompt_len.push(sample.prompt_len as u32);
        self.is_correct.push(is_correct);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.prompt_len.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.prompt_len.is_empty()
    }

    /// One row.
    ///
    /// # Panics
    /// When `row` is not below [`Self::len`].
    pub fn row(&self, row: usize) -> TokenRow<'_> {
        TokenRow {
            ids: &self.ids[self.offsets[row]..self.offsets[row + 1]],
            prompt_len: self.prompt_len[row] as usize,
            is_correct: self.is_correct[row],
        }
    }

    /// Indices of the rows whose program passes, ascending.
    pub fn correct_rows(&self) -> Vec<usize> {
        self.rows_where(|label| label == Some(true))
    }

    /// Indices of the rows with a label, ascending.
    pub fn labelled_rows(&self) -> Vec<usize> {
        self.rows_where(|label| label.is_some())
    }

    /// Tokens of the longest row; 0 when there are no rows.
    pub fn max_len(&self) -> usize {
        self.offsets
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(0)
    }

    fn rows_where(&self, keep: impl Fn(Option<bool>) -> bool) -> Vec<usize> {
        (0..self.len())
            .filter(|&row| keep(self.is_correct[row]))
            .collect()
    }

    /// Writes the file, creating the parent folder; the same rows give the same bytes.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let offsets: Vec<u8> = self
            .offsets
            .iter()
            .flat_map(|&offset| (offset as i64).to_le_bytes())
            .collect();
        let prompt_len: Vec<u8> = self
            .prompt_len
            .iter()
            .flat_map(|len| len.to_le_bytes())
            .collect();
        let is_correct: Vec<u8> = self
            .is_correct
            .iter()
            .map(|label| label.map_or(UNKNOWN_LABEL, u8::from))
            .collect();
        let bad = |reason: safetensors::SafeTensorError| Error::BadInput {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let view = |dtype, len, bytes| TensorView::new(dtype, vec![len], bytes).map_err(bad);
        let tensors = [
            ("ids", view(Dtype::U32, self.ids.len(), &ids)?),
            ("offsets", view(Dtype::I64, self.offsets.len(), &offsets)?),
            ("prompt_len", view(Dtype::U32, self.len(), &prompt_len)?),
            ("is_correct", view(Dtype::U8, self.len(), &is_correct)?),
        ];
        let bytes = serialize(tensors, None).map_err(bad)?;
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        std::fs::write(path, bytes).map_err(io)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::BadInput`] when it is truncated, lacks a tensor or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&bytes).map_err(|reason| Error::BadInput {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let ids = read_u32(&file, "ids")?;
        let offsets: Vec<usize> = tensor(&file, "offsets", Dtype::I64)?
            .chunks_exact(8)
            .map(|chunk| i64::from_le_bytes(chunk.try_into().unwrap_or_default()) as usize)
            .collect();
        let prompt_len = read_u32(&file, "prompt_len")?;
        let is_correct = tensor(&file, "is_correct", Dtype::U8)?
            .iter()
            .map(|&label| match label {
                0 => Ok(Some(false)),
                1 => Ok(Some(true)),
                UNKNOWN_LABEL => Ok(None),
                other => Err(format!(
                    "is_correct holds {other}; 0, 1 or 255 was expected"
                )),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let file = Self {
            ids,
            offsets,
            prompt_len,
            is_correct,
        };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let rows = self.len();
        if self.offsets.len() != rows + 1 || self.is_correct.len() != rows {
            return Err(format!(
                "{rows} prompt lengths, but {} offsets and {} labels",
                self.offsets.len(),
                self.is_correct.len()
            ));
        }
        if self.offsets[0] != 0 || self.offsets[rows] != self.ids.len() {
            return Err(format!(
                "the offsets do not span the {} ids",
                self.ids.len()
            ));
        }
        for row in 0..rows {
            let (start, end) = (self.offsets[row], self.offsets[row + 1]);
            let prompt_len = self.prompt_len[row] as usize;
            if end <= start || prompt_len == 0 || prompt_len >= end - start {
                return Err(format!(
                    "row {row} has offsets {start}..{end} and a prompt of {prompt_len} tokens"
                ));
            }
        }
        Ok(())
    }
}

fn tensor<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype) -> Result<&'a [u8], String> {
    let view = file.tensor(name).map_err(|error| error.to_string())?;
    if view.dtype() != dtype || view.shape().len() != 1 {
        return Err(format!(
            "tensor {name} is {:?} {:?}; {dtype:?} of rank 1 was expected",
            view.dtype(),
            view.shape()
        ));
    }
    Ok(view.data())
}

fn read_u32(file: &SafeTensors<'_>, name: &str) -> Result<Vec<u32>, String> {
    Ok(tensor(file, name, Dtype::U32)?
        .chunks_exact(4)
        .map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap_or_default()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_file() -> TokenFile {
        let mut file = TokenFile::default();
        for (ids, prompt_len, label) in [
            (vec![1, 5, 6, 2], 2, Some(true)),
            (vec![1, 5, 2], 2, None),
            (vec![1, 9, 9, 9, 2], 3, Some(false)),
        ] {
            file.push(&TokenizedSample { ids, prompt_len }, label);
        }
        file
    }

    #[test]
    fn rows_survive_the_file_and_a_cut_file_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("tokens/train.safetensors");
        let file = sample_file();
        file.save(&path).expect("writable");
        let loaded = TokenFile::load(&path).expect("just written");
        assert_eq!(loaded, file);
        assert_eq!(loaded.correct_rows(), [0]);
        assert_eq!(loaded.labelled_rows(), [0, 2]);
        assert_eq!(loaded.max_len(), 5);
        assert_eq!(loaded.row(2).response_len(), 2);

        let bytes = std::fs::read(&path).expect("just written");
        std::fs::write(&path, &bytes[..bytes.len() - 3]).expect("writable");
        let error = TokenFile::load(&path).expect_err("three bytes are missing");
        assert!(error.is_bad_input(), "{error}");
    }

    #[test]
    fn a_row_without_response_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("x.safetensors");
        let mut file = sample_file();
        file.prompt_len[1] = 3;
        file.save(&path).expect("writable");
        let error = TokenFile::load(&path)
            .expect_err("row 1 has no response")
            .to_string();
        assert!(error.contains("row 1"), "{error}");
    }
}

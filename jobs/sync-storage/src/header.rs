//! The header of a safetensors file, read without its tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use wmtp_job_kit::JobError;

/// Larger headers are no headers.
const LARGEST_HEADER: u64 = 100 << 20;
const LENGTH_BYTES: u64 = 8;

/// Names, types and shapes of a file's tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    /// Where each begins and ends in the file.
    pub(crate) offsets: BTreeMap<String, (u64, u64)>,
    /// The type that the weights had before they were converted, if the file says it.
    pub(crate) source_dtype: Option<String>,
}

impl Header {
    /// Reads the header and checks that the file is as long as it says.
    ///
    /// # Errors
    /// 65 for a file that is no safetensors file or ends too early, with both lengths.
    pub(crate) fn read(path: &Path) -> Result<Self, JobError> {
        let bad = |what: String| JobError::bad_input(format!("{}: {what}", path.display()));
        let io =
            |error: std::io::Error| JobError::bad_input(error).context(path.display().to_string());
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(|_| {
            bad(format!(
                "no safetensors file: {size} bytes, truncated before its header"
            ))
        })?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER {
            return Err(bad(format!(
                "no safetensors file: a header of {length} bytes"
            )));
        }
        if LENGTH_BYTES + length > size {
            return Err(bad(format!(
                "truncated: {size} bytes, the header alone has {length}"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("no safetensors header: {error}")))?;
        let expected = LENGTH_BYTES + length + metadata.data_len() as u64;
        if size < expected {
            return Err(bad(format!("truncated: {size} bytes, expected {expected}")));
        }
        if size > expected {
            return Err(bad(format!(
                "{} bytes follow the last tensor",
                size - expected
            )));
        }
        let data = LENGTH_BYTES + length;
        let in_file = |(start, end): (usize, usize)| (data + start as u64, data + end as u64);
        let offsets = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, in_file(info.data_offsets)))
            .collect();
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, (info.dtype, info.shape.clone())))
            .collect();
        let notes = metadata.metadata().as_ref();
        let source_dtype = notes.and_then(|notes| notes.get("source_dtype").cloned());
        Ok(Self {
            tensors,
            offsets,
            source_dtype,
        })
    }

    /// Number of elements of all tensors.
    pub(crate) fn num_elements(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|&size| size as u64).product::<u64>();
        self.tensors.values().map(|(_, shape)| count(shape)).sum()
    }

    /// The one type of all tensors, as `metadata.json` names it.
    pub(crate) fn dtype(&self) -> Option<&'static str> {
        let mut dtypes = self.tensors.values().map(|(dtype, _)| *dtype);
        let first = dtypes.next()?;
        if dtypes.any(|dtype| dtype != first) {
            return None;
        }
        match first {
            Dtype::F16 => Some("float16"),
            Dtype::BF16 => Some("bfloat16"),
            Dtype::F32 => Some("float32"),
            Dtype::F64 => Some("float64"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Header;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn every_truncation_is_bad_input() {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0; 8]);
        let read = Header::read(file(&bytes).path()).unwrap();
        assert_eq!((read.num_elements(), read.dtype()), (2, Some("float32")));
        for end in 0..bytes.len() {
            let error = Header::read(file(&bytes[..end]).path()).unwrap_err();
            assert_eq!(error.exit(), wmtp_job_kit::Exit::BadInput);
            assert!(error.to_string().contains("truncated"), "{end}: {error}");
        }
        bytes.push(0);
        let error = Header::read(file(&bytes).path()).unwrap_err();
        assert!(error.to_string().contains("1 bytes follow"), "{error}");
    }

    /// What is accepted lies inside of the file.
    #[test]
    fn no_header_makes_the_reader_fail() {
        let corpus = "tests/corpus/header";
        let file = file(&[]);
        fuzzing::run(corpus.as_ref(), |bytes| {
            std::fs::write(file.path(), bytes).unwrap();
            match Header::read(file.path()) {
                Ok(header) => {
                    let mut ends = header.offsets.values().map(|(_, end)| *end);
                    assert!(ends.all(|end| end <= bytes.len() as u64));
                    let (elements, dtype) = (header.num_elements(), header.dtype());
                    format!("{} tensors, {elements}, {dtype:?}", header.tensors.len())
                }
                Err(error) => error
                    .to_string()
                    .replace(&file.path().display().to_string(), ""),
            }
        });
    }
}

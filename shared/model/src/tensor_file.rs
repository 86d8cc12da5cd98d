//! One safetensors file, read and written tensor by tensor.
//!
//! A model of 7 billion parameters fills a machine once. Neither its file nor a second copy of all tensors is held beside
//! it: reading takes the header and then each tensor from its place, writing converts one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{Error, Result};

/// Bytes of the number before the header, which says how long that is, and what the header's length is a multiple of.
const WORD: usize = size_of::<u64>();
/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// Numbers that are converted and written at once: 128 KiB of f64, since some virtual machines write more than that at a
/// time far slower.
const CHUNK: usize = 1 << 14;

/// A file whose header was checked against the file's length.
pub(crate) struct TensorFile<'a> {
    path: &'a Path,
    file: File,
    /// Where the tensors start.
    start: u64,
    metadata: Metadata,
}

impl<'a> TensorFile<'a> {
    /// Reads the header.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let at = |source| Error::io(path, source);
        let mut file = File::open(path).map_err(at)?;
        let length = file.metadata().map_err(at)?.len();
        let header = header(path, &mut file, length)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|reason| {
            let reason = lie(&header).unwrap_or_else(|| reason.to_string());
            Error::corrupt(path, reason)
        })?;
        let start = (WORD + header.len()) as u64;
        let end = start + metadata.data_len() as u64;
        if end != length {
            let reason = format!("its tensors end at byte {end}, the file at {length}");
            return Err(Error::corrupt(path, reason));
        }
        Ok(Self {
            path,
            file,
            start,
            metadata,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.path
    }

    /// Names of all tensors, in the order of the file.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Bytes of all tensors.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.metadata.data_len() as u64
    }

    /// What the header says of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// An entry of the header that is no tensor.
    pub(crate) fn entry(&self, key: &str) -> Option<&str> {
        let entries = self.metadata.metadata().as_ref()?;
        entries.get(key).map(String::as_str)
    }

    /// The bytes of a tensor of this file.
    pub(crate) fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let (first, last) = info.data_offsets;
        let mut bytes = vec![0; last - first];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + first as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| Error::io(self.path, source))?;
        Ok(bytes)
    }
}

/// The header of a file of so many bytes.
fn header(path: &Path, file: &mut File, length: u64) -> Result<Vec<u8>> {
    let at = |source| Error::io(path, source);
    let Some(rest) = length.checked_sub(WORD as u64) else {
        let reason = format!("{length} bytes hold no header");
        return Err(Error::corrupt(path, reason));
    };
    let mut size = [0; WORD];
    file.read_exact(&mut size).map_err(at)?;
    let size = u64::from_le_bytes(size);
    if size > rest.min(LONGEST_HEADER) {
        let reason = format!("it announces a header of {size} bytes, and has {rest} behind that");
        return Err(Error::corrupt(path, reason));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(at)?;
    Ok(header)
}

/// The tensor whose shape and type take another number of bytes than its place has; the parser does not name it.
fn lie(header: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Tensor(TensorInfo),
        Metadata(IgnoredAny),
    }
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(header).ok()?;
    entries.into_iter().find_map(|(name, entry)| {
        let Entry::Tensor(info) = entry else {
            return None;
        };
        let size = info.data_offsets.1.checked_sub(info.data_offsets.0)?;
        let mut sizes = info.shape.iter();
        let bits = sizes.try_fold(info.dtype.bitsize(), |bits, size| bits.checked_mul(*size));
        let (dtype, shape) = (info.dtype, info.shape);
        (bits != size.checked_mul(8)).then(|| {
            format!("tensor {name} lies about its size: {dtype:?} {shape:?} in {size} bytes")
        })
    })
}

/// A tensor to write, and what it is made of when its turn comes.
pub(crate) struct Planned<S> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) source: S,
}

/// Writes tensors of one type, with entries for the header. The same values give the same bytes, those of the format's
/// own library, which sorts tensors of one type by name.
pub(crate) fn write<S>(
    path: &Path,
    dtype: DType,
    entries: Option<HashMap<String, String>>,
    mut planned: Vec<Planned<S>>,
    make: impl Fn(&S) -> Result<Tensor>,
) -> Result<()> {
    let at = |source| Error::io(path, source);
    planned.sort_by(|one, other| one.name.cmp(&other.name));
    let header = header_of(path, dtype, entries, &planned)?;
    let mut file = BufWriter::new(File::create(path).map_err(at)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(&header))
        .map_err(at)?;
    for one in &planned {
        let tensor = make(&one.source)?;
        assert_eq!(tensor.dims(), one.shape, "{} is made as planned", one.name);
        write_values(path, &mut file, &tensor.flatten_all()?)?;
    }
    file.flush().map_err(at)
}

/// The header for tensors in their order, blanks behind it.
fn header_of<S>(
    path: &Path,
    dtype: DType,
    entries: Option<HashMap<String, String>>,
    planned: &[Planned<S>],
) -> Result<Vec<u8>> {
    let stored = match dtype {
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let mut first = 0;
    let place = |one: &Planned<S>| {
        let size = one.shape.iter().product::<usize>() * stored.bitsize() / 8;
        let info = TensorInfo {
            dtype: stored,
            shape: one.shape.clone(),
            data_offsets: (first, first + size),
        };
        first += size;
        (one.name.clone(), info)
    };
    let places = planned.iter().map(place).collect();
    let metadata = Metadata::new(entries, places).map_err(|reason| Error::corrupt(path, reason))?;
    let mut header = serde_json::to_vec(&metadata).expect("names and numbers always serialize");
    header.resize(header.len().next_multiple_of(WORD), b' ');
    Ok(header)
}

/// Writes flat values as the file has them, little end first.
fn write_values(path: &Path, file: &mut impl Write, flat: &Tensor) -> Result<()> {
    match flat.dtype() {
        DType::F64 => write_as(path, file, flat, f64::to_le_bytes),
        DType::BF16 => write_as(path, file, flat, bf16::to_le_bytes),
        DType::F16 => write_as(path, file, flat, f16::to_le_bytes),
        _ => write_as(path, file, &flat.to_dtype(DType::F32)?, f32::to_le_bytes),
    }
}

fn write_as<T: WithDType, const N: usize>(
    path: &Path,
    file: &mut impl Write,
    flat: &Tensor,
    of: fn(T) -> [u8; N],
) -> Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK * N);
    for values in flat.to_vec1::<T>()?.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| of(*value)));
        file.write_all(&bytes)
            .map_err(|source| Error::io(path, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use safetensors::tensor::TensorView;

    use super::*;

    fn numbers(count: usize, dtype: DType) -> Tensor {
        let values: Vec<f64> = (0..count).map(|at| (at % 97) as f64 / 8.0 - 6.0).collect();
        let tensor = Tensor::from_vec(values, count, &Device::Cpu).unwrap();
        tensor.to_dtype(dtype).unwrap()
    }

    fn saved(path: &Path, dtype: DType, entries: Option<HashMap<String, String>>) -> Vec<u8> {
        // More values than are converted at once, none at all, and names out of order.
        let planned = [("b", CHUNK + 5), ("a.weight", 7), ("c", 0)];
        let planned = planned.map(|(name, count)| Planned {
            name: name.to_owned(),
            shape: vec![count],
            source: count,
        });
        let make = |count: &usize| Ok(numbers(*count, dtype));
        write(path, dtype, entries, planned.into(), make).unwrap();
        std::fs::read(path).unwrap()
    }

    fn raw(tensor: &Tensor) -> Vec<u8> {
        let wide: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let bytes = |value: f64| match tensor.dtype() {
            DType::F64 => value.to_le_bytes().to_vec(),
            DType::F32 => (value as f32).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            _ => f16::from_f64(value).to_le_bytes().to_vec(),
        };
        wide.into_iter().flat_map(bytes).collect()
    }

    #[test]
    fn a_written_file_has_the_bytes_of_the_formats_own_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for (dtype, stored) in [
            (DType::F64, Dtype::F64),
            (DType::F32, Dtype::F32),
            (DType::BF16, Dtype::BF16),
            (DType::F16, Dtype::F16),
        ] {
            for entries in [
                None,
                Some(HashMap::from([("k".to_owned(), "é\"".to_owned())])),
            ] {
                let tensors = [("a.weight", 7), ("b", CHUNK + 5), ("c", 0)]
                    .map(|(name, count)| (name, count, raw(&numbers(count, dtype))));
                let views = tensors.iter().map(|(name, count, bytes)| {
                    (*name, TensorView::new(stored, vec![*count], bytes).unwrap())
                });
                let expected = safetensors::serialize(views, entries.clone()).unwrap();
                assert!(saved(&path, dtype, entries) == expected, "{dtype:?}");
            }
        }
    }

    #[test]
    fn each_tensor_is_read_from_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let entries = HashMap::from([("key".to_owned(), "value".to_owned())]);
        saved(&path, DType::F32, Some(entries));
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["a.weight", "b", "c"]);
        assert_eq!(file.num_bytes(), 4 * (7 + CHUNK as u64 + 5));
        assert_eq!(
            (file.entry("key"), file.entry("other")),
            (Some("value"), None)
        );
        for (name, count) in [("c", 0), ("b", CHUNK + 5), ("a.weight", 7)] {
            let info = file.info(name).unwrap();
            let expected = raw(&numbers(count, DType::F32));
            assert!(file.bytes(info).unwrap() == expected, "{name}");
        }
        assert!(file.info("d").is_none());
    }

    #[test]
    fn a_file_that_is_none_is_named_with_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let whole = saved(&path, DType::F32, None);
        let refusal = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = TensorFile::open(&path).err().expect("no such file");
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            error.to_string()
        };
        assert!(refusal(b"").contains("0 bytes hold no header"));
        assert!(refusal(&whole[..7]).contains("7 bytes hold no header"));
        assert!(refusal(&whole[..40]).contains("announces a header of"));
        let huge = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
        assert!(refusal(&huge).contains("18446744073709551615 bytes"));
        let end = whole.len();
        let short = format!("end at byte {end}, the file at {}", end - 1);
        assert!(refusal(&whole[..end - 1]).contains(&short));
        assert!(refusal(&[&whole[..], b"x"].concat()).contains("the file at"));
        assert!(refusal(&[&[2, 0, 0, 0, 0, 0, 0, 0][..], b"[]"].concat()).contains("damaged"));
        let moved = String::from_utf8(whole[8..8 + 150].to_vec()).unwrap();
        let moved = moved.replace("[0,28]", "[4,32]");
        let gap = [&whole[..8], moved.as_bytes(), &whole[8 + 150..]].concat();
        assert!(refusal(&gap).contains("offset"), "a place that begins late");
    }
}

//! JSON lines: one row a line, errors that name file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line: a compressed file of a few KiB may hold one that no memory has room for.
const LONGEST_LINE: u64 = 64 << 20;

/// Why rows could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not the row that was expected.
    #[error("{}, line {line}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What was found and what was expected.
        what: String,
    },
}

/// The rows of a file with their 1-based line numbers; blank lines are skipped. A name that ends in `.gz` is
/// decompressed.
///
/// # Errors
/// [`Error::Row`] names the file and the line of a row that does not parse.
pub fn rows<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(usize, T), Error>>, Error> {
    Ok(lines(path)?.map(move |read| {
        let (line, text) = read?;
        Ok((line, parse(path, line, &text)?))
    }))
}

/// A row from its text, which is line `line` of a file.
///
/// # Errors
/// [`Error::Row`], as of [`rows`].
pub fn parse<T: DeserializeOwned>(path: &Path, line: usize, text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| Error::Row {
        path: path.to_owned(),
        line,
        what: in_column(&error),
    })
}

/// The texts of the rows that [`rows`] parses: for numbers that a parsed value does not hold, as Python's whole ones.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Row`] for a line of more than 64 MiB, which is the last to be read.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Vec<u8>), Error>>, Error> {
    lines_up_to(LONGEST_LINE, path)
}

fn lines_up_to(longest: u64, path: &Path) -> Result<Lines<'_>, Error> {
    let file = File::open(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    let bytes: Box<dyn Read> = if path.extension().is_some_and(|extension| extension == "gz") {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    Ok(Lines {
        path,
        bytes: BufReader::new(bytes),
        longest,
        line: 0,
        has_failed: false,
    })
}

/// The lines of a file that are not blank, up to the first that cannot be read.
struct Lines<'a> {
    path: &'a Path,
    bytes: BufReader<Box<dyn Read>>,
    longest: u64,
    line: usize,
    has_failed: bool,
}

impl Lines<'_> {
    /// The next line with its end; nothing at the end of the file.
    fn read(&mut self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        // One byte more is its end, or too much.
        let mut part = self.bytes.by_ref().take(self.longest + 1);
        part.read_until(b'\n', &mut text)
            .map_err(|source| Error::Io {
                path: self.path.to_owned(),
                source,
            })?;
        if text.len() as u64 > self.longest && !text.ends_with(b"\n") {
            return Err(Error::Row {
                path: self.path.to_owned(),
                line: self.line,
                what: format!("found more than {} bytes in one line", self.longest),
            });
        }
        Ok(text)
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<(usize, Vec<u8>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.has_failed {
            self.line += 1;
            match self.read() {
                Ok(text) if text.is_empty() => return None,
                Ok(text) if text.trim_ascii().is_empty() => {}
                Ok(mut text) => {
                    text.pop_if(|end| *end == b'\n');
                    return Some(Ok((self.line, text)));
                }
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// The parser's words without its line, which is that of the text it was given.
fn in_column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

/// Reads every row of a file; blank lines are skipped.
///
/// # Errors
/// [`Error::Row`] names the file and the 1-based line of the first row that does not parse.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    rows(path)?.map(|row| row.map(|(_, row)| row)).collect()
}

/// Writes rows, one a line, creating the parent folder.
///
/// The same rows give the same bytes. The file is not synced: publishing an artifact does that.
pub fn write<'a, T: Serialize + 'a>(
    path: &Path,
    rows: impl IntoIterator<Item = &'a T>,
) -> Result<(), Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut writer = BufWriter::new(File::create(path).map_err(io)?);
    for row in rows {
        serde_json::to_writer(&mut writer, row).map_err(|error| io(error.into()))?;
        writer.write_all(b"\n").map_err(io)?;
    }
    writer.flush().map_err(io)
}

/// Writes one value as indented JSON with a final newline, creating the parent folder.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| io(error.into()))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(io)
}

/// Reads one JSON value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Row {
        path: path.to_owned(),
        line: source.line(),
        what: in_column(&source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let error = read::<serde_json::Map<String, serde_json::Value>>(&path);
        error.expect_err("a broken row").to_string()
    }

    #[test]
    fn a_broken_row_is_named_by_file_line_and_column() {
        let text = message(b"{}\n\n{}\n{\n");
        assert!(text.contains(".jsonl, line 4: EOF"), "{text}");
        assert!(text.ends_with("(column 1)"), "{text}");
        let text = message(b"{}\n3\n");
        assert!(text.contains("line 2: invalid type: integer `3`"), "{text}");
    }

    /// Without a limit a few bytes of a compressed file would fill all memory.
    #[test]
    fn a_line_that_is_too_long_is_named_and_the_last_to_be_read() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let text = b"{\"a\": 12}\n\n{\"a\": 1234}\n{}\n";
        let plain = folder.path().join("rows.jsonl");
        std::fs::write(&plain, text).expect("temporary file");
        let packed = folder.path().join("rows.jsonl.gz");
        let file = File::create(&packed).expect("temporary file");
        let mut writer = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        writer.write_all(text).expect("temporary file");
        writer.finish().expect("temporary file");
        for path in [plain, packed] {
            // The end of a line is no part of it.
            let whole: Vec<_> = lines_up_to(11, &path)
                .expect("a file")
                .map(Result::unwrap)
                .collect();
            let first = (1, b"{\"a\": 12}".to_vec());
            assert_eq!((whole.len(), &whole[0]), (3, &first));
            let cut: Vec<_> = lines_up_to(10, &path).expect("a file").collect();
            assert_eq!(cut.len(), 2, "{cut:?}");
            let error = cut[1].as_ref().expect_err("too long").to_string();
            let name = path.display();
            assert_eq!(
                error,
                format!("{name}, line 3: found more than 10 bytes in one line")
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_a_broken_row() {
        let text = message(b"{}\n{\"a\": \"\xff\"}\n");
        assert!(text.contains("line 2: invalid unicode"), "{text}");
    }
}

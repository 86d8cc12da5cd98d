//! JSON lines that a run holds until it publishes them whole.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::buffer;
use crate::{Error, Result};

/// Bytes of a piece before the next one begins.
const PIECE: usize = 64 << 10;

/// Lines in pieces of one size: what is written stays where it is, so memory grows by what is added. One text would
/// double now and then, and hold both halves while it moves.
#[derive(Debug, Default)]
pub struct Lines {
    pieces: Vec<String>,
}

impl Lines {
    /// Appends a line.
    pub(crate) fn push(&mut self, value: &impl Serialize) {
        let line = serde_json::json!(value).to_string();
        self.push_line(&line);
    }

    fn push_line(&mut self, line: &str) {
        let fits = |piece: &String| piece.len() + line.len() < PIECE;
        if !self.pieces.last().is_some_and(fits) {
            let room = PIECE.max(line.len() + 1);
            self.pieces.push(String::with_capacity(room));
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.push_str(line);
            piece.push('\n');
        }
    }

    /// The lines, without their ends.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().flat_map(|piece| piece.lines())
    }

    /// Bytes of all lines with their ends.
    pub fn num_bytes(&self) -> usize {
        self.pieces.iter().map(String::len).sum()
    }

    /// Writes the file, creating its folder.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn write(&self, path: &Path) -> Result<()> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        for piece in &self.pieces {
            file.write_all(piece.as_bytes()).map_err(io)?;
        }
        file.flush().map_err(io)
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::BadFile`] with the path.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8(buffer::read(path)?)
            .map_err(|error| buffer::bad_file(path, error))?;
        let mut lines = Self::default();
        for line in text.lines() {
            lines.push_line(line);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_whole_across_pieces_and_nothing_is_held_twice() {
        let mut lines = Lines::default();
        let wide = "x".repeat(PIECE / 3);
        let values: Vec<_> = (0..10).map(|i| format!("{i}{wide}")).collect();
        for value in &values {
            lines.push(value);
        }
        lines.push(&"y".repeat(2 * PIECE));
        let held: usize = lines.pieces.iter().map(String::capacity).sum();
        assert!(held <= lines.num_bytes() + lines.pieces.len() * (PIECE / 2));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/lines.jsonl");
        lines.write(&path).unwrap();
        let again = Lines::read(&path).unwrap();
        assert!(again.iter().eq(lines.iter()));
        assert_eq!(again.iter().count(), 11);
        let on_disk = std::fs::metadata(&path).unwrap().len();
        assert_eq!(on_disk as usize, lines.num_bytes());
        assert_eq!(again.iter().nth(3).unwrap(), format!("\"{}\"", values[3]));
    }
}

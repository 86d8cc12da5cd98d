//! Finished texts on this disk: one line each, appended the moment that a text ends.
//!
//! A line is one write to a file opened for appending, so a killed process leaves whole lines and at most the beginning
//! of one more, which does not parse and counts as nothing. The kernel has what was written even when the process is
//! killed; it is not forced onto the disk, since a machine that dies takes its scratch folder with it anyway.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use wmtp_artifacts::fault;
use wmtp_job_kit::JobError;
use wmtp_records::jsonl;

use crate::texts::Text;

/// The file of one run, which several threads write.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Opens the file, or makes it; returns the texts that earlier attempts have written.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Text>), JobError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| JobError::from(error).context(path.display().to_string()))?;
        let mut texts = Vec::new();
        for row in jsonl::rows::<Text>(path)? {
            match row {
                Ok((_, text)) => texts.push(text),
                // The beginning of a line that a killed attempt was writing.
                Err(jsonl::Error::Row { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        end_line(&mut file)?;
        let file = Mutex::new(file);
        Ok((Self { file }, texts))
    }

    /// Appends a text.
    pub(crate) fn add(&self, text: &Text) -> Result<(), JobError> {
        let mut line = serde_json::to_vec(text).map_err(JobError::internal)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)?;
        fault::point("evaluate:text");
        Ok(())
    }
}

/// What is written next must not become the rest of a cut line.
fn end_line(file: &mut File) -> std::io::Result<()> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wmtp_decoding::Timing;
    use wmtp_records::Completion;

    use super::*;

    fn text(sample: u32) -> Text {
        let completion = Completion {
            problem_id: "p".to_owned(),
            sample: Some(sample),
            raw: "a\nb é".to_owned(),
            program: "a\nb é\n".to_owned(),
            num_tokens: Some(3),
            finished: Some(true),
        };
        let timing = Timing {
            prefill: Duration::from_millis(2),
            whole: Duration::from_millis(8),
        };
        Text::new(completion, timing, Some(Duration::from_millis(3)))
    }

    /// Cuts the file at every length, as a kill while the second line was written may leave it.
    #[test]
    fn a_journal_cut_anywhere_keeps_every_whole_line_and_takes_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let (journal, found) = Journal::open(&whole).unwrap();
        assert!(found.is_empty());
        journal.add(&text(0)).unwrap();
        let first = std::fs::metadata(&whole).unwrap().len() as usize;
        journal.add(&text(1)).unwrap();
        let bytes = std::fs::read(&whole).unwrap();
        for cut in 0..=bytes.len() {
            let path = folder.path().join("cut");
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (journal, found) = Journal::open(&path).unwrap();
            // A line is whole without its end, too.
            let lines = usize::from(cut + 1 >= first) + usize::from(cut + 1 >= bytes.len());
            let expected: Vec<Text> = (0..2).map(text).take(lines).collect();
            assert_eq!(found, expected, "cut at {cut} of {}", bytes.len());
            journal.add(&text(7)).unwrap();
            let (_, found) = Journal::open(&path).unwrap();
            assert_eq!(found, [expected, vec![text(7)]].concat(), "cut at {cut}");
        }
    }
}

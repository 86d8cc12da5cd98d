//! Files of samples of a type that no page can show: offered for download, never opened.

use std::path::Path;

use super::{is_plain_name, read};
use crate::Error;

/// Types that pages show as text.
const SHOWN: [&str; 6] = ["txt", "py", "md", "json", "jsonl", "csv"];
/// Types that a browser can open without running anything. Others get a name that no program opens by itself.
const PASSIVE: [&str; 8] = ["png", "jpg", "jpeg", "gif", "webp", "wav", "mp3", "mp4"];
/// Largest file that is copied to the site; of a larger one the page tells the size.
const LARGEST: u64 = 4 << 20;

/// A file that belongs to a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleFile {
    /// Folder of the sample: `0001`.
    pub sample: String,
    /// Its name there: `output.png`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Its content, unless that is too large for a site.
    pub bytes: Option<Vec<u8>>,
}

impl SampleFile {
    /// Where it lies below the folder of its version: `files/0001/output.png`; as `output.svg.bin` what a browser would run.
    pub fn path(&self) -> String {
        let tail = if has_type(&self.name, &PASSIVE) {
            ""
        } else {
            ".bin"
        };
        format!("files/{}/{}{tail}", self.sample, self.name)
    }
}

fn has_type(name: &str, types: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    types
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// Files of unknown type below `infer_samples`, in the order of their names; none where there is no such folder. A name that
/// could be a path, and a link, is passed over.
pub(super) fn files(dir: &Path) -> Result<Vec<SampleFile>, Error> {
    let mut files = Vec::new();
    for sample in names(dir)? {
        let folder = dir.join(&sample);
        for name in names(&folder)? {
            let path = folder.join(&name);
            let found = std::fs::symlink_metadata(&path).map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            if !found.is_file() || has_type(&name, &SHOWN) {
                continue;
            }
            let bytes = (found.len() <= LARGEST).then(|| read(&path)).transpose()?;
            files.push(SampleFile {
                sample: sample.clone(),
                name,
                size: found.len(),
                bytes,
            });
        }
    }
    Ok(files)
}

/// Plain names in a folder, sorted; none where there is no folder.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |source| Error::Io {
        path: dir.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(
            name.to_str()
                .filter(|name| is_plain_name(name))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_no_page_shows_are_found_and_what_would_run_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, size: usize| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![b'x'; size]).unwrap();
        };
        put("0001/input.txt", 3);
        put("0001/meta.json", 3);
        put("0001/output.PNG", 3);
        put("0002/output.svg", 5);
        put("0002/gt", 0);
        put("0002/a b.wav", 1);
        put("0003/large.wav", 1 + (4 << 20));
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("0003/link.bin")).unwrap();
        let files = files(dir.path()).unwrap();
        let paths: Vec<String> = files.iter().map(SampleFile::path).collect();
        assert_eq!(
            paths,
            [
                "files/0001/output.PNG",
                "files/0002/gt.bin",
                "files/0002/output.svg.bin",
                "files/0003/large.wav"
            ]
        );
        assert_eq!(files[1].bytes, Some(Vec::new()));
        assert_eq!(files[3].bytes, None);
        assert!(super::files(&dir.path().join("none")).unwrap().is_empty());
    }
}

//! What a release holds: programs, what each is made of, notes, checksums. Looks whether they belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::engine::output;
use crate::error::Error;
use crate::rules::Finding;

/// What the notes tell under a heading of their own.
const HEADINGS: [&str; 3] = ["### Added", "### Upgrade notes", "### Known issues"];

/// The file of checksums, which `sha256sum --check` reads.
pub(crate) const SUMS: &str = "SHA256SUMS";

type Packages = BTreeSet<(String, String)>;

/// Looks through a release's folder.
///
/// # Errors
/// Where a file cannot be read at all; what is wrong with files is found.
pub(crate) fn check(folder: &Path, jobs: &[String], version: &str) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    let mut say = |place: &str, message: String| {
        found.push(Finding {
            place: place.to_owned(),
            message,
        });
    };
    let notes = String::from_utf8_lossy(&read(&folder.join("NOTES.md"))?).into_owned();
    if !notes.starts_with(&format!("# wmtp {version}\n")) {
        say(
            "NOTES.md",
            format!("does not begin with \"# wmtp {version}\""),
        );
    }
    for heading in HEADINGS.iter().filter(|heading| !notes.contains(**heading)) {
        say("NOTES.md", format!("has no {heading:?}"));
    }
    for job in jobs {
        let program = folder.join("bin").join(job);
        let place = format!("bin/{job}");
        match output(Command::new(&program).arg("--version")) {
            Ok(said) if said.stdout == format!("{job} {version}\n").into_bytes() => {}
            Ok(said) => say(
                &place,
                format!(
                    "--version says {:?}",
                    String::from_utf8_lossy(&said.stdout).trim()
                ),
            ),
            Err(error) => say(&place, error.to_string()),
        }
        let listed = listed(&folder.join(format!("sbom/{job}.cdx.json")))?;
        match embedded(&program) {
            Ok(embedded) => {
                let lacking: Vec<String> = embedded
                    .difference(&listed)
                    .map(|(name, version)| format!("{name} {version}"))
                    .collect();
                if !lacking.is_empty() {
                    say(
                        &format!("sbom/{job}.cdx.json"),
                        format!("lacks what the program is made of: {}", lacking.join(", ")),
                    );
                }
            }
            Err(why) => say(&place, format!("names no dependencies: {why}")),
        }
    }
    let (sums, are) = (recorded(&folder.join(SUMS))?, digests(folder)?);
    for (name, digest) in &are {
        match sums.get(name) {
            Some(recorded) if recorded == digest => {}
            Some(_) => say(name, format!("is not what {SUMS} has recorded")),
            None => say(name, format!("is not in {SUMS}")),
        }
    }
    for name in sums.keys().filter(|name| !are.contains_key(*name)) {
        say(name, format!("stands in {SUMS} and is not there"));
    }
    Ok(found)
}

/// Every file of a release with its SHA-256, but for the checksums themselves.
pub(crate) fn digests(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut all = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let path = folder.join(&below);
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = below.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                open.push(name);
            } else if name != Path::new(SUMS) {
                let mut digest = String::new();
                for byte in Sha256::digest(read(&entry.path())?) {
                    write!(digest, "{byte:02x}").expect("writing into a string");
                }
                all.insert(name.display().to_string(), digest);
            }
        }
    }
    Ok(all)
}

/// What `sha256sum` writes: a digest, two characters, a name.
fn recorded(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    Ok(lines
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect())
}

/// The packages of a CycloneDX list, the described one included.
fn listed(path: &Path) -> Result<Packages, Error> {
    let list: Value = serde_json::from_slice(&read(path)?).map_err(|error| Error::Syntax {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let own = std::iter::once(&list["metadata"]["component"]);
    let components = list["components"].as_array().into_iter().flatten();
    Ok(own.chain(components).filter_map(package).collect())
}

/// The packages that `cargo auditable` has written into a program.
fn embedded(program: &Path) -> Result<Packages, String> {
    let section = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let mut command = Command::new("objcopy");
    command
        .arg(format!(
            "--dump-section=.dep-v0={}",
            section.path().display()
        ))
        .arg(program)
        // The copy that comes with it is not wanted.
        .arg("/dev/null");
    output(&mut command).map_err(|error| error.to_string())?;
    let bytes = std::fs::read(section.path()).map_err(|error| error.to_string())?;
    if bytes.is_empty() {
        return Err("it has no section .dep-v0, which `cargo auditable build` writes".to_owned());
    }
    let mut text = String::new();
    flate2::read::ZlibDecoder::new(bytes.as_slice())
        .read_to_string(&mut text)
        .map_err(|error| format!("its section .dep-v0 cannot be read: {error}"))?;
    let list: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let packages = list["packages"].as_array().into_iter().flatten();
    Ok(packages.filter_map(package).collect())
}

fn package(value: &Value) -> Option<(String, String)> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Some((text("name")?, text("version")?))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

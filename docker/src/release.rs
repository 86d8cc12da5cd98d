//! What a release holds: programs, what each is made of, notes, checksums. Looks whether they belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use memchr::memmem;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::engine::output;
use crate::error::Error;
use crate::rules::Finding;

/// What the notes tell under a heading of their own.
const HEADINGS: [&str; 3] = ["### Added", "### Upgrade notes", "### Known issues"];

/// The file of checksums, which `sha256sum --check` reads.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// Most bytes of a path that a finding shows: in a program nothing says where a text ends.
const MOST_SHOWN: usize = 100;

type Packages = BTreeSet<(String, String)>;

/// Looks through a release's folder, whose files are to hold no path below those of the machine that built it.
///
/// # Errors
/// Where a file cannot be read at all; what is wrong with files is found.
pub(crate) fn check(
    folder: &Path,
    programs: &[String],
    version: &str,
    builder: &[PathBuf],
) -> Result<Vec<Finding>, Error> {
    let are = digests(folder)?;
    let mut found = of_notes(folder, programs, version)?;
    found.extend(of_revision(folder)?);
    for name in programs {
        found.extend(of_program(folder, name, version)?);
    }
    found.extend(of_sums(&recorded(&folder.join(SUMS))?, &are));
    found.extend(traces(folder, builder)?);
    Ok(found)
}

/// Looks through every file of a folder for paths below those of the machine that built it.
///
/// # Errors
/// Where a file cannot be read.
pub(crate) fn traces(folder: &Path, builder: &[PathBuf]) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    for name in files(folder)? {
        let bytes = read(&folder.join(&name))?;
        let held = builder.iter().filter_map(|path| held(&bytes, path));
        found.extend(held.map(|message| finding(&name, message)));
    }
    Ok(found)
}

fn finding(place: &str, message: impl Into<String>) -> Finding {
    Finding {
        place: place.to_owned(),
        message: message.into(),
    }
}

fn of_notes(folder: &Path, programs: &[String], version: &str) -> Result<Vec<Finding>, Error> {
    let notes = String::from_utf8_lossy(&read(&folder.join("NOTES.md"))?).into_owned();
    let mut found = Vec::new();
    if !notes.starts_with(&format!("# wmtp {version}\n")) {
        found.push(format!("does not begin with \"# wmtp {version}\""));
    }
    let headings = HEADINGS.iter().filter(|heading| !notes.contains(**heading));
    found.extend(headings.map(|heading| format!("has no {heading:?}")));
    let named = programs.iter().map(|name| format!("`bin/{name}`"));
    let unnamed = named.filter(|name| !notes.contains(name.as_str()));
    found.extend(unnamed.map(|name| format!("does not name {name}")));
    let found = found.into_iter();
    Ok(found.map(|message| finding("NOTES.md", message)).collect())
}

/// What is wrong with the commit, which the programs record with what they make.
fn of_revision(folder: &Path) -> Result<Option<Finding>, Error> {
    const FILE: &str = "revision";
    let said = String::from_utf8_lossy(&read(&folder.join(FILE))?).into_owned();
    let commit = said.trim_end();
    let digits = commit.strip_suffix("-dirty").unwrap_or(commit);
    let is_commit = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let message = || finding(FILE, format!("says {commit:?}, which is no commit"));
    Ok((!is_commit).then(message))
}

/// What is wrong with a program and its list.
fn of_program(folder: &Path, name: &str, version: &str) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    let program = folder.join("bin").join(name);
    let (place, list) = (format!("bin/{name}"), format!("sbom/{name}.cdx.json"));
    match output(Command::new(&program).arg("--version")) {
        Ok(said) if said.stdout == format!("{name} {version}\n").into_bytes() => {}
        Ok(said) => {
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            found.push(finding(&place, format!("--version says {:?}", said.trim())));
        }
        Err(error) => found.push(finding(&place, error.to_string())),
    }
    let listed = listed(&folder.join(&list))?;
    match embedded(&program) {
        Ok(embedded) => {
            let lacking: Vec<String> = embedded
                .difference(&listed)
                .map(|(name, version)| format!("{name} {version}"))
                .collect();
            if !lacking.is_empty() {
                let lacking = lacking.join(", ");
                let message = format!("lacks what the program is made of: {lacking}");
                found.push(finding(&list, message));
            }
        }
        Err(why) => found.push(finding(&place, format!("names no dependencies: {why}"))),
    }
    Ok(found)
}

/// Where files and checksums differ.
fn of_sums(sums: &BTreeMap<String, String>, are: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, digest) in are {
        match sums.get(name) {
            Some(recorded) if recorded == digest => {}
            Some(_) => found.push(finding(name, format!("is not what {SUMS} has recorded"))),
            None => found.push(finding(name, format!("is not in {SUMS}"))),
        }
    }
    let gone = sums.keys().filter(|name| !are.contains_key(*name));
    found.extend(gone.map(|name| finding(name, format!("stands in {SUMS} and is not there"))));
    found
}

/// What is to be said of paths below a folder that stand in a file.
fn held(bytes: &[u8], folder: &Path) -> Option<String> {
    let below = format!("{}/", folder.display());
    let places: Vec<usize> = memmem::find_iter(bytes, &below).collect();
    let text = bytes[*places.first()?..].iter().take(MOST_SHOWN);
    let path: Vec<u8> = text.copied().take_while(u8::is_ascii_graphic).collect();
    Some(format!(
        "holds paths below {}, a folder of the machine that built it ({} in all), such as {}",
        folder.display(),
        places.len(),
        String::from_utf8_lossy(&path)
    ))
}

/// Every file of a release with its SHA-256, but for the checksums themselves.
fn digests(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut all = BTreeMap::new();
    for name in files(folder)? {
        let mut digest = String::new();
        for byte in Sha256::digest(read(&folder.join(&name))?) {
            write!(digest, "{byte:02x}").expect("writing into a string");
        }
        all.insert(name, digest);
    }
    Ok(all)
}

/// The names of all files below a folder, but for checksums.
pub(crate) fn files(folder: &Path) -> Result<BTreeSet<String>, Error> {
    let mut all = BTreeSet::new();
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
                all.insert(name.display().to_string());
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

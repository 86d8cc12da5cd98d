//! What a GPU does while a run computes on it, as the driver's own tool tells it.
//!
//! The tool runs beside the training and is asked for nothing: what it printed last is there or is not. Where it is missing
//! or says something else, that is told once.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The tool, which comes with the driver; containers have it with the driver capability `utility`.
pub(crate) const NVIDIA_SMI: &str = "nvidia-smi";

/// Seconds between two looks.
const PERIOD_SECS: u32 = 10;

/// What is asked, and the names under which a run records it: MiB in use, and percent of the time that a kernel ran.
const FIELDS: [(&str, &str); 2] = [
    ("memory.used", "system_gpu_mem"),
    ("utilization.gpu", "system_gpu_util"),
];

/// What the tool told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    /// Names and numbers; a card need not tell all of them.
    Use(Vec<(&'static str, f64)>),
    /// Nothing more will come, and why.
    Nothing(String),
}

/// The model of the device of this UUID and the version of its driver; none where the tool is missing or says something else.
pub(crate) fn names(program: &Path, uuid: &str) -> Option<(String, String)> {
    let asked = Command::new(program)
        .arg(format!("--id={uuid}"))
        .arg("--query-gpu=name,driver_version")
        .arg("--format=csv,noheader")
        .stdin(Stdio::null())
        .output();
    let said = asked.ok().filter(|output| output.status.success())?.stdout;
    named(&String::from_utf8(said).ok()?)
}

/// A line of a card's name, which may hold a comma, and its driver's version.
fn named(line: &str) -> Option<(String, String)> {
    let (name, driver) = line.trim().rsplit_once(',')?;
    Some((name.trim().to_owned(), driver.trim().to_owned()))
}

/// The tool at work; it ends with this value.
#[derive(Debug)]
pub(crate) struct Watch {
    tool: Child,
    newest: Arc<Mutex<Option<Told>>>,
}

impl Watch {
    /// Looks at the device of this UUID from now on.
    ///
    /// # Errors
    /// The program that cannot be started.
    pub(crate) fn start(program: &Path, uuid: &str) -> std::io::Result<Self> {
        let fields = FIELDS.map(|(field, _)| field).join(",");
        let mut tool = Command::new(program)
            .arg(format!("--id={uuid}"))
            .arg(format!("--query-gpu={fields}"))
            .arg("--format=csv,noheader,nounits")
            .arg(format!("--loop={PERIOD_SECS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                std::io::Error::new(error.kind(), format!("{}: {error}", program.display()))
            })?;
        let newest = Arc::new(Mutex::new(None));
        if let Some(lines) = tool.stdout.take() {
            let (place, name) = (Arc::clone(&newest), program.display().to_string());
            std::thread::spawn(move || listen(BufReader::new(lines), &name, &place));
        }
        Ok(Self { tool, newest })
    }

    /// What was told since the last call.
    pub(crate) fn take(&self) -> Option<Told> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.take()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

/// Puts every line in the place of the one before, until one is no answer or no more come.
fn listen(lines: impl BufRead, name: &str, place: &Mutex<Option<Told>>) {
    let put = |told: Told| *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    for line in lines.lines() {
        match line.as_deref().map(parsed) {
            Ok(Some(told)) => put(Told::Use(told)),
            Ok(None) => {
                let line = line.unwrap_or_default();
                return put(Told::Nothing(format!("{name} says {line:?}")));
            }
            Err(_) => break,
        }
    }
    put(Told::Nothing(format!("{name} has ended")));
}

/// A line of the asked fields, such as `1024, 87`. A field that a card does not tell reads `[N/A]` or `[Not Supported]`.
fn parsed(line: &str) -> Option<Vec<(&'static str, f64)>> {
    let values: Vec<&str> = line.split(',').map(str::trim).collect();
    if values.len() != FIELDS.len() {
        return None;
    }
    let mut told = Vec::new();
    for ((_, name), value) in FIELDS.into_iter().zip(values) {
        if value.starts_with('[') {
            continue;
        }
        told.push((name, value.parse().ok()?));
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Option<Told> {
        let place = Mutex::new(None);
        listen(text.as_bytes(), "nvidia-smi", &place);
        place.into_inner().unwrap()
    }

    #[test]
    fn a_line_has_memory_and_use_and_what_a_card_does_not_tell_is_left_out() {
        let (mem, util) = ("system_gpu_mem", "system_gpu_util");
        assert_eq!(
            parsed("61532, 97"),
            Some(vec![(mem, 61532.0), (util, 97.0)])
        );
        assert_eq!(parsed("0, 0"), Some(vec![(mem, 0.0), (util, 0.0)]));
        // A part of a card (MIG) tells no use.
        assert_eq!(parsed("61532, [N/A]"), Some(vec![(mem, 61532.0)]));
        assert_eq!(parsed("[N/A], [Not Supported]"), Some(vec![]));
        for line in ["", "61532", "61532, 97, 1", "61532 MiB, 97 %", "a, b"] {
            assert_eq!(parsed(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_is_no_answer_ends_the_watch_by_its_own_words() {
        let said = "No devices were found";
        let reason = format!("nvidia-smi says {said:?}");
        assert_eq!(
            heard(&format!("1, 2\n{said}\n3, 4\n")),
            Some(Told::Nothing(reason))
        );
        let ended = Told::Nothing("nvidia-smi has ended".to_owned());
        assert_eq!(heard("1, 2\n"), Some(ended.clone()));
        assert_eq!(heard(""), Some(ended));
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = Watch::start(Path::new("/nowhere/nvidia-smi"), "GPU-0").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(
            error.to_string().contains("/nowhere/nvidia-smi: "),
            "{error}"
        );
    }

    #[test]
    fn model_and_driver_are_what_the_tool_says_and_a_missing_tool_says_nothing() {
        let card = ("NVIDIA A100, 80GB".to_owned(), "535.104.05".to_owned());
        assert_eq!(named("NVIDIA A100, 80GB, 535.104.05\n"), Some(card));
        assert_eq!(named("No devices were found\n"), None);
        assert_eq!(names(Path::new("/nowhere/nvidia-smi"), "GPU-0"), None);
    }

    /// A program in the tool's place: asked as the tool wants it, it answers twice and goes on.
    #[test]
    fn the_newest_line_is_taken_once_and_the_tool_ends_with_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let (tool, asked) = (folder.path().join("tool"), folder.path().join("asked"));
        let script = format!(
            "#!/bin/sh\nprintf '10, 20\\n30, 40\\n'\necho \"$$ $*\" >{}\nexec sleep 600\n",
            asked.display()
        );
        std::fs::write(&tool, script).unwrap();
        let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&tool, runs).unwrap();
        let watch = Watch::start(&tool, "GPU-1").unwrap();
        let newest = Told::Use(vec![("system_gpu_mem", 30.0), ("system_gpu_util", 40.0)]);
        while watch.newest.lock().unwrap().as_ref() != Some(&newest) {
            std::thread::yield_now();
        }
        assert_eq!(watch.take(), Some(newest));
        assert_eq!(watch.take(), None);
        let words = loop {
            let text = std::fs::read_to_string(&asked).unwrap_or_default();
            if text.ends_with('\n') {
                break text;
            }
            std::thread::yield_now();
        };
        let (pid, flags) = words.trim().split_once(' ').unwrap();
        assert_eq!(
            flags,
            "--id=GPU-1 --query-gpu=memory.used,utilization.gpu --format=csv,noheader,nounits --loop=10"
        );
        drop(watch);
        assert!(!Path::new("/proc").join(pid).exists());
    }
}

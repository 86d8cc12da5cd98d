//! The scripts that chain the jobs, told to stop: their jobs save their state, and the store is there until they have.
//!
//! What is tested are the scripts. Programs that note what happens to them stand in for jobs and store, so that a job takes
//! as long as the test needs, and no longer.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `dev-store serve … --env-file FILE …`: up until it is told to stop.
const STORE: &str = r#"#!/usr/bin/env bash
while [ $# -gt 0 ]; do
  if [ "$1" = --env-file ]; then file=$2; fi
  shift
done
trap 'echo "store ended" >>"$NOTES"; exit 0' INT TERM
echo "$PPID" >"$(dirname "$NOTES")/script"
echo : >"$file"
while :; do sleep 0.02; done
"#;

/// A training that works until it is told to stop, and then saves its state for a moment.
const TRAINING: &str = r#"#!/usr/bin/env bash
trap 'sleep 0.5; echo saved >>"$NOTES"; exit 143' INT TERM
echo began >>"$NOTES"
case "$*" in *"--objective $FAILS"*) while [ "$(grep -c began "$NOTES")" -lt 2 ]; do sleep 0.02; done; exit 77 ;; esac
while :; do sleep 0.02; done
"#;

/// Runs a command on a terminal of its own, which types what comes in.
const TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

const QUICK: &str = "#!/usr/bin/env bash\n";

/// The audit of a loop leaves its first recipe.
const LEADERBOARD: &str = r#"#!/usr/bin/env bash
mkdir -p "$OUT/recipes"
echo "version: {id: v001}" >"$OUT/recipes/v001.yaml"
"#;

/// Of an algorithm that needs no smoke run: the loop's first training is that of a version.
const RECIPE: &str = "version: {id: v001}\nexperiment:\n  algo: rho1\n";

/// With it a chain has both trainings of stage 1, each in its lane.
const SECOND: &str = "version: {id: v002}\nexperiment:\n  algo: verifiable\n";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = Self { folder };
        let recipes = place.path("storage/recipes/d");
        std::fs::create_dir_all(&recipes).expect("a folder");
        std::fs::write(recipes.join("v001.yaml"), RECIPE).expect("a file");
        std::fs::write(recipes.join("v002.yaml"), SECOND).expect("a file");
        std::fs::create_dir(place.path("bin")).expect("a folder");
        for (name, text) in [
            ("dev-store", STORE),
            ("train-stage1", TRAINING),
            ("train-stage2", TRAINING),
            ("sync-storage", QUICK),
            ("prepare-data", QUICK),
            ("evaluate", QUICK),
            ("build-leaderboard", LEADERBOARD),
        ] {
            let path = place.path("bin").join(name);
            std::fs::write(&path, text).expect("a file");
            let is_program = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, is_program).expect("a file of ours");
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn notes(&self) -> Vec<String> {
        let notes = std::fs::read_to_string(self.path("notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    /// The script that `make demo` and `make loop` run, on a terminal, with trainings of one objective that fail as soon as
    /// another is under way.
    fn start(&self, chain: &str, lanes: &str, fails: &str) -> Child {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs/demo.sh");
        Command::new("python3")
            .args(["-c", TERMINAL])
            // Who starts the tests may ignore Ctrl-C, and a shell could not trap it then.
            .args(["env", "--default-signal=INT"])
            .arg(script)
            .arg("d")
            .current_dir(self.folder.path())
            .env("NOTES", self.path("notes"))
            .env("FAILS", fails)
            .env("BIN", self.path("bin"))
            .env("WMTP_ROOT", self.path("root"))
            .env("CHAIN", chain)
            .env("LANES", lanes)
            .env("PAUSE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the script starts")
    }

    fn until_begun(&self, count: usize) {
        let began = Instant::now();
        while self.notes().len() < count {
            assert!(
                began.elapsed() < Duration::from_mins(1),
                "{:?}",
                self.notes()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ctrl-C, as a keyboard types it.
fn interrupt(terminal: &mut Child) {
    let keys = terminal.stdin.as_mut().expect("a pipe");
    keys.write_all(b"\x03").expect("somebody reads");
}

fn code(mut terminal: Child) -> Option<i32> {
    terminal.wait().expect("ended").code()
}

#[test]
fn a_chain_that_is_told_to_stop_keeps_the_store_until_all_jobs_have_saved_their_state() {
    let place = Place::new();
    let mut chain = place.start("chain", "2", "none");
    place.until_begun(2);
    interrupt(&mut chain);
    assert_eq!(code(chain), Some(130));
    assert_eq!(
        place.notes(),
        ["began", "began", "saved", "saved", "store ended"]
    );
}

/// `make` and whoever starts a script tell it alone.
#[test]
fn a_signal_for_the_script_alone_reaches_its_jobs() {
    let place = Place::new();
    let chain = place.start("chain", "2", "none");
    place.until_begun(2);
    let script = std::fs::read_to_string(place.path("script")).expect("the number of its process");
    let kill = Command::new("kill").args(["-TERM", script.trim()]).status();
    assert!(kill.expect("kill").success());
    assert_eq!(code(chain), Some(143));
    assert_eq!(
        place.notes(),
        ["began", "began", "saved", "saved", "store ended"]
    );
}

#[test]
fn a_lane_that_fails_ends_the_chain_behind_what_the_others_save() {
    let place = Place::new();
    let chain = place.start("chain", "2", "value");
    assert_eq!(code(chain), Some(77));
    assert_eq!(place.notes(), ["began", "began", "saved", "store ended"]);
}

#[test]
fn a_loop_that_is_interrupted_begins_no_training_again() {
    let place = Place::new();
    let mut chain = place.start("loop", "1", "none");
    place.until_begun(1);
    interrupt(&mut chain);
    assert_eq!(code(chain), Some(130));
    assert_eq!(place.notes(), ["began", "saved", "store ended"]);
}

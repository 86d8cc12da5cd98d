//! A folder, the program, and a double of VESSL's client that replies as client 0.1.199 does.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use trial::Ended;

/// Replies were recorded from client 0.1.199: the link after `create`, the refusal without a link and with exit status 0,
/// the table of `read`, the lines of `logs`. A file `outcomes/NAME` has one line a run: the job's exit code, `lost` for
/// a run that ends without one, `-` for one that goes on, `gone` for one that nobody can read.
const CLIENT: &str = r#"#!/bin/bash
dir=$(dirname "$0")
echo "$* in $PWD, opt-out $VESSL_DATA_COLLECTION_OPT_OUT" >>"$dir/calls"
case "$1 $2" in
"run create")
  name=$(sed -n 's/^name: //p' "$4")
  if [ -e "$dir/refuse-$name" ]; then
    printf '\033[38;5;244m[2026-11-27 20:07:33]\033[0m\033[91m Field image does not exist! Please specify them in your yaml.\033[0m\n'
    exit 0
  fi
  run=$((100 + $(ls "$dir/runs" | wc -l)))
  outcome=0
  if [ -s "$dir/outcomes/$name" ]; then
    outcome=$(head -n 1 "$dir/outcomes/$name")
    sed -i 1d "$dir/outcomes/$name"
  fi
  echo "$outcome" >"$dir/runs/$run"
  echo "$run $name" >>"$dir/created"
  if [ -e "$dir/break-$name" ]; then
    # It is there, and a signal from the terminal came before its number was printed.
    kill -INT -- "-$PPID" 2>/dev/null
    sleep 0.2
    exit 130
  fi
  printf '\033[38;5;244m[2026-11-27 20:07:33]\033[0m\033[96m Check your Run at: https://app.vessl.ai/acme/runs/wmtp/%s\033[0m\n' "$run"
  ;;
"run read")
  case $(cat "$dir/runs/$3") in
  0) status=completed ;;
  -) status=running ;;
  gone)
    echo 'Run does not exist.'
    exit 1
    ;;
  *) status=failed ;;
  esac
  printf ' \033[32mID\033[0m %s\n \033[32mName\033[0m x\n \033[32mStatus\033[0m %s\n \033[32mStatus reason\033[0m \n' "$3" "$status"
  ;;
"run logs")
  outcome=$(cat "$dir/runs/$3")
  echo '[00:00:01.500000] {"ts":"2026-11-27T20:07:33Z","type":"started","job":"x","data":{}}'
  if [ "$outcome" != lost ]; then
    echo '[00:00:02.500000] {"ts":"2026-11-27T20:07:34Z","type":"ended","job":"x","data":{"class":"x","exit_code":'"$outcome"'}}'
    echo '[00:00:02.500001] error: something'
  fi
  ;;
*)
  exit 1
  ;;
esac
"#;

pub(crate) struct Place {
    folder: tempfile::TempDir,
}

/// The folder `vessl` of the repository.
pub(crate) fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        for folder in ["runs", "outcomes"] {
            std::fs::create_dir(place.path(folder)).expect("a folder");
        }
        let client = place.write("vessl", CLIENT);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(client, mode).expect("a program may be run");
        let shipped = |name: &str| std::fs::read_to_string(home().join(name)).expect("a profile");
        let profile = shipped("profile.yaml");
        place.write("example.yaml", &profile);
        place.write("four-gpus.yaml", &shipped("profile-four-gpus.yaml"));
        place.write(
            "profile.yaml",
            &profile.replace(&"0".repeat(64), &"0123456789abcdef".repeat(4)),
        );
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The program, with the double first on PATH.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let path = std::env::var("PATH").expect("a search path");
        let mut command = Command::new(env!("CARGO_BIN_EXE_wmtp-vessl"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    /// A command that reads an experiment and a profile.
    pub(crate) fn with(
        &self,
        command: &str,
        experiment: &str,
        profile: &str,
        more: &[&str],
    ) -> Ended {
        let experiment = home()
            .join("experiments")
            .join(format!("{experiment}.yaml"));
        let experiment = experiment.display().to_string();
        let mut arguments = vec![command, "--experiment", &experiment, "--profile", profile];
        arguments.extend(more);
        self.run(&arguments)
    }
}

//! Container engines: which one there is, and how it is told to build and to run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Resource, getrlimit};
use serde_json::Value;

use crate::bake::Target;
use crate::error::Error;

/// Who builds and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Docker with the buildx plugin.
    Docker,
    Podman,
    /// Builds, and runs nothing as we want it: it cannot make the root read-only.
    Buildah,
}

/// A container engine with its own flags.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    kind: Kind,
    words: Vec<String>,
}

/// What an engine is asked to build.
pub(crate) struct Order<'a> {
    /// The bake file, for engines that read it themselves.
    pub(crate) file: &'a Path,
    /// What is in it.
    pub(crate) targets: &'a [&'a Target],
    /// Values of its variables.
    pub(crate) variables: &'a [(String, String)],
    /// Folder with finished programs in place of the stages that compile.
    pub(crate) programs: Option<&'a Path>,
    /// Take bases as they are on this machine.
    pub(crate) is_offline: bool,
    /// Use no layer of an earlier build.
    pub(crate) is_fresh: bool,
}

/// How an image is started: always on a root that cannot be written, without capabilities, on the host's network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) image: String,
    /// So that it can be sent a signal.
    pub(crate) name: Option<String>,
    /// In place of the image's.
    pub(crate) entrypoint: Option<String>,
    /// In place of the image's.
    pub(crate) user: Option<String>,
    /// In place of the image's.
    pub(crate) folder: Option<PathBuf>,
    /// Folders of this machine, under the same path.
    pub(crate) mounts: Vec<PathBuf>,
    pub(crate) variables: Vec<(String, String)>,
}

impl Engine {
    /// The engine that was asked for, or the first that answers.
    ///
    /// # Errors
    /// What was looked for, and what each said.
    pub(crate) fn find(asked: Option<&str>) -> Result<Self, Error> {
        if let Some(asked) = asked {
            let engine = Self::named(asked)?;
            return engine
                .answers()
                .map(|()| engine.clone())
                .map_err(|found| Error::NoEngine { found });
        }
        let mut said = Vec::new();
        for kind in ["docker", "podman", "buildah"] {
            let engine = Self::named(kind)?;
            match engine.answers() {
                Ok(()) => return Ok(engine),
                Err(why) => said.push(why),
            }
        }
        Err(Error::NoEngine {
            found: said.join("; "),
        })
    }

    /// [`Engine::find`] of one that runs images.
    ///
    /// # Errors
    /// As [`Engine::find`], and where there is only one that builds.
    pub(crate) fn find_runner(asked: Option<&str>) -> Result<Self, Error> {
        let engine = Self::find(asked)?;
        if engine.kind == Kind::Buildah {
            let found =
                "buildah builds images, but runs none on a root that cannot be written".to_owned();
            return Err(Error::NoEngine { found });
        }
        Ok(engine)
    }

    fn named(text: &str) -> Result<Self, Error> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let program = words
            .first()
            .map(|word| word.rsplit('/').next().unwrap_or(word));
        let kind = match program {
            Some("docker") => Kind::Docker,
            Some("podman") => Kind::Podman,
            Some("buildah") => Kind::Buildah,
            _ => {
                let found = format!("{text:?} is none of docker, podman and buildah");
                return Err(Error::NoEngine { found });
            }
        };
        Ok(Self { kind, words })
    }

    /// Whether it can be used; else why not.
    fn answers(&self) -> Result<(), String> {
        let questions: &[&[&str]] = match self.kind {
            Kind::Docker => &[&["version"], &["buildx", "version"]],
            Kind::Podman | Kind::Buildah => &[&["version"]],
        };
        for question in questions {
            let mut command = self.command();
            command.args(*question);
            output(&mut command).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// What to call it in messages.
    pub(crate) fn name(&self) -> &str {
        &self.words[0]
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null());
        command
    }

    /// The commands that build what was ordered, in their order.
    pub(crate) fn build_commands(&self, order: &Order<'_>) -> Vec<Command> {
        match self.kind {
            Kind::Docker => vec![self.bake(order)],
            Kind::Podman | Kind::Buildah => order
                .targets
                .iter()
                .map(|target| self.build(target, order))
                .collect(),
        }
    }

    /// Buildx reads the bake file itself.
    fn bake(&self, order: &Order<'_>) -> Command {
        let mut command = self.command();
        command
            .args(["buildx", "bake", "--file"])
            .arg(order.file)
            .arg("--load");
        if order.is_fresh {
            command.arg("--no-cache");
        }
        command.envs(order.variables.iter().map(|(name, value)| (name, value)));
        if let Some(programs) = order.programs {
            for stage in STAGES {
                command
                    .arg("--set")
                    .arg(format!("*.contexts.{stage}={}", programs.display()));
            }
        }
        command.args(order.targets.iter().map(|target| &target.name));
        command
    }

    fn build(&self, target: &Target, order: &Order<'_>) -> Command {
        let mut command = self.command();
        let layers = if order.is_fresh {
            "--no-cache"
        } else {
            "--layers"
        };
        command.args([
            "build",
            layers,
            "--file",
            &target.dockerfile,
            "--target",
            &target.stage,
        ]);
        command.arg(format!("--ignorefile={}.dockerignore", target.dockerfile));
        for tag in &target.tags {
            command.args(["--tag", tag]);
        }
        for (name, value) in &target.args {
            command.arg(format!("--build-arg={name}={value}"));
        }
        for (name, value) in &target.labels {
            command.arg(format!("--label={name}={value}"));
        }
        // Times of files and of the image itself, without which no two builds are the same.
        if let Some(epoch) = target.args.get(EPOCH) {
            command.arg(format!("--timestamp={epoch}"));
        }
        if let Some(programs) = order.programs {
            for stage in STAGES {
                command.arg(format!("--build-context={stage}={}", programs.display()));
            }
        }
        if order.is_offline {
            command.arg(if self.kind == Kind::Podman {
                "--pull=never"
            } else {
                "--pull-never"
            });
        }
        command.arg(&target.context);
        command
    }

    /// The command that starts an image.
    pub(crate) fn run_command(&self, start: &Start, arguments: &[String]) -> Command {
        let mut command = self.command();
        command.args([
            "run",
            "--rm",
            "--network=host",
            "--read-only",
            "--tmpfs=/tmp",
        ]);
        command.args(["--cap-drop=ALL", "--security-opt=no-new-privileges"]);
        if self.kind == Kind::Podman {
            // Its own limits are above those of a machine that is itself confined, which then refuses to start anything.
            let files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
            command
                .arg(format!("--ulimit=nofile={files}:{files}"))
                .arg("--ulimit=nproc=4096:4096");
        }
        let optional = [
            ("--name", &start.name),
            ("--entrypoint", &start.entrypoint),
            ("--user", &start.user),
        ];
        for (flag, value) in optional {
            if let Some(value) = value {
                command.args([flag, value]);
            }
        }
        if let Some(folder) = &start.folder {
            command.arg("--workdir").arg(folder);
        }
        for folder in &start.mounts {
            command.arg(format!("--volume={0}:{0}", folder.display()));
        }
        for (name, value) in &start.variables {
            // Without its value, which the engine then takes from its own environment: a process list shows arguments.
            command.args(["--env", name]).env(name, value);
        }
        command.arg(&start.image).args(arguments);
        command
    }

    /// What the image says of itself.
    pub(crate) fn inspect(&self, image: &str) -> Result<Value, Error> {
        let mut command = self.command();
        match self.kind {
            Kind::Buildah => command.args(["inspect", "--type", "image", image]),
            Kind::Docker | Kind::Podman => command.args(["image", "inspect", image]),
        };
        let said = output(&mut command)?;
        let value: Value = serde_json::from_slice(&said.stdout).map_err(|error| Error::Engine {
            command: shown(&command),
            ended: format!("printed no JSON: {error}"),
        })?;
        Ok(match value {
            Value::Array(mut images) if !images.is_empty() => images.swap_remove(0),
            other => other,
        })
    }

    /// Sends a signal to the first process of a container.
    pub(crate) fn signal(&self, name: &str, signal: &str) -> Result<(), Error> {
        let mut command = self.command();
        command.args(["kill", "--signal", signal, name]);
        output(&mut command).map(drop)
    }
}

/// The stages that a folder of finished programs replaces.
const STAGES: [&str; 2] = ["builder", "builder-cuda"];

/// The argument that fixes every time in an image.
pub(crate) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Runs a command to its end and wants it to succeed.
pub(crate) fn output(command: &mut Command) -> Result<Output, Error> {
    let done = command.output();
    let failed = |ended: String| Error::Engine {
        command: shown(command),
        ended,
    };
    let done = done.map_err(|error| failed(format!("does not start: {error}")))?;
    if done.status.success() {
        return Ok(done);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = &lines[lines.len().saturating_sub(5)..];
    Err(failed(format!(
        "ended with {}: {}",
        done.status,
        last.join(" | ")
    )))
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{Engine, Order, Start, shown};
    use crate::bake::Target;

    fn target() -> Target {
        Target {
            name: "evaluate".to_owned(),
            context: ".".to_owned(),
            dockerfile: "docker/Dockerfile".to_owned(),
            stage: "evaluate".to_owned(),
            args: BTreeMap::from([("SOURCE_DATE_EPOCH".to_owned(), "7".to_owned())]),
            labels: BTreeMap::from([("revision".to_owned(), "abc".to_owned())]),
            tags: vec!["wmtp/evaluate:1".to_owned()],
            platforms: Vec::new(),
        }
    }

    fn built_by(engine: &str, is_offline: bool, is_fresh: bool) -> String {
        let target = target();
        let order = Order {
            file: Path::new("docker/bake.json"),
            targets: &[&target],
            variables: &[("REVISION".to_owned(), "abc".to_owned())],
            programs: Some(Path::new("made")),
            is_offline,
            is_fresh,
        };
        let commands = Engine::named(engine).unwrap().build_commands(&order);
        assert_eq!(commands.len(), 1);
        shown(&commands[0])
    }

    #[test]
    fn each_engine_is_told_the_same_in_its_own_words() {
        assert_eq!(
            built_by("docker", false, false),
            "docker buildx bake --file docker/bake.json --load --set *.contexts.builder=made \
             --set *.contexts.builder-cuda=made evaluate"
        );
        let built = "build --layers --file docker/Dockerfile --target evaluate --ignorefile=docker/Dockerfile.dockerignore \
                     --tag wmtp/evaluate:1 --build-arg=SOURCE_DATE_EPOCH=7 --label=revision=abc --timestamp=7 --build-context=builder=made \
                     --build-context=builder-cuda=made";
        assert_eq!(
            built_by("podman --root here", true, false),
            format!("podman --root here {built} --pull=never .")
        );
        assert_eq!(
            built_by("/usr/bin/buildah", true, false),
            format!("/usr/bin/buildah {built} --pull-never .")
        );
        assert_eq!(
            built_by("buildah", false, false),
            format!("buildah {built} .")
        );
        let fresh = built.replace("--layers", "--no-cache");
        assert_eq!(built_by("podman", false, true), format!("podman {fresh} ."));
        assert!(built_by("docker", false, true).contains(" --no-cache "));
    }

    #[test]
    fn an_image_starts_confined_and_no_secret_is_an_argument() {
        let start = Start {
            image: "wmtp/evaluate:1".to_owned(),
            mounts: vec!["/data".into()],
            variables: vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "planted".to_owned())],
            ..Start::default()
        };
        for engine in ["docker", "podman"] {
            let command = Engine::named(engine)
                .unwrap()
                .run_command(&start, &["--help".to_owned()]);
            let line = shown(&command);
            for word in [
                "--read-only",
                "--cap-drop=ALL",
                "--security-opt=no-new-privileges",
                "--volume=/data:/data",
            ] {
                assert!(line.contains(word), "{word} is not in {line}");
            }
            assert!(
                line.ends_with("--env AWS_SECRET_ACCESS_KEY wmtp/evaluate:1 --help"),
                "{line}"
            );
            assert!(!line.contains("planted"), "{line}");
        }
    }
}

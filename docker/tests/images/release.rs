//! A release in which something does not belong to the rest is found out. Its one program is the one under test.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_wmtp-images");
const NOTES: &str =
    "# wmtp 0.1.0\n\n- `bin/wmtp-images`\n\n### Added\n\n### Upgrade notes\n\n### Known issues\n";
/// Where no program was built.
const ELSEWHERE: &str = "/home/a-builder";
const PACKAGES: &str =
    r#"{"packages":[{"name":"job-images","version":"0.1.0"},{"name":"serde","version":"1.0.0"}]}"#;
const LIST: &str = r#"{"metadata":{"component":{"name":"job-images","version":"0.1.0"}},"components":[{"name":"serde","version":"1.0.0"}]}"#;

/// What goes wrong with a release's folder.
type Change = Box<dyn Fn(&Path)>;

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A release as it should be, but for what `change` does to it before checksums are taken.
fn release(change: impl Fn(&Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("bin")).unwrap();
    std::fs::create_dir(path.join("sbom")).unwrap();
    std::fs::write(path.join("NOTES.md"), NOTES).unwrap();
    std::fs::write(
        path.join("revision"),
        format!("{}-dirty\n", "0a".repeat(20)),
    )
    .unwrap();
    std::fs::write(path.join("sbom/wmtp-images.cdx.json"), LIST).unwrap();
    let section = path.join("section");
    let mut packed = flate2::write::ZlibEncoder::new(
        std::fs::File::create(&section).unwrap(),
        flate2::Compression::fast(),
    );
    packed.write_all(PACKAGES.as_bytes()).unwrap();
    packed.finish().unwrap();
    done(
        Command::new("objcopy")
            .arg(format!("--add-section=.dep-v0={}", section.display()))
            .arg(PROGRAM)
            .arg(path.join("bin/wmtp-images")),
    );
    std::fs::remove_file(section).unwrap();
    change(path);
    let sums = done(
        Command::new("sh")
            .current_dir(path)
            .args(["-c", "find * -type f ! -name SHA256SUMS | xargs sha256sum"]),
    );
    std::fs::write(path.join("SHA256SUMS"), sums.stdout).unwrap();
    folder
}

fn verdict(folder: &TempDir) -> (Option<i32>, String) {
    let ended = Command::new(PROGRAM)
        .args(["release", "--without", ELSEWHERE])
        .arg(folder.path())
        .arg("wmtp-images")
        .output()
        .unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_release_that_belongs_together_is_told_so() {
    let (code, said) = verdict(&release(nothing));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said, "4 files of 1 programs belong together\n");
}

fn nothing(_: &Path) {}

#[test]
fn what_does_not_belong_to_the_rest_is_found() {
    let write = |name: &'static str, text: &'static str| {
        move |path: &Path| std::fs::write(path.join(name), text).unwrap()
    };
    let plain = |path: &Path| {
        std::fs::copy(PROGRAM, path.join("bin/wmtp-images"))
            .map(drop)
            .unwrap();
    };
    let plant = |path: &Path| {
        let mut program = std::fs::OpenOptions::new()
            .append(true)
            .open(path.join("bin/wmtp-images"))
            .unwrap();
        let paths = b"\0/home/a-builder/a.rs\0/home/a-builders/b.rs\0\xff/home/a-builder/c.rs";
        program.write_all(paths).unwrap();
    };
    let cases: [(Change, Change, &str); 11] = [
        (
            Box::new(write("NOTES.md", "# wmtp 0.2.0\n")),
            Box::new(nothing),
            r##"NOTES.md: does not begin with "# wmtp 0.1.0""##,
        ),
        (
            Box::new(write(
                "NOTES.md",
                "# wmtp 0.1.0\n### Added\n### Upgrade notes\n",
            )),
            Box::new(nothing),
            "has no \"### Known issues\"",
        ),
        (
            Box::new(write("NOTES.md", "# wmtp 0.1.0\n`bin/wmtp-image`\n")),
            Box::new(nothing),
            "NOTES.md: does not name `bin/wmtp-images`",
        ),
        (
            Box::new(write("revision", "unknown\n")),
            Box::new(nothing),
            "revision: says \"unknown\", which is no commit",
        ),
        (
            Box::new(plant),
            Box::new(nothing),
            "bin/wmtp-images: holds paths below /home/a-builder, a folder of the machine that built it (2 in all), such as /home/a-builder/a.rs\n",
        ),
        (
            Box::new(write(
                "sbom/wmtp-images.cdx.json",
                r#"{"metadata":{"component":{"name":"job-images","version":"0.1.0","purl":"file:///home/a-builder/x"}},"components":[{"name":"serde","version":"1.0.0"}]}"#,
            )),
            Box::new(nothing),
            "sbom/wmtp-images.cdx.json: holds paths below /home/a-builder, a folder of the machine that built it (1 in all), such as /home/a-builder/x",
        ),
        (
            Box::new(plain),
            Box::new(nothing),
            "bin/wmtp-images: names no dependencies",
        ),
        (
            Box::new(write(
                "sbom/wmtp-images.cdx.json",
                r#"{"metadata":{"component":{"name":"job-images","version":"0.1.0"}}}"#,
            )),
            Box::new(nothing),
            "lacks what the program is made of: serde 1.0.0",
        ),
        (
            Box::new(nothing),
            Box::new(write("sbom/wmtp-images.cdx.json", "{}")),
            "sbom/wmtp-images.cdx.json: is not what SHA256SUMS has recorded",
        ),
        (
            Box::new(nothing),
            Box::new(write("more", "")),
            "more: is not in SHA256SUMS",
        ),
        (
            Box::new(write("more", "")),
            Box::new(|path| std::fs::remove_file(path.join("more")).unwrap()),
            "more: stands in SHA256SUMS and is not there",
        ),
    ];
    for (before, after, message) in cases {
        let folder = release(before);
        after(folder.path());
        let (code, said) = verdict(&folder);
        assert_eq!(code, Some(76), "{message:?}: {said}");
        assert!(said.contains(message), "{message:?} is not in {said}");
    }
}

#[test]
fn what_names_its_builder_is_found_without_a_release() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train-stage2"), b"\0/cargo/a.rs\0").unwrap();
    let traces = || {
        let mut command = Command::new(PROGRAM);
        let ended = command
            .args(["traces", "--without", ELSEWHERE])
            .arg(folder.path());
        let ended = ended.output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (ended.status.code(), String::from_utf8(said).unwrap())
    };
    let clean = "1 files name no folder of the machine that built them\n".to_owned();
    assert_eq!(traces(), (Some(0), clean));
    std::fs::create_dir(folder.path().join("more")).unwrap();
    std::fs::write(
        folder.path().join("more/kernels"),
        b"\0/home/a-builder/a.cu\0",
    )
    .unwrap();
    let (code, said) = traces();
    assert_eq!(code, Some(76), "{said}");
    let found = "more/kernels: holds paths below /home/a-builder, a folder of the machine that built it (1 in all), such as \
                 /home/a-builder/a.cu\n";
    assert!(said.contains(found), "{said}");
}

#[test]
fn every_path_is_below_the_root() {
    for folder in ["/", "", "home", "/.."] {
        let ended = Command::new(PROGRAM)
            .args(["release", "--without", folder, "release", "evaluate"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{folder:?}: {said}");
        assert!(said.contains("expected a full path, and not /"), "{said}");
    }
}

//! README as `make acceptance` walks it: every command is typed or says why it is not.

use std::path::Path;
use std::process::{Command, Output};

/// Lists what is walked of a file.
fn list(readme: &Path) -> Output {
    let mut script = Command::new("./acceptance.sh");
    let done = script.arg("--list").arg(readme).output();
    done.expect("tests/acceptance.sh starts")
}

#[test]
fn every_command_of_the_readme_is_walked_or_says_why_it_is_not() {
    let listed = list(Path::new("../README.md"));
    let said = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.status.success(), "{listed:?}");
    assert!(said.contains("  make demo  [walked]\n"), "{said}");
    assert!(
        said.contains("  make cuda-demo DEVICE=cuda  [not walked: "),
        "{said}"
    );
}

#[test]
fn a_block_that_nobody_would_walk_and_an_idle_remark_are_refused() {
    let cases = [
        ("```rust\nmain()\n```\n", "a block of the language \"rust\""),
        ("```sh\nmake demo\n", "a block has no end"),
        (
            "<!-- not walked | make demo | a reason -->\n```sh\nmake test\n```\n",
            "no command of the block above begins with \"make demo\"",
        ),
        (
            "<!-- not walked | make demo | a reason -->\nwords\n```sh\nmake demo\n```\n",
            "is to stand in front of its block",
        ),
        (
            "<!-- not walked: make demo -->\n```sh\nmake demo\n```\n",
            "expected <!-- not walked | BEGINNING | REASON -->",
        ),
    ];
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (text, why) in cases {
        std::fs::write(&file, text).expect("it is written");
        let listed = list(file.path());
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(!listed.status.success(), "{text}");
        assert!(said.contains(why), "{why}: {said}");
    }
    std::fs::write(&file, "```sh\nmake \\\n  demo   # words\n```\n").expect("it is written");
    let listed = list(file.path());
    let said = String::from_utf8_lossy(&listed.stdout);
    assert_eq!(said, "    2  make demo  [walked]\n");
}

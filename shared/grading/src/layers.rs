//! Each layer of the sandbox is taken down alone, and the attacks that it alone holds back get through.

use std::sync::Arc;

use crate::Limits;
use crate::confine::{self, Confinement, Wall};
use crate::grader::Worker;
use crate::interpreter::Interpreter;
use crate::launch::Launch;

#[path = "../tests/attacks/mod.rs"]
mod attacks;

use attacks::Traps;

const LIMITS: Limits = Limits {
    cpu_secs: 1,
    wall_secs: 60,
    memory_bytes: 1 << 30,
    output_bytes: 8 << 20,
};
const WIDE_LIMITS: Limits = Limits {
    cpu_secs: 30,
    wall_secs: 120,
    memory_bytes: 8 << 30,
    output_bytes: 1 << 30,
};

/// What is taken down, by the name that the attacks' marks have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Wall(Wall),
    /// The spare user.
    User,
}

/// The name and the layers whose attacks get through: without any filter those of the forks' filter do too.
const LAYERS: [(&[&str], Layer); 5] = [
    (&["landlock"], Layer::Wall(Wall::Landlock)),
    (&["fork-filter"], Layer::Wall(Wall::ForkFilter)),
    (&["seccomp", "fork-filter"], Layer::Wall(Wall::Seccomp)),
    (&["limits"], Layer::Wall(Wall::Limits)),
    (&["user"], Layer::User),
];

/// A worker whose programs may also read the private trap's file, as far as its rights let them.
fn worker(traps: &Traps, missing: Option<Layer>) -> Worker {
    let is_root = confine::is_root();
    let python = Interpreter::find(None, is_root).unwrap();
    let mut roots = python.roots;
    roots.push(traps.path("private"));
    let mut walls = Confinement::new(&roots, confine::landlock_abi(), &LIMITS).unwrap();
    if let Some(Layer::Wall(wall)) = missing {
        walls = walls.without(wall);
    }
    Worker::alone(Launch {
        drop_user: is_root && missing != Some(Layer::User),
        python: python.executable,
        walls: Arc::new(walls),
    })
}

#[test]
fn without_a_layer_its_attacks_get_through_and_no_others() {
    // A plain user has no user to drop, and owns the private file.
    let is_root = confine::is_root();
    for (opened, layer) in LAYERS {
        if layer == Layer::User && !is_root {
            continue;
        }
        let traps = Traps::set();
        let mut worker = worker(&traps, Some(layer));
        let limits = if opened.contains(&"limits") {
            WIDE_LIMITS
        } else {
            LIMITS
        };
        for attack in attacks::all() {
            // Those without a mark may do harm when they are let out, and those that wait only take time.
            if matches!(attack.mark, "" | "waits") || (attack.mark == "user" && !is_root) {
                continue;
            }
            let verdict = worker.grade(&traps.program(&attack, 0).into(), &limits);
            assert_eq!(
                verdict.passed,
                opened.contains(&attack.mark),
                "without {layer:?}, {} [{}]: {verdict:?}",
                attack.name,
                attack.mark
            );
        }
    }
}

#[test]
fn with_every_layer_no_marked_attack_gets_through() {
    let traps = Traps::set();
    let mut worker = worker(&traps, None);
    for attack in attacks::all() {
        if matches!(attack.mark, "" | "waits") || (attack.mark == "user" && !confine::is_root()) {
            continue;
        }
        let verdict = worker.grade(&traps.program(&attack, 0).into(), &LIMITS);
        assert!(!verdict.passed, "{}", attack.name);
    }
    traps.assert_untouched();
}

//! The attack suite: no program of `attacks/programs.py` reaches anything, as root or as a plain user, and however many
//! have run, nothing of them stays behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "attacks/mod.rs"]
mod attacks;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use attacks::{Attack, Traps};
use wmtp_grading::{Grader, GraderConfig, Limits, Program};
use wmtp_records::ErrorClass;

/// Tests count processes and descriptors of this process, so one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(workers: usize, wall_secs: u64) -> Grader {
    Grader::start(GraderConfig {
        workers: NonZeroUsize::new(workers).unwrap(),
        limits: Limits {
            cpu_secs: 1,
            wall_secs,
            ..Limits::default()
        },
        ..GraderConfig::default()
    })
    .unwrap()
}

/// Id, parent and session of every process.
fn processes() -> Vec<[u32; 3]> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
            let parent = fields.next()?.parse().ok()?;
            let session = fields.nth(1)?.parse().ok()?;
            Some([pid, parent, session])
        })
        .collect()
}

/// The fork servers of this process.
fn servers() -> BTreeSet<u32> {
    let own = std::process::id();
    let children = processes()
        .into_iter()
        .filter(|&[_, parent, _]| parent == own);
    children.map(|[pid, ..]| pid).collect()
}

fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Names in folders that anybody may write to.
fn public_files() -> BTreeSet<std::ffi::OsString> {
    ["/tmp", "/dev/shm", "/dev/mqueue"]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .map(|entry| entry.unwrap())
        // Others work here too; what gets out would belong to the spare user or bear our name.
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let spare = entry.metadata().is_ok_and(|file| file.uid() == 65_534);
            name.contains("wmtp-escape") || (spare && !name.contains("wmtp-plain"))
        })
        .map(|entry| entry.file_name())
        .collect()
}

#[test]
fn no_attack_reaches_anything() {
    let _lock = lock();
    let attacks = attacks::all();
    assert!(attacks.len() >= 92, "{}", attacks.len());
    let traps = Traps::set();
    for waits in [false, true] {
        // Those that wait run twice to the wall limit; those that compute must not meet it on a loaded machine.
        let grader = start(2, if waits { 1 } else { 30 });
        let before = servers();
        let chosen: Vec<&Attack> = attacks
            .iter()
            .filter(|attack| (attack.mark == "waits") == waits)
            .collect();
        let programs: Vec<Program> = chosen
            .iter()
            .map(|attack| traps.program(attack, 0).into())
            .collect();
        let verdicts = grader.grade_all(&programs, |_, _| ControlFlow::Continue(()));
        for (attack, verdict) in chosen.iter().zip(&verdicts) {
            assert!(!verdict.passed, "{} reached something", attack.name);
            assert_ne!(
                verdict.class,
                ErrorClass::Infrastructure,
                "{}: {verdict:?}",
                attack.name
            );
            let waited = verdict.class == ErrorClass::WallTimeout;
            assert_eq!(waited, waits, "{}: {verdict:?}", attack.name);
        }
        assert_eq!(servers(), before, "no server was replaced");
        let benign = grader.grade(&"assert 1 + 1 == 2".to_owned().into());
        assert!(benign.passed, "{benign:?}");
    }
    traps.assert_untouched();
}

/// As root the programs run under a spare user; here the grader itself is a plain user, and its programs are too.
#[test]
fn no_attack_reaches_anything_of_a_plain_user() {
    let _lock = lock();
    let own = fs::metadata("/proc/self").unwrap().uid();
    if own != 0 {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: all tests already run as a plain user"
        );
        return;
    }
    // The test's own folder may be closed to others.
    let folder = tempfile::Builder::new()
        .prefix("wmtp-plain")
        .tempdir_in("/tmp")
        .unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("attacks");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["--exact", "no_attack_reaches_anything"])
        .current_dir("/")
        .output();
    let Ok(output) = output else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: setpriv is not there");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

/// Runs quick attacks until `count` have run; counts what is left.
fn leave_nothing_behind(count: usize) {
    let _lock = lock();
    let traps = Traps::set();
    let quick: Vec<Attack> = attacks::all()
        .into_iter()
        .filter(|attack| !SLOW.iter().any(|slow| attack.name.starts_with(slow)))
        .collect();
    let own = std::process::id();
    let (files, descriptors_before) = (public_files(), descriptors(own));
    let grader = start(2, 60);
    let with_pool = servers();
    let open = |pids: &BTreeSet<u32>| pids.iter().map(|&pid| descriptors(pid)).collect::<Vec<_>>();
    let (own_open, their_open) = (descriptors(own), open(&with_pool));
    let programs: Vec<Program> = (0..count)
        .map(|number| traps.program(&quick[number % quick.len()], number).into())
        .collect();
    let verdicts = grader.grade_all(&programs, |_, _| ControlFlow::Continue(()));
    for (program, verdict) in programs.iter().zip(&verdicts) {
        assert!(!verdict.passed, "{}", program.candidate);
    }
    assert_eq!(servers(), with_pool, "no server was replaced");
    assert_eq!(descriptors(own), own_open);
    assert_eq!(open(&with_pool), their_open);
    drop(grader);
    let left: Vec<_> = processes()
        .into_iter()
        .filter(|[pid, parent, session]| {
            *parent == own || with_pool.contains(pid) || with_pool.contains(session)
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(descriptors(own), descriptors_before);
    assert_eq!(public_files(), files);
    traps.assert_untouched();
}

/// First words of the names of attacks that use up a limit.
const SLOW: [&str; 11] = [
    "endless",
    "loop",
    "a power",
    "regular",
    "sleep",
    "waiting",
    "reading from nobody",
    "memory",
    "five thousand",
    "raising the soft",
    "a flood",
];

#[test]
fn hundreds_of_attacks_leave_nothing_behind() {
    leave_nothing_behind(400);
}

#[test]
#[ignore = "a minute or two; `make test-full` runs it"]
fn ten_thousand_attacks_leave_nothing_behind() {
    leave_nothing_behind(10_000);
}

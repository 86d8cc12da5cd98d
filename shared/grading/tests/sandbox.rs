//! Hostile programs fail, nothing gets out, nothing is left behind, and the grader goes on.
//!
//! Every hostile program is written so that it would pass if its attack worked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wmtp_grading::{Error, Grader, GraderConfig, Limits, Program, Tier};
use wmtp_records::{ErrorClass, Tests, Verdict};

/// Tests count processes and descriptors of this process, so one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limits() -> Limits {
    Limits {
        // A loaded machine takes seconds for what takes milliseconds.
        cpu_secs: 5,
        wall_secs: 60,
        ..Limits::default()
    }
}

fn start(workers: usize, limits: Limits) -> Grader {
    Grader::start(GraderConfig {
        workers: NonZeroUsize::new(workers).unwrap(),
        limits,
        ..GraderConfig::default()
    })
    .unwrap()
}

fn program(source: &str) -> Program {
    Program {
        source: source.to_owned(),
    }
}

fn grade(grader: &Grader, source: &str) -> Verdict {
    grader.grade(&program(source))
}

/// Process ids of the direct children of this process.
fn children() -> Vec<u32> {
    let own = std::process::id();
    let mut found: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(own))
        .collect();
    found.sort_unstable();
    found
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(1)?.parse().ok()
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn the_eight_hostile_programs_fail_and_the_grader_carries_on() {
    let _lock = lock();
    let grader = start(2, limits());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect =
        format!("import socket\nsocket.create_connection(('127.0.0.1', {port})).send(b'x')");
    let hostile: [(&str, &str, &[ErrorClass]); 8] = [
        (
            "endless loop",
            "while True: pass",
            &[ErrorClass::CpuTimeout],
        ),
        (
            "fork bomb",
            "import os\nwhile os.fork() >= 0: pass",
            &[ErrorClass::Runtime],
        ),
        (
            "10 GiB allocation",
            "assert len(bytearray(10 << 30)) == 10 << 30",
            &[ErrorClass::Memory],
        ),
        (
            "gigabytes of output",
            "import sys\nfor _ in range(4096): sys.stdout.write('x' * (1 << 20))",
            &[ErrorClass::OutputLimit],
        ),
        ("network", &connect, &[ErrorClass::Runtime]),
        (
            "environment and files outside",
            "import os\nassert any(name.startswith(('CARGO', 'HOME', 'USER', 'AWS')) for name in os.environ) \
             or open('/etc/passwd').read()",
            &[ErrorClass::Runtime],
        ),
        (
            "killing the parent",
            "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
            &[ErrorClass::Runtime],
        ),
        (
            "os._exit(0)",
            "import os\nos._exit(0)\nassert False",
            &[ErrorClass::EarlyExit],
        ),
    ];
    for (name, source, expected) in hostile {
        let verdict = grade(&grader, source);
        assert!(!verdict.passed, "{name} passed");
        assert!(expected.contains(&verdict.class), "{name}: {verdict:?}");
        assert!(grade(&grader, "assert 1 + 1 == 2").passed, "after {name}");
    }
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
}

#[test]
fn other_ways_out_are_closed() {
    let _lock = lock();
    let grader = start(1, limits());
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let canary = folder.path().join("canary");
    fs::write(&canary, "secret").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o666)).unwrap();
    let canary_path = canary.to_str().unwrap();
    let own_id = std::process::id();
    let server_id = children()[0];
    for source in [
        format!("assert open({canary_path:?}).read()"),
        format!("open({canary_path:?}, 'a').write('x')"),
        format!("import os\nos.truncate({canary_path:?}, 0)"),
        format!("import os\nos.unlink({canary_path:?})"),
        format!("import os\nos.rename({canary_path:?}, {canary_path:?} + 'x')"),
        format!("import os\nos.chmod({canary_path:?}, 0)"),
        format!("import os\nos.mkdir({canary_path:?} + 'd')"),
        format!("import os\nos.symlink('/etc', {canary_path:?} + 's')"),
        "open('/tmp/wmtp-escape', 'w')".to_owned(),
        "open('/dev/shm/wmtp-escape', 'w')".to_owned(),
        "open('wmtp-escape', 'w')".to_owned(),
        "import os\nassert os.listdir('/')".to_owned(),
        "import os\nassert os.listdir('/proc')".to_owned(),
        "assert open('/etc/passwd').read()".to_owned(),
        "assert open('/proc/self/environ').read()".to_owned(),
        format!("assert open('/proc/{own_id}/environ').read()"),
        format!("open('/proc/{server_id}/mem', 'r+b')"),
        "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')".to_owned(),
        "import os, signal\nos.kill(-1, signal.SIGKILL)".to_owned(),
        "import os, signal\nos.killpg(0, signal.SIGKILL)".to_owned(),
        format!("import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({server_id}), 9)"),
        "import os\nos.setsid()".to_owned(),
        "import os\nos.memfd_create('x')".to_owned(),
        "import os\nos.execv('/bin/true', ['true'])".to_owned(),
        "import os\nassert os.system('true') == 0".to_owned(),
        "import os\nos.posix_spawn('/bin/true', ['true'], {})".to_owned(),
        "import subprocess\nsubprocess.run(['true'], check=True)".to_owned(),
        "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()".to_owned(),
        "import socket\nsocket.socketpair()".to_owned(),
        "import socket\nsocket.socket(socket.AF_UNIX)".to_owned(),
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)".to_owned(),
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))".to_owned(),
        "import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, 1)".to_owned(),
        "import ctypes\nassert ctypes.CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0) == 0".to_owned(),
        // unshare, clone3, io_uring_setup, bpf by number: unknown calls are refused like known ones.
        "import ctypes\nassert any(ctypes.CDLL(None).syscall(n, 0, 0, 0, 0, 0) >= 0 for n in (272, 435, 425, 321))"
            .to_owned(),
        // A new user namespace; the numbers with bit 30 are those of the x32 interface.
        "import ctypes\nassert ctypes.CDLL(None).syscall(56, 0x10000000, 0, 0, 0, 0) >= 0".to_owned(),
        "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0".to_owned(),
    ] {
        let verdict = grade(&grader, &source);
        assert!(!verdict.passed, "passed: {source}");
        assert!(
            matches!(verdict.class, ErrorClass::Runtime | ErrorClass::WrongAnswer | ErrorClass::Killed),
            "{source}: {verdict:?}"
        );
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "secret");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(children(), [server_id], "the server was not replaced");
    assert!(grade(&grader, "assert True").passed);
}

#[test]
fn tricks_with_the_verdict_do_not_pass() {
    let _lock = lock();
    let grader = start(1, limits());
    for (source, expected) in [
        (
            "import sys\nsys.exit(0)\nassert False",
            ErrorClass::EarlyExit,
        ),
        ("exit()", ErrorClass::EarlyExit),
        ("raise SystemExit", ErrorClass::EarlyExit),
        (
            "def f():\n    import os; os._exit(0)\nf()\nassert False",
            ErrorClass::EarlyExit,
        ),
        (
            "import builtins\nbuiltins.AssertionError = BaseException\nassert False",
            ErrorClass::WrongAnswer,
        ),
        (
            "class AssertionError(SystemExit): pass\nassert False",
            ErrorClass::WrongAnswer,
        ),
        (
            "import os\nos.write = lambda *a: 1\nos._exit = lambda c: None\nassert False",
            ErrorClass::WrongAnswer,
        ),
        (
            "import sys\nsys.excepthook = lambda *a: None\n1 / 0",
            ErrorClass::Runtime,
        ),
        (
            "import atexit, os\natexit.register(os._exit, 0)\n1 / 0",
            ErrorClass::Runtime,
        ),
        (
            "import os\nos.closerange(0, 256)\nassert False",
            ErrorClass::EarlyExit,
        ),
        (
            "import os\nfor fd in range(256):\n    try: os.write(fd, b'x passed\\n')\n    except OSError: pass\nos._exit(0)",
            ErrorClass::EarlyExit,
        ),
        ("print('passed')\nassert False", ErrorClass::WrongAnswer),
        ("def f(:\n    pass", ErrorClass::Syntax),
        ("x = '\0'", ErrorClass::Syntax),
        ("def f(): return f()\nf()", ErrorClass::Runtime),
        (
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
            ErrorClass::CpuTimeout,
        ),
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            ErrorClass::CpuTimeout,
        ),
        ("10 ** 10 ** 9", ErrorClass::CpuTimeout),
        (
            "x = []\nwhile True: x.append(bytes(1 << 26))",
            ErrorClass::Memory,
        ),
        (
            "import sys\nwhile True: sys.stderr.write('x' * (1 << 20))",
            ErrorClass::OutputLimit,
        ),
        ("import ctypes\nctypes.string_at(0)", ErrorClass::Killed),
    ] {
        let verdict = grade(&grader, source);
        assert_eq!(verdict.class, expected, "{source}: {verdict:?}");
        assert!(!verdict.passed);
    }
    assert!(grade(&grader, "assert True").passed);
}

#[test]
fn ordinary_programs_find_an_ordinary_python() {
    let _lock = lock();
    let grader = start(1, limits());
    for source in [
        "",
        "assert __name__ == '__main__'",
        "import sys\nassert sys.modules['__main__'].__dict__ is globals()",
        "assert callable(exit) and callable(quit)",
        "import sys\nassert sys.getrecursionlimit() == 1000 and len(sys.argv) == 1",
        "import sys\nassert sys.stdout.mode == 'w' and sys.stdin.read() == ''",
        "import os\nassert os.read(0, os.fstat(0).st_size) == b''",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "from concurrent.futures import ThreadPoolExecutor\n\
         assert list(ThreadPoolExecutor(8).map(abs, [-1, 2])) == [1, 2]",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
        "import inspect\ndef f(): return 1\nassert 'return 1' in inspect.getsource(f)",
        "import ctypes, sqlite3, zoneinfo, secrets, uuid\nassert uuid.uuid4() and secrets.token_hex()",
        "import time\ntime.sleep(0.01)\nassert time.localtime().tm_year > 2000",
        "assert 'math' not in globals() and 'json' not in globals()",
        "print('x' * 1000000)",
        "s = 1\r\nif s:\r\n    assert s == 1\r\n",
    ] {
        let verdict = grade(&grader, source);
        assert!(verdict.passed, "{source}: {verdict:?}");
    }
}

#[test]
fn verdicts_say_what_went_wrong() {
    let _lock = lock();
    let grader = start(1, limits());
    let tests = Tests::Asserts {
        setup: "x = Box(2)".to_owned(),
        asserts: vec![
            "assert x.value == 2".to_owned(),
            "assert x.value == 3".to_owned(),
        ],
    };
    let candidate = "class Box:\n    def __init__(self, value):\n        self.value = value";
    let verdict = grader.grade(&Program::from_tests(candidate, &tests));
    assert_eq!(verdict.message, "AssertionError: assert x.value == 3");
    assert!(
        verdict.stderr.contains("assert x.value == 3"),
        "{}",
        verdict.stderr
    );

    let long = grade(&grader, "raise ValueError('é' * 9999)");
    assert!(long.message.starts_with("ValueError: éé"));
    assert_eq!(long.message.chars().count(), 300);
    assert!(long.stderr.chars().count() <= 2000);
    assert!(long.cpu_secs > 0.0 && long.wall_secs > 0.0);
}

#[test]
fn programs_do_not_see_each_other_and_verdicts_repeat() {
    let _lock = lock();
    let grader = start(1, limits());
    assert!(
        grade(
            &grader,
            "import math\nmath.pi = 3\nimport builtins\nbuiltins.leak = 1"
        )
        .passed
    );
    assert!(
        grade(
            &grader,
            "import math, builtins\nassert math.pi > 3 and not hasattr(builtins, 'leak')"
        )
        .passed
    );

    let show =
        "import random\nraise ValueError(f\"{random.random()} {list({'a', 'b', 'c', 'd'})}\")";
    let first = grade(&grader, show).message;
    assert_eq!(first, grade(&grader, show).message);
    assert_eq!(first, grade(&start(1, limits()), show).message);
}

#[test]
fn two_hundred_gradings_leave_nothing_behind() {
    let _lock = lock();
    let before = (children(), descriptors());
    let grader = start(2, limits());
    let with_pool = (children(), descriptors());
    let programs: Vec<Program> = (0..200)
        .map(|index| program(&format!("x = [0] * 100000\nassert {index} % 4")))
        .collect();
    let mut num_done = 0;
    let verdicts = grader.grade_all(&programs, |_, _| {
        num_done += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(num_done, 200);
    for (index, verdict) in verdicts.iter().enumerate() {
        assert_eq!(verdict.passed, index % 4 != 0, "{index}: {verdict:?}");
    }
    assert_eq!((children(), descriptors()), with_pool);
    assert_eq!(with_pool.0.len(), before.0.len() + 2);
    for server in &with_pool.0 {
        // Others than root may not look into a server.
        if let Ok(open) = fs::read_dir(format!("/proc/{server}/fd")) {
            assert!(open.count() <= 5);
        }
    }
    drop(grader);
    assert_eq!((children(), descriptors()), before);
}

#[test]
fn programs_of_equal_source_are_executed_once() {
    let _lock = lock();
    let grader = start(1, limits());
    let programs = ["assert 1", "assert 0", "assert 1", "assert 1"].map(program);
    let mut done = Vec::new();
    let verdicts = grader.grade_all(&programs, |index, _| {
        done.push(index);
        ControlFlow::Continue(())
    });
    done.sort_unstable();
    assert_eq!(done, [0, 1, 2, 3]);
    assert_eq!(
        [0, 1, 2, 3].map(|i| verdicts[i].passed),
        [true, false, true, true]
    );
    // Two executions never take the same time to the nanosecond.
    assert!(verdicts[0] == verdicts[2] && verdicts[2] == verdicts[3]);
}

#[test]
fn a_break_ends_grading_after_the_programs_under_way() {
    let _lock = lock();
    let grader = start(1, limits());
    let programs: Vec<Program> = (0..50)
        .map(|index| program(&format!("assert {index} >= 0")))
        .collect();
    let mut num_done = 0;
    let verdicts = grader.grade_all(&programs, |_, _| {
        num_done += 1;
        ControlFlow::Break(())
    });
    assert!((1..50).contains(&num_done), "{num_done}");
    let run = verdicts.iter().filter(|verdict| verdict.passed).count();
    assert_eq!(run, num_done);
    assert!(grade(&grader, "assert True").passed, "the pool goes on");
}

#[test]
fn a_grader_dropped_on_another_thread_leaves_no_process() {
    let _lock = lock();
    let before = children();
    std::thread::scope(|scope| {
        let grader = scope.spawn(|| start(1, limits())).join().unwrap();
        assert!(grade(&grader, "assert True").passed);
        scope.spawn(move || drop(grader));
    });
    assert_eq!(children(), before);
}

#[test]
fn the_report_is_honest_and_a_bad_interpreter_is_an_error() {
    let _lock = lock();
    let grader = start(1, limits());
    let report = grader.sandbox();
    assert_eq!(report.tier, Tier::Full);
    assert_eq!(report.self_check, "nothing reached");
    let map = report.to_map();
    assert_eq!(map["landlock_abi"], report.landlock_abi.to_string());
    assert_eq!(map["tier"], "full");

    let config = GraderConfig {
        python: Some("/bin/true".into()),
        ..GraderConfig::default()
    };
    let error = Grader::start(config).unwrap_err();
    assert!(matches!(error, Error::Interpreter { .. }), "{error}");
}

//! Hostile programs fail, nothing gets out, nothing is left behind, and the grader goes on.
//!
//! Every hostile program is written so that it would pass if its attack worked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wmtp_grading::{Case, Error, Grader, GraderConfig, Limits, Program, Tier};
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
    source.to_owned().into()
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

/// Runs a program on one input; what it is judged to be when `output` is expected.
fn run(grader: &Grader, source: &str, input: &str, output: &str) -> Verdict {
    let case = Case {
        input: input.to_owned(),
        output: output.to_owned(),
    };
    grader.grade(&Program {
        cases: [case].into(),
        ..program(source)
    })
}

#[test]
fn programs_that_read_and_print_do_so_as_under_plain_python() {
    let _lock = lock();
    let grader = start(1, limits());
    for (source, input, output) in [
        ("print(int(input()) + 1)", "4\n", "5"),
        (
            "import sys\nprint(sum(map(int, sys.stdin)))",
            "1\n2\n3",
            "6",
        ),
        (
            "import os\nprint(os.read(0, os.fstat(0).st_size).decode()[::-1])",
            "abc",
            "cba",
        ),
        ("print(open(0).read())", "x y", "x y"),
        ("import sys\nsys.stdout.write('a')\nsys.exit()", "", "a"),
        ("print('a')\nexit(0)", "", "a"),
        (
            "import sys\nprint('a')\nsys.stdout.flush()\n__import__('os')._exit(0)",
            "",
            "a",
        ),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('late'))).start()",
            "",
            "late",
        ),
        (
            "import threading\nt = threading.Thread(target=print, args=('in',))\nt.start()\nt.join()",
            "",
            "in",
        ),
        (
            "import atexit\natexit.register(print, 'end')\nprint('start')",
            "",
            "start end",
        ),
        (
            "class Late:\n    def __del__(self): print('gone')\nx = Late()",
            "",
            "gone",
        ),
        (
            "import sys, io\nold, sys.stdout = sys.stdout, io.StringIO()\nprint('a')\nold.write(sys.stdout.getvalue())",
            "",
            "a",
        ),
        (
            "import sys, os\nout = os.fdopen(1, 'w')\nsys.stdout = out\nprint('a')",
            "",
            "a",
        ),
        ("import sys\nprint('a')\nsys.stdout.close()", "", "a"),
        (
            "import os\nclass Late:\n    def __del__(self): os.write(1, b'whole')\ndef f(): return x\nx = Late()",
            "",
            "whole",
        ),
        (
            "if __name__ == '__main__':\n    print('é', input())",
            "日本\n",
            "é 日本",
        ),
        ("print('YES', 0.1 + 0.2)", "", "yes 0.3"),
    ] {
        let verdict = run(&grader, source, input, output);
        assert!(verdict.passed, "{source}: {verdict:?}");
    }
    for (source, input, expected, message) in [
        (
            "print(1)",
            "",
            ErrorClass::WrongAnswer,
            "test 1 of 1: expected 2, printed 1",
        ),
        (
            "print(2, 2)",
            "",
            ErrorClass::WrongAnswer,
            "test 1 of 1: expected no more, printed 2",
        ),
        (
            "pass",
            "",
            ErrorClass::WrongAnswer,
            "test 1 of 1: expected 2, printed no more",
        ),
        (
            "print(2)\nraise SystemExit(1)",
            "",
            ErrorClass::EarlyExit,
            "test 1 of 1: SystemExit: 1",
        ),
        (
            "print(2)\nimport os\nos._exit(3)",
            "",
            ErrorClass::EarlyExit,
            "exit status 3",
        ),
        (
            "print(2)\n1 / 0",
            "",
            ErrorClass::Runtime,
            "ZeroDivisionError",
        ),
        (
            "print(2)\nwhile True: pass",
            "",
            ErrorClass::CpuTimeout,
            "CPU time",
        ),
        ("input()", "", ErrorClass::Runtime, "EOFError"),
    ] {
        let verdict = run(&grader, source, input, "2");
        assert!(
            !verdict.passed && verdict.class == expected,
            "{source}: {verdict:?}"
        );
        assert!(verdict.message.contains(message), "{source}: {verdict:?}");
    }
}

#[test]
fn every_case_counts_until_time_is_up() {
    let _lock = lock();
    let grader = start(1, limits());
    let cases: Vec<Case> = (0..4)
        .map(|n| Case {
            input: n.to_string(),
            output: format!("{}\n", n % 2),
        })
        .collect();
    let counts = |source: &str| {
        let graded = Program {
            cases: cases.clone().into(),
            ..program(source)
        };
        let cases = grader.grade(&graded).cases.unwrap();
        (cases.total, cases.deepmind, cases.exact)
    };
    assert_eq!(counts("print(int(input()) % 2)"), (4, 4, 4));
    assert_eq!(counts("print(int(input()) % 2, end='')"), (4, 4, 0));
    assert_eq!(counts("print(0)"), (4, 2, 2));
    // The second takes all its time; the third and fourth are not run.
    assert_eq!(
        counts("n = int(input())\nprint(n % 2)\nwhile n == 1: pass"),
        (4, 1, 1)
    );
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

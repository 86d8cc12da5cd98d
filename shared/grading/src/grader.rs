//! The pool: one thread and one fork server per worker.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use wmtp_records::{Audit, AuditOutcome, CaseCounts, ErrorClass, Verdict};

use crate::audit;
use crate::confine::{self, Confinement, SPARE_ID};
use crate::interpreter::Interpreter;
use crate::launch::{self, Launch};
use crate::output;
use crate::server::{ApartRequest, JudgeRequest, Request, Server};
use crate::verdict::{MESSAGE_CHARS, judge, judge_apart, judge_run, not_run, passed};
use crate::{Case, Error, GraderConfig, Limits, Program, SandboxReport, Tier};

/// Share of the CPU limit from which a program that met the wall limit counts as computing, not waiting.
const COMPUTING_SHARE: f64 = 0.25;

/// Programs in memory at a time, and those whose verdicts are remembered.
const WINDOW: usize = 1024;

/// Wall-clock seconds for each CPU second that a problem grants.
const WALL_SHARE: u64 = 6;

/// What each of an audit's two processes gets of the CPU time that both had together before: copying values takes some.
const AUDIT_CPU_SHARE: u64 = 2;

/// Output that is looked at beyond twice what is expected: blanks may differ, more is wrong anyway.
const OUTPUT_SLACK_BYTES: usize = 1 << 16;

/// The self-check tells what the machine can hold, so a recipe's limits, however tight, do not end it early.
const SELF_CHECK_LIMITS: Limits = Limits {
    cpu_secs: 10,
    wall_secs: 60,
    memory_bytes: 1 << 30,
    output_bytes: 1 << 20,
};

/// A pool of sandboxed interpreters. Dropping it ends every process it started.
#[derive(Debug)]
pub struct Grader {
    pool: Pool,
    limits: Limits,
    audit: bool,
    report: SandboxReport,
}

/// The worker threads and their queue. Dropping it closes the queue and waits for them.
#[derive(Debug)]
struct Pool {
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

/// One program on its way to a worker. However it ends, it is answered.
#[derive(Debug)]
struct Job {
    program: Arc<Program>,
    limits: Limits,
    audit: bool,
    /// Set when nobody wants the verdict any more.
    stopped: Arc<AtomicBool>,
    done: Sender<(Arc<Program>, Verdict)>,
    verdict: Option<Verdict>,
}

impl Drop for Job {
    fn drop(&mut self) {
        let verdict = self.verdict.take();
        let verdict = verdict.unwrap_or_else(|| not_run("grading ended before this program"));
        // Whoever asked may have gone; then nobody wants the verdict.
        let _ = self.done.send((Arc::clone(&self.program), verdict));
    }
}

impl Grader {
    /// Starts the workers and lets a first program try the usual ways out.
    ///
    /// # Errors
    /// [`Error::Degraded`] where a layer of the sandbox is missing and the configuration does not accept
    /// that; [`Error::Unsupported`] where programs could not be held at all; [`Error::Interpreter`] and
    /// [`Error::Start`] where Python does not run.
    pub fn start(config: GraderConfig) -> Result<Self, Error> {
        if !confine::has_seccomp() {
            let what = "the kernel does not filter system calls (seccomp)".to_owned();
            return Err(Error::Unsupported { what });
        }
        let is_root = confine::is_root();
        let python = Interpreter::find(config.python.as_deref(), is_root)?;
        let landlock_abi = confine::landlock_abi();
        let walls = Confinement::new(&python.roots, landlock_abi, &config.limits)?;
        let mut launch = Launch {
            drop_user: is_root && python.is_public(),
            python: python.executable.clone(),
            walls: Arc::new(walls),
        };
        let mut pool = Pool::start(&config, &launch);
        if pool.is_err() && launch.drop_user {
            // The platform may refuse a change of user: containers can lack the capability.
            launch.drop_user = false;
            pool = Pool::start(&config, &launch);
        }
        let mut report = report(&python, landlock_abi, is_root, launch.drop_user);
        let mut grader = Self {
            pool: pool?,
            limits: SELF_CHECK_LIMITS,
            audit: false,
            report: report.clone(),
        };
        let check = grader.grade(&include_str!("self_check.py").to_owned().into());
        grader.limits = config.limits;
        grader.audit = config.audit;
        match check.class {
            ErrorClass::Passed => report.self_check = String::from("nothing reached"),
            ErrorClass::Infrastructure => {
                return Err(Error::Start {
                    what: check.message,
                });
            }
            _ => {
                report.self_check = check.message;
                report.tier = Tier::Degraded;
            }
        }
        if report.tier == Tier::Degraded && !config.accept_degraded {
            return Err(Error::Degraded {
                report: Box::new(report),
            });
        }
        grader.report = report;
        Ok(grader)
    }

    /// What the sandbox enforces on this machine.
    pub fn sandbox(&self) -> &SandboxReport {
        &self.report
    }

    /// Grades one program; blocks until a worker has done so. May be called from many threads.
    ///
    /// A program that meets the wall limit, and one whose server died, runs once more with no other
    /// program beside it. After that a program that met the wall limit again is [`ErrorClass::WallTimeout`]
    /// if it hardly computed (it waits for something), and [`ErrorClass::Infrastructure`] if it did (the
    /// machine did not let it run): the latter says nothing about the program and is not to be counted.
    pub fn grade(&self, program: &Program) -> Verdict {
        let mut verdicts = self.grade_all(std::slice::from_ref(program), |_, _| {
            ControlFlow::Continue(())
        });
        verdicts.remove(0)
    }

    /// Grades programs on all workers; verdicts come in the order of the programs. Equal programs, of
    /// which a model at a low temperature writes many, are executed once and share the verdict.
    ///
    /// `on_done` is called on this thread with each index and verdict, in order. When it breaks, programs under way are
    /// finished, no other is started, and what it was not told of is [`ErrorClass::Infrastructure`].
    pub fn grade_all(
        &self,
        programs: &[Program],
        mut on_done: impl FnMut(usize, &Verdict) -> ControlFlow<()>,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(programs.len());
        let each = programs.iter().cloned().map(Ok::<_, Infallible>);
        let Ok(()) = self.grade_stream(each, |verdict| {
            let flow = on_done(verdicts.len(), &verdict);
            verdicts.push(verdict);
            Ok(flow)
        });
        verdicts.resize_with(programs.len(), || {
            not_run("grading ended before this program")
        });
        verdicts
    }

    /// Grades programs as they come, with a bounded number of them in memory. `on_verdict` gets the verdicts in the order
    /// of the programs; equal ones that lie close together are executed once.
    ///
    /// When `on_verdict` breaks, or either side fails, programs under way are finished and no other is started.
    ///
    /// # Errors
    /// The first error of `programs` or of `on_verdict`.
    pub fn grade_stream<E>(
        &self,
        programs: impl IntoIterator<Item = Result<Program, E>>,
        on_verdict: impl FnMut(Verdict) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let (done, results) = channel();
        let stopped = Arc::new(AtomicBool::new(false));
        let mut window = Window::default();
        let queue = |program| {
            // Should no worker be left, the job is dropped, which answers it.
            self.pool.send(Job {
                program,
                limits: self.limits,
                audit: self.audit,
                stopped: Arc::clone(&stopped),
                done: done.clone(),
                verdict: None,
            });
        };
        let outcome = window.pass(programs.into_iter(), queue, &results, on_verdict);
        stopped.store(true, Ordering::Relaxed);
        drop(done);
        // Ends when the last program under way has.
        for _ in results {}
        outcome
    }
}

/// Programs between those whose verdicts were handed on and those that were not read yet.
#[derive(Debug, Default)]
struct Window {
    /// Index of the first of them.
    first: usize,
    verdicts: VecDeque<Option<Verdict>>,
    /// What is known of the programs in the window, and of some before it; equal ones are one.
    known: BTreeMap<Arc<Program>, Known>,
    /// The programs of `known`, oldest first.
    order: VecDeque<Arc<Program>>,
    num_running: usize,
}

/// What is known of a program.
#[derive(Debug)]
enum Known {
    /// It is under way; these indices wait for it.
    Running(Vec<usize>),
    Done(Verdict),
}

impl Window {
    /// Reads programs while there is room, queues the new ones, and hands verdicts on in order.
    fn pass<E>(
        &mut self,
        mut programs: impl Iterator<Item = Result<Program, E>>,
        queue: impl Fn(Arc<Program>),
        results: &Receiver<(Arc<Program>, Verdict)>,
        mut on_verdict: impl FnMut(Verdict) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let mut more = true;
        loop {
            while more && self.verdicts.len() < WINDOW {
                match programs.next() {
                    Some(program) => {
                        if let Some(new) = self.push(program?) {
                            queue(new);
                        }
                    }
                    None => more = false,
                }
            }
            while let Some(verdict) = self.pop() {
                if on_verdict(verdict)?.is_break() {
                    return Ok(());
                }
            }
            if self.num_running > 0 {
                let Ok((program, verdict)) = results.recv() else {
                    return Ok(());
                };
                self.fill(program, &verdict);
            } else if !more {
                return Ok(());
            }
        }
    }

    /// Takes in the next program; hands it back to be run, unless an equal one is known.
    fn push(&mut self, program: Program) -> Option<Arc<Program>> {
        let index = self.first + self.verdicts.len();
        match self.known.get_mut(&program) {
            Some(Known::Done(verdict)) => self.verdicts.push_back(Some(verdict.clone())),
            Some(Known::Running(waiting)) => {
                waiting.push(index);
                self.verdicts.push_back(None);
            }
            None => {
                let program = Arc::new(program);
                self.known
                    .insert(Arc::clone(&program), Known::Running(vec![index]));
                self.order.push_back(Arc::clone(&program));
                self.verdicts.push_back(None);
                self.num_running += 1;
                // The window holds no more of them than this, so the one forgotten is done.
                if self.order.len() > WINDOW
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.known.remove(&oldest);
                }
                return Some(program);
            }
        }
        None
    }

    fn fill(&mut self, program: Arc<Program>, verdict: &Verdict) {
        self.num_running -= 1;
        let before = self.known.insert(program, Known::Done(verdict.clone()));
        if let Some(Known::Running(waiting)) = before {
            for index in waiting {
                self.verdicts[index - self.first] = Some(verdict.clone());
            }
        }
    }

    /// The next verdict in order, if it is there.
    fn pop(&mut self) -> Option<Verdict> {
        let verdict = self.verdicts.front_mut()?.take()?;
        self.verdicts.pop_front();
        self.first += 1;
        Some(verdict)
    }
}

impl Pool {
    /// Starts every worker and waits until all servers are warm.
    fn start(config: &GraderConfig, launch: &Launch) -> Result<Self, Error> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let alone = Arc::new(RwLock::new(()));
        let (started, starts) = channel();
        let workers = (0..config.workers.get())
            .map(|_| {
                let (queue, started) = (Arc::clone(&queue), started.clone());
                let mut worker = Worker {
                    launch: launch.clone(),
                    alone: Arc::clone(&alone),
                    server: None,
                    auditor: None,
                };
                std::thread::spawn(move || worker.serve(&queue, started))
            })
            .collect();
        let pool = Self {
            jobs: Some(jobs),
            workers,
        };
        drop(started);
        for start in starts {
            start.map_err(|error| Error::Start {
                what: error.to_string(),
            })?;
        }
        Ok(pool)
    }

    /// Queues a job.
    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn report(
    python: &Interpreter,
    landlock_abi: u32,
    is_root: bool,
    drop_user: bool,
) -> SandboxReport {
    let uid_drop = match (is_root, drop_user) {
        (false, _) => "not root".to_owned(),
        (true, true) => format!("to {SPARE_ID}"),
        (true, false) => "refused: programs run as root".to_owned(),
    };
    let is_full = landlock_abi > 0 && is_root == drop_user;
    SandboxReport {
        landlock_abi,
        seccomp: "allow-list".to_owned(),
        uid_drop,
        network: "no sockets".to_owned(),
        launched: if launch::is_own_binary() {
            "by the own binary".to_owned()
        } else {
            "by a fork".to_owned()
        },
        python: python.version.clone(),
        self_check: "not run".to_owned(),
        tier: if is_full { Tier::Full } else { Tier::Degraded },
    }
}

/// Owns one server for as long as its thread lives, see [`Server::start`].
pub(crate) struct Worker {
    launch: Launch,
    /// Held shared while grading, exclusively while a program runs alone.
    alone: Arc<RwLock<()>>,
    server: Option<Server>,
    /// Another one, started with the first audit: no process that has held a program's tests is forked for an audit.
    auditor: Option<Server>,
}

impl Worker {
    /// One without a pool.
    #[cfg(test)]
    pub(crate) fn alone(launch: Launch) -> Self {
        Self {
            launch,
            alone: Arc::default(),
            server: None,
            auditor: None,
        }
    }

    /// Starts the server, says how that went, then works until the queue closes.
    fn serve(&mut self, queue: &Mutex<Receiver<Job>>, started: Sender<io::Result<()>>) {
        let server = Server::start(&self.launch).map(|server| self.server = Some(server));
        let failed = server.is_err();
        if started.send(server).is_err() || failed {
            return;
        }
        // The pool waits until every worker has let go of this end.
        drop(started);
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut job) = next else { return };
            if !job.stopped.load(Ordering::Relaxed) {
                let mut verdict = self.grade(&job.program, &job.limits);
                if job.audit && verdict.passed && job.program.can_be_audited() {
                    verdict.audit = Some(self.audit(&job.program, &job.limits));
                }
                job.verdict = Some(verdict);
            }
        }
    }

    pub(crate) fn grade(&mut self, program: &Program, limits: &Limits) -> Verdict {
        if program.cases.is_empty() {
            let run = Run {
                source: &program.source(),
                case: None,
            };
            return self.run(run, limits);
        }
        let mut limits = *limits;
        if program.cpu_secs > limits.cpu_secs {
            limits.wall_secs = limits.wall_secs.max(WALL_SHARE * program.cpu_secs);
            limits.cpu_secs = program.cpu_secs;
        }
        self.grade_cases(program, &limits)
    }

    /// Runs a program once a case. After a case that met a time limit the rest are not run and count as failed: each
    /// would take as long.
    fn grade_cases(&mut self, program: &Program, limits: &Limits) -> Verdict {
        let mut cases = CaseCounts::default();
        let (mut cpu_secs, mut wall_secs) = (0.0, 0.0);
        let mut first_failure: Option<Verdict> = None;
        let mut out_of_time = false;
        for (index, case) in program.cases.iter().enumerate() {
            if out_of_time {
                output::count(&mut cases, &case.output, None);
                continue;
            }
            let run = Run {
                source: &program.candidate,
                case: Some(case),
            };
            let (mut verdict, stdout) = self.run_with_output(run, limits);
            if verdict.class == ErrorClass::Infrastructure {
                // Nothing is known of this case, so nothing is said of the program.
                return verdict;
            }
            cpu_secs += verdict.cpu_secs;
            wall_secs += verdict.wall_secs;
            out_of_time = matches!(
                verdict.class,
                ErrorClass::CpuTimeout | ErrorClass::WallTimeout
            );
            output::count(
                &mut cases,
                &case.output,
                verdict.passed.then_some(stdout.as_str()),
            );
            if verdict.passed && !output::deepmind(&case.output, &stdout) {
                verdict.class = ErrorClass::WrongAnswer;
                verdict.message = difference(&case.output, &stdout);
            }
            if verdict.class != ErrorClass::Passed && first_failure.is_none() {
                let place = format!("test {} of {}: ", index + 1, program.cases.len());
                verdict.message = (place + &verdict.message)
                    .chars()
                    .take(MESSAGE_CHARS)
                    .collect();
                first_failure = Some(verdict);
            }
        }
        let mut verdict = first_failure.unwrap_or_else(passed);
        verdict.passed = verdict.class == ErrorClass::Passed;
        verdict.cases = Some(cases);
        (verdict.cpu_secs, verdict.wall_secs) = (cpu_secs, wall_secs);
        verdict
    }

    fn run(&mut self, run: Run<'_>, limits: &Limits) -> Verdict {
        self.run_with_output(run, limits).0
    }

    fn run_with_output(&mut self, run: Run<'_>, limits: &Limits) -> (Verdict, String) {
        let alone = Arc::clone(&self.alone);
        let first = {
            let _shared = alone.read().unwrap_or_else(PoisonError::into_inner);
            self.attempt(run, limits)
        };
        match first {
            Ok((verdict, stdout))
                if !matches!(
                    verdict.class,
                    ErrorClass::WallTimeout | ErrorClass::Infrastructure
                ) =>
            {
                (verdict, stdout)
            }
            _ => {
                let _alone = alone.write().unwrap_or_else(PoisonError::into_inner);
                match self.attempt(run, limits) {
                    Ok((verdict, stdout)) => (judge_waiting(verdict, limits), stdout),
                    Err(error) => (not_run(&format!("grading server: {error}")), String::new()),
                }
            }
        }
    }

    /// Runs a program on a live server; on an error the server is gone and the next attempt starts one.
    fn attempt(&mut self, run: Run<'_>, limits: &Limits) -> io::Result<(Verdict, String)> {
        let mut server = match self.server.take() {
            Some(server) => server,
            None => Server::start(&self.launch)?,
        };
        let token = new_token()?;
        let reply = server.run(&Request {
            source: run.source,
            token: &token,
            cpu_secs: limits.cpu_secs,
            wall_secs: limits.wall_secs,
            memory_bytes: limits.memory_bytes,
            output_bytes: limits.output_bytes,
            stdin: run.case.map(|case| case.input.as_str()),
            keep_stdout: run
                .case
                .map_or(0, |case| OUTPUT_SLACK_BYTES + 2 * case.output.len()),
        })?;
        self.server = Some(server);
        let verdict = if run.case.is_some() {
            judge_run(&reply, &token, limits)
        } else {
            judge(&reply, &token, limits)
        };
        Ok((verdict, reply.stdout))
    }

    /// Runs candidate and tests in processes of their own; what could not be run is tried once more with no other program
    /// beside it.
    pub(crate) fn audit(&mut self, program: &Program, limits: &Limits) -> Audit {
        let alone = Arc::clone(&self.alone);
        let first = {
            let _shared = alone.read().unwrap_or_else(PoisonError::into_inner);
            self.attempt_audit(program, limits)
        };
        let mut audit = first
            .ok()
            .filter(|audit| audit.outcome != AuditOutcome::NotRun)
            .unwrap_or_else(|| {
                let _alone = alone.write().unwrap_or_else(PoisonError::into_inner);
                self.attempt_audit(program, limits)
                    .unwrap_or_else(|error| Audit {
                        outcome: AuditOutcome::NotRun,
                        message: format!("grading server: {error}"),
                        flags: Vec::new(),
                    })
            });
        audit.flags = audit::flags(&program.candidate);
        audit
    }

    fn attempt_audit(&mut self, program: &Program, limits: &Limits) -> io::Result<Audit> {
        let mut server = match self.auditor.take() {
            Some(server) => server,
            None => Server::start(&self.launch)?,
        };
        let token = new_token()?;
        let limits = Limits {
            cpu_secs: AUDIT_CPU_SHARE * limits.cpu_secs,
            ..*limits
        };
        let candidate = ApartRequest {
            candidate: &program.candidate,
            cpu_secs: limits.cpu_secs,
            wall_secs: limits.wall_secs,
            memory_bytes: limits.memory_bytes,
            output_bytes: limits.output_bytes,
        };
        let judge = JudgeRequest {
            tests: &program.tests,
            token: &token,
        };
        let reply = server.run_apart(&candidate, &judge)?;
        self.auditor = Some(server);
        Ok(judge_apart(&reply, &token, &limits))
    }
}

/// A program on its way through a server, with what it reads.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    source: &'a str,
    case: Option<&'a Case>,
}

/// The first words that differ, for a person.
fn difference(expected: &str, found: &str) -> String {
    let (mut expected, mut found) = (
        expected.split_ascii_whitespace(),
        found.split_ascii_whitespace(),
    );
    loop {
        match (expected.next(), found.next()) {
            (Some(a), Some(b)) if output::deepmind(a, b) => {}
            (Some(a), Some(b)) => return format!("expected {}, printed {}", short(a), short(b)),
            (Some(a), None) => return format!("expected {}, printed no more", short(a)),
            (None, Some(b)) => return format!("expected no more, printed {}", short(b)),
            (None, None) => return String::new(),
        }
    }
}

fn short(word: &str) -> String {
    const CHARS: usize = 60;
    word.chars().take(CHARS).collect()
}

/// Tells waiting from starving after the run alone, see [`Grader::grade`].
fn judge_waiting(mut verdict: Verdict, limits: &Limits) -> Verdict {
    let computing = verdict.cpu_secs >= COMPUTING_SHARE * limits.cpu_secs as f64;
    if verdict.class == ErrorClass::WallTimeout && computing {
        verdict.class = ErrorClass::Infrastructure;
    }
    verdict
}

/// 128 random bits from the system; they never reach a result.
fn new_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> Worker {
        let python = Interpreter::find(None, confine::is_root()).unwrap();
        let abi = confine::landlock_abi();
        let walls = Confinement::new(&python.roots, abi, &Limits::default()).unwrap();
        Worker::alone(Launch {
            drop_user: confine::is_root() && python.is_public(),
            python: python.executable,
            walls: Arc::new(walls),
        })
    }

    /// Kills by the id of a process that the test started.
    fn kill(id: u32) {
        let status = std::process::Command::new("kill")
            .args(["-9", &id.to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    #[test]
    fn a_killed_server_costs_one_retry_and_no_verdict() {
        let mut worker = worker();
        assert!(
            worker
                .grade(&"assert True".to_owned().into(), &Limits::default())
                .passed
        );
        let first = worker.server.as_ref().unwrap().process_id();
        kill(first);
        assert!(
            worker
                .grade(&"assert True".to_owned().into(), &Limits::default())
                .passed
        );
        assert_ne!(worker.server.as_ref().unwrap().process_id(), first);
    }

    #[test]
    fn a_program_that_waits_is_a_wall_timeout_and_one_that_starves_is_not_judged() {
        let limits = Limits {
            cpu_secs: 4,
            wall_secs: 1,
            ..Limits::default()
        };
        let mut worker = worker();
        let waiting = worker.grade(&"import time\ntime.sleep(60)".to_owned().into(), &limits);
        assert_eq!(waiting.class, ErrorClass::WallTimeout, "{waiting:?}");
        let computed = Verdict {
            cpu_secs: 2.0,
            ..waiting
        };
        let starved = judge_waiting(computed, &limits);
        assert_eq!(starved.class, ErrorClass::Infrastructure);
        assert!(!starved.passed);
    }

    #[test]
    fn without_landlock_files_open_for_reading_only() {
        let mut worker = worker();
        let walls = Confinement::new(&[], 0, &Limits::default()).unwrap();
        worker.launch.walls = Arc::new(walls);
        let source = "for flags in ('w', 'a', 'x', 'r+'):\n    try:\n        open('/dev/null', flags)\n    \
                      except PermissionError:\n        continue\n    raise RuntimeError(flags)\nopen('/dev/null')";
        let verdict = worker.grade(&source.to_owned().into(), &Limits::default());
        assert!(verdict.passed, "{verdict:?}");
    }
}

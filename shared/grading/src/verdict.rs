//! From how a fork ended to what that says about the program.

use wmtp_records::{Audit, AuditOutcome, ErrorClass, Verdict};

use crate::Limits;
use crate::server::{ApartReply, Reply};

pub(crate) const MESSAGE_CHARS: usize = 300;
/// Scheduling granularity: a program ended by the kernel at its hard CPU limit may show slightly less.
const CPU_SLACK_SECS: f64 = 0.1;

/// Judges one reply. A pass needs exit status 0, the request's token and the word "passed".
pub(crate) fn judge(reply: &Reply, token: &str, limits: &Limits) -> Verdict {
    let (class, message) = classify(reply, token, limits);
    Verdict {
        passed: class == ErrorClass::Passed,
        class,
        message: message.chars().take(MESSAGE_CHARS).collect(),
        stderr: reply.stderr.clone(),
        cpu_secs: reply.cpu_secs,
        wall_secs: reply.wall_secs,
        cases: None,
        audit: None,
    }
}

/// Judges one run of a program that is judged by what it prints: `Passed` says that it ended well. Leaving by
/// `os._exit(0)` is ending well, as it is for `python3 program.py`.
pub(crate) fn judge_run(reply: &Reply, token: &str, limits: &Limits) -> Verdict {
    let mut verdict = judge(reply, token, limits);
    let is_silent = report_of(&reply.report, token).is_none();
    if verdict.class == ErrorClass::EarlyExit && reply.status == 0 && is_silent {
        verdict.passed = true;
        verdict.class = ErrorClass::Passed;
        verdict.message.clear();
    }
    verdict
}

/// A verdict for a program of which every run ended well.
pub(crate) fn passed() -> Verdict {
    Verdict {
        passed: true,
        class: ErrorClass::Passed,
        ..not_run("")
    }
}

/// A verdict for a program that could not be run; it says nothing about the program.
pub(crate) fn not_run(what: &str) -> Verdict {
    Verdict {
        passed: false,
        class: ErrorClass::Infrastructure,
        message: what.chars().take(MESSAGE_CHARS).collect(),
        stderr: String::new(),
        cpu_secs: 0.0,
        wall_secs: 0.0,
        cases: None,
        audit: None,
    }
}

/// What tests in a process of their own say of a candidate that passed beside them.
pub(crate) fn judge_apart(reply: &ApartReply, token: &str, limits: &Limits) -> Audit {
    let (outcome, message) = outcome(reply, token, limits);
    Audit {
        outcome,
        message: message.chars().take(MESSAGE_CHARS).collect(),
        flags: Vec::new(),
    }
}

fn outcome(reply: &ApartReply, token: &str, limits: &Limits) -> (AuditOutcome, String) {
    if reply.timed_out {
        let message = format!("no result after {} s of wall time", limits.wall_secs);
        return (AuditOutcome::NotRun, message);
    }
    if libc::WIFSIGNALED(reply.status) {
        let signal = libc::WTERMSIG(reply.status);
        let (_, message) = of_signal(signal, reply.cpu_secs, limits);
        return (AuditOutcome::Refuted, format!("its tests: {message}"));
    }
    let ended_well = libc::WEXITSTATUS(reply.status) == 0;
    match report_of(&reply.report, token).filter(|_| ended_well) {
        Some(("passed", _)) => (AuditOutcome::Confirmed, String::new()),
        Some(("opaque", message)) => (AuditOutcome::NotByValue, message.to_owned()),
        Some(("setup", message)) => (AuditOutcome::NotRun, message.to_owned()),
        Some(("gone", message)) => (AuditOutcome::Refuted, of_gone(reply, message, limits)),
        Some((_, message)) => (AuditOutcome::Refuted, message.to_owned()),
        None => (
            AuditOutcome::NotRun,
            "its tests ended without a word".to_owned(),
        ),
    }
}

/// Why the candidate's process was gone when the tests asked.
fn of_gone(reply: &ApartReply, message: &str, limits: &Limits) -> String {
    let status = reply.candidate_status;
    // The server kills one that is still there.
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) != libc::SIGKILL {
        let (_, why) = of_signal(libc::WTERMSIG(status), reply.cpu_secs, limits);
        return format!("{message}: {why}");
    }
    message.to_owned()
}

fn classify(reply: &Reply, token: &str, limits: &Limits) -> (ErrorClass, String) {
    if reply.timed_out {
        let message = format!(
            "no result after {} s of wall time, {:.2} s of CPU time used",
            limits.wall_secs, reply.cpu_secs
        );
        return (ErrorClass::WallTimeout, message);
    }
    if libc::WIFSIGNALED(reply.status) {
        return of_signal(libc::WTERMSIG(reply.status), reply.cpu_secs, limits);
    }
    let code = libc::WEXITSTATUS(reply.status);
    match report_of(&reply.report, token) {
        Some((kind, message)) if code == 0 => of_report(kind, message),
        _ => (
            ErrorClass::EarlyExit,
            format!("ended with exit status {code} before its tests did"),
        ),
    }
}

/// Kind and message of a report that carries the token.
fn report_of<'a>(report: &'a str, token: &str) -> Option<(&'a str, &'a str)> {
    let (head, message) = report.split_once('\n')?;
    let (found, kind) = head.split_once(' ')?;
    (found == token).then_some((kind, message))
}

fn of_report(kind: &str, message: &str) -> (ErrorClass, String) {
    let class = match kind {
        "passed" => ErrorClass::Passed,
        "syntax" => ErrorClass::Syntax,
        "assert" => ErrorClass::WrongAnswer,
        "memory" => ErrorClass::Memory,
        "exit" => ErrorClass::EarlyExit,
        "setup" => ErrorClass::Infrastructure,
        _ => ErrorClass::Runtime,
    };
    (class, message.to_owned())
}

fn of_signal(signal: i32, cpu_secs: f64, limits: &Limits) -> (ErrorClass, String) {
    let cpu_used_up = cpu_secs + CPU_SLACK_SECS >= limits.cpu_secs as f64;
    match signal {
        libc::SIGXCPU => (ErrorClass::CpuTimeout, cpu_message(limits)),
        libc::SIGKILL if cpu_used_up => (ErrorClass::CpuTimeout, cpu_message(limits)),
        libc::SIGXFSZ => (
            ErrorClass::OutputLimit,
            format!("more than {} bytes of output", limits.output_bytes),
        ),
        libc::SIGSEGV => (
            ErrorClass::Killed,
            "killed by a segmentation fault".to_owned(),
        ),
        _ => (ErrorClass::Killed, format!("killed by signal {signal}")),
    }
}

fn cpu_message(limits: &Limits) -> String {
    format!("used up its {} s of CPU time", limits.cpu_secs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "0123abcd";

    fn reply(status: i32, report: &str) -> Reply {
        Reply {
            status,
            timed_out: false,
            cpu_secs: 0.01,
            wall_secs: 0.02,
            report: report.to_owned(),
            stderr: String::new(),
            stdout: String::new(),
        }
    }

    fn class(reply: &Reply) -> ErrorClass {
        judge(reply, TOKEN, &Limits::default()).class
    }

    #[test]
    fn a_pass_needs_status_zero_and_the_token() {
        assert_eq!(class(&reply(0, "0123abcd passed\n")), ErrorClass::Passed);
        assert_eq!(class(&reply(0, "")), ErrorClass::EarlyExit);
        assert_eq!(class(&reply(0, "passed\n")), ErrorClass::EarlyExit);
        assert_eq!(class(&reply(0, "ffffffff passed\n")), ErrorClass::EarlyExit);
        assert_eq!(
            class(&reply(1 << 8, "0123abcd passed\n")),
            ErrorClass::EarlyExit
        );
        assert_eq!(
            class(&reply(libc::SIGSEGV, "0123abcd passed\n")),
            ErrorClass::Killed
        );
    }

    #[test]
    fn reports_name_the_class() {
        for (kind, expected) in [
            ("syntax", ErrorClass::Syntax),
            ("assert", ErrorClass::WrongAnswer),
            ("memory", ErrorClass::Memory),
            ("exit", ErrorClass::EarlyExit),
            ("error", ErrorClass::Runtime),
            ("setup", ErrorClass::Infrastructure),
        ] {
            assert_eq!(class(&reply(0, &format!("{TOKEN} {kind}\nx"))), expected);
        }
    }

    #[test]
    fn an_audit_tells_what_the_tests_said() {
        let apart = |status, candidate_status, report: &str| ApartReply {
            status,
            candidate_status,
            timed_out: false,
            cpu_secs: 0.01,
            wall_secs: 0.02,
            report: report.to_owned(),
        };
        let outcome = |reply: &ApartReply| judge_apart(reply, TOKEN, &Limits::default()).outcome;
        let said = |kind: &str| outcome(&apart(0, libc::SIGKILL, &format!("{TOKEN} {kind}\nx")));
        assert_eq!(said("passed"), AuditOutcome::Confirmed);
        assert_eq!(said("assert"), AuditOutcome::Refuted);
        assert_eq!(said("error"), AuditOutcome::Refuted);
        assert_eq!(said("opaque"), AuditOutcome::NotByValue);
        assert_eq!(said("setup"), AuditOutcome::NotRun);
        assert_eq!(outcome(&apart(0, 0, "passed\n")), AuditOutcome::NotRun);
        let failed = apart(1 << 8, 0, "0123abcd passed\n");
        assert_eq!(outcome(&failed), AuditOutcome::NotRun);
        let timed_out = ApartReply {
            timed_out: true,
            ..apart(libc::SIGKILL, 0, "0123abcd passed\n")
        };
        assert_eq!(outcome(&timed_out), AuditOutcome::NotRun);
        let gone = apart(0, libc::SIGXCPU, "0123abcd gone\nno answer");
        let audit = judge_apart(&gone, TOKEN, &Limits::default());
        assert_eq!(audit.outcome, AuditOutcome::Refuted);
        assert_eq!(audit.message, "no answer: used up its 3 s of CPU time");
    }

    #[test]
    fn a_kill_after_the_cpu_limit_is_a_cpu_timeout() {
        let mut killed = reply(libc::SIGKILL, "");
        assert_eq!(class(&killed), ErrorClass::Killed);
        killed.cpu_secs = 4.0;
        assert_eq!(class(&killed), ErrorClass::CpuTimeout);
        assert_eq!(class(&reply(libc::SIGXCPU, "")), ErrorClass::CpuTimeout);
    }

    proptest! {
        #[test]
        fn nothing_without_the_token_passes(status in any::<i32>(), report in "\\PC*\n?\\PC*") {
            prop_assume!(!report.contains(TOKEN));
            prop_assert!(!judge(&reply(status, &report), TOKEN, &Limits::default()).passed);
        }
    }
}

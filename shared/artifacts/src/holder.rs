//! Which process holds a claim, and whether it is known to be gone.

use std::fs;

use serde::{Deserialize, Serialize};

/// The process behind a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// A label for people.
    pub(crate) host: String,
    /// Identity of the process, where the system tells it.
    process: Option<Process>,
}

/// A process, unlike any other that was or will be on any machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    /// Changes with every boot.
    boot_id: String,
    /// Containers on one machine count their processes apart.
    pid_namespace: String,
    pid: u32,
    /// Process ids are used again; start times are not.
    started_ticks: u64,
}

impl Holder {
    /// This process.
    pub(crate) fn this_process(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            process: Process::read(std::process::id()),
        }
    }

    /// Whether the process ran here and has ended. False when that cannot be known.
    pub(crate) fn is_gone(&self) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        let Some(here) = Process::read(std::process::id()) else {
            return false;
        };
        let is_local =
            (&here.boot_id, &here.pid_namespace) == (&process.boot_id, &process.pid_namespace);
        is_local && Process::read(process.pid).as_ref() != Some(process)
    }
}

impl Process {
    /// Reads a process from `/proc`; none when it does not exist or is a zombie.
    fn read(pid: u32) -> Option<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold blanks and brackets; the fields after it do not.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first()?, &"Z" | &"X") {
            return None;
        }
        Some(Self {
            boot_id: boot_id.trim().to_owned(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            started_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_running_process_is_not_gone() {
        assert!(!Holder::this_process("here").is_gone());
    }

    #[test]
    fn an_ended_process_and_a_reused_id_are_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let holder = Holder {
            host: "here".to_owned(),
            process: Process::read(child.id()),
        };
        assert!(holder.process.is_some() && !holder.is_gone());
        let mut earlier = holder.clone();
        earlier.process.as_mut().unwrap().started_ticks -= 1;
        assert!(earlier.is_gone());
        child.kill().unwrap();
        // The signal takes a moment. Nobody has waited for the process yet, so it stays a zombie.
        let mut looks = 0;
        while !holder.is_gone() {
            looks += 1;
            assert!(looks < 1_000, "a zombie holds nothing");
            sleep(Duration::from_millis(10));
        }
        child.wait().unwrap();
        assert!(holder.is_gone());
    }

    #[test]
    fn a_process_of_another_machine_is_never_known_to_be_gone() {
        let mut holder = Holder::this_process("there");
        let process = holder.process.as_mut().unwrap();
        process.boot_id = "another".to_owned();
        process.started_ticks += 1;
        assert!(!holder.is_gone());
    }
}

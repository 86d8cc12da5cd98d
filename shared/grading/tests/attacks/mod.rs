//! The hostile programs of `programs.py`, and the traps that tell whether one reached something.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

const PROGRAMS: &str = include_str!("programs.py");

/// A system call by number, for what Python has no function for.
const CALL: &str = r"
def call(number, *arguments):
    import ctypes
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), 'refused')
    return result
";

/// One hostile program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attack {
    /// What it tries.
    pub(crate) name: &'static str,
    /// The layer that alone stops it, or `waits`; empty where several do.
    pub(crate) mark: &'static str,
    /// Its text, without what [`Traps::program`] puts in front.
    pub(crate) source: String,
}

/// Every program that makes sense on this machine.
pub(crate) fn all() -> Vec<Attack> {
    let mut attacks: Vec<Attack> = Vec::new();
    for line in PROGRAMS.lines() {
        if let Some(title) = line.strip_prefix("#: ") {
            let (name, mark) = title
                .strip_suffix(']')
                .and_then(|title| title.split_once(" ["))
                .unwrap_or((title, ""));
            attacks.push(Attack {
                name,
                mark,
                source: String::new(),
            });
        } else if let Some(attack) = attacks.last_mut() {
            attack.source.push_str(line);
            attack.source.push('\n');
        }
    }
    let numbers_hold = cfg!(target_arch = "x86_64");
    attacks.retain(|attack| numbers_hold || !attack.source.contains("call("));
    attacks
}

/// What a program that gets out would touch.
#[derive(Debug)]
pub(crate) struct Traps {
    folder: tempfile::TempDir,
    tcp: TcpListener,
    udp: UdpSocket,
    unix: UnixListener,
}

impl Traps {
    pub(crate) fn set() -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(folder.path(), 0o777);
        for (name, rights) in [("canary", 0o666), ("secret", 0o644), ("private", 0o600)] {
            let path = folder.path().join(name);
            fs::write(&path, "secret").unwrap();
            mode(&path, rights);
        }
        let unix = UnixListener::bind(folder.path().join("unix")).unwrap();
        mode(&folder.path().join("unix"), 0o777);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        unix.set_nonblocking(true).unwrap();
        Self {
            folder,
            tcp,
            udp,
            unix,
        }
    }

    /// The path of one of the traps: `canary`, `secret`, `private` or `unix`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The whole text of an attack. `salt` makes it unlike the same attack with another.
    pub(crate) fn program(&self, attack: &Attack, salt: usize) -> String {
        let mut source = format!("# {}, {salt}\n", attack.name);
        for (name, file) in [
            ("FOLDER", ""),
            ("CANARY", "canary"),
            ("SECRET", "secret"),
            ("PRIVATE", "private"),
            ("UNIX", "unix"),
        ] {
            let path = self.path(file);
            let text = path.to_str().unwrap().trim_end_matches('/');
            let _ = writeln!(source, "{name} = {text:?}");
        }
        let (tcp, udp) = (self.tcp.local_addr(), self.udp.local_addr());
        let (tcp, udp) = (tcp.unwrap().port(), udp.unwrap().port());
        let grader = std::process::id();
        let _ = writeln!(source, "GRADER, TCP, UDP = {grader}, {tcp}, {udp}");
        source + CALL + &attack.source
    }

    /// Whether nobody touched anything.
    pub(crate) fn assert_untouched(&self) {
        let quiet = |kind: ErrorKind| kind == ErrorKind::WouldBlock;
        assert!(
            self.tcp.accept().is_err_and(|error| quiet(error.kind())),
            "TCP"
        );
        assert!(
            self.unix.accept().is_err_and(|error| quiet(error.kind())),
            "unix socket"
        );
        let heard = self.udp.recv(&mut [0; 1]);
        assert!(heard.is_err_and(|error| quiet(error.kind())), "UDP");
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["canary", "private", "secret", "unix"]);
        for name in ["canary", "private", "secret"] {
            let text = fs::read_to_string(self.path(name)).unwrap();
            assert_eq!(text, "secret", "{name}");
        }
        let rights = fs::metadata(self.path("canary")).unwrap();
        assert_eq!(rights.permissions().mode() & 0o777, 0o666);
    }
}

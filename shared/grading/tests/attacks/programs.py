# Hostile programs, one behind each line "#: name". Each is written so that it passes if its attack works. A layer in
# brackets is the one that alone stops it: without that layer it must pass, so these do no harm where they are let through.
#
# `waits`: without CPU time, so the wall limit ends it.
#
# Given to every program: FOLDER (anybody may write there), CANARY (a file in it that anybody may read and write),
# SECRET (one that anybody may read), PRIVATE (one for its owner), GRADER (a process id), TCP, UDP (ports) and UNIX (a
# path) with somebody listening, and `call(number, ...)`, a system call by its number on x86-64 that fails as an OSError.

#: endless loop [limits]
import time
while time.process_time() < 1.3: pass
#: loop that swallows everything
while True:
    try:
        while True: pass
    except BaseException: pass
#: loop that ignores the CPU signal
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
#: loop in C
list(__import__("itertools").product(range(10**9), repeat=3))
#: a power that no signal handler interrupts
10 ** 10 ** 9
#: regular expression that backtracks
import re
re.match(r"(a+)+$", "a" * 64 + "b")
#: sleep [waits]
import time
time.sleep(3600)
#: waiting for a lock that nobody opens [waits]
import threading
threading.Semaphore(0).acquire()
#: reading from nobody [waits]
import os
read, write = os.pipe()
os.read(read, 1)
#: endless recursion
def f(): return f()
f()
#: endless recursion without a limit
import sys
sys.setrecursionlimit(10**9)
def f(x): return [f(x)]
f(0)
#: memory at once [limits]
assert len(bytearray(1200 << 20))
#: memory piece by piece
x = []
while True: x.append(bytes(1 << 26))
#: five thousand threads
import _thread
gate = _thread.allocate_lock()
gate.acquire()
for _ in range(5000): _thread.start_new_thread(gate.acquire, ())
#: memory mapped
import mmap
m = mmap.mmap(-1, 3 << 30)
m[0] = 1
#: a flood of output [limits]
import sys
for _ in range(12): sys.stdout.write("x" * (1 << 20))
sys.stdout.flush()
#: a flood of errors
import sys
while True: sys.stderr.write("x" * (1 << 20))
#: a flood past the ignored signal
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
n = 0
while n < 64 << 20: n += os.write(1, b"x" * (1 << 20))
#: a sparse file
import os
os.ftruncate(1, 1 << 40)
#: thousands of descriptors [limits]
import os
held = [os.dup(0) for _ in range(300)]
#: raising its own limits
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
#: raising another's limits
import resource
resource.prlimit(GRADER, resource.RLIMIT_NOFILE, (1, 1))
#: raising the soft CPU limit
import resource
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
while True: pass
#: fork [fork-filter]
import os
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
#: fork bomb
import os
while True: os.fork()
#: vfork by number
call(58)
#: clone by number
call(56, 0x11, 0, 0, 0, 0)
#: clone into a new user namespace
call(56, 0x10000011, 0, 0, 0, 0)
#: clone3
import ctypes
call(435, ctypes.byref((ctypes.c_uint64 * 11)()), 88)
#: fork by the number of the x32 interface
call(0x40000000 + 57)
#: forkpty
import os
if os.forkpty()[0] == 0: os._exit(0)
#: another program [fork-filter]
import subprocess, sys
assert subprocess.run([sys.executable, "-I", "-S", "-c", ""]).returncode == 0
#: a shell
import os
assert os.system("true") == 0
#: posix_spawn
import os
os.posix_spawn("/bin/true", ["true"], {})
#: exec
import os
os.execv("/bin/true", ["true"])
#: exec from memory
import os
fd = os.memfd_create("x")
os.execve(fd, ["x"], {})
#: multiprocessing
import multiprocessing
p = multiprocessing.Process(target=print)
p.start()
p.join()
assert p.exitcode == 0
#: a process pool
from concurrent.futures import ProcessPoolExecutor
assert list(ProcessPoolExecutor(1).map(abs, [-1])) == [1]
#: memory that no limit counts [fork-filter]
import os
os.memfd_create("x")
#: reading a secret that anybody may read [landlock]
assert open(SECRET).read() == "secret"
#: reading the secret through a link
import os
os.symlink(SECRET, FOLDER + "/link")
assert open(FOLDER + "/link").read()
#: reading the secret by a way round
assert open("/proc/self/root" + SECRET).read()
#: reading /etc/passwd [landlock]
assert open("/etc/passwd").read()
#: reading /etc/shadow
assert open("/etc/shadow").read()
#: listing / [landlock]
import os
assert os.listdir("/")
#: listing the processes [landlock]
import os
assert os.listdir("/proc")
#: listing home
import os
assert os.listdir("/root") or os.listdir("/home")
#: own environment by file
assert open("/proc/self/environ").read()
#: the grader's environment
assert open(f"/proc/{GRADER}/environ").read()
#: the server's environment
import os
assert open(f"/proc/{os.getppid()}/environ").read()
#: own memory by file
open("/proc/self/mem", "r+b")
#: the server's memory
import os
open(f"/proc/{os.getppid()}/mem", "r+b")
#: the server's descriptors
import os
assert os.listdir(f"/proc/{os.getppid()}/fd")
#: killing by memory pressure
open("/proc/self/oom_score_adj", "w").write("-1000")
#: inherited variables
import os
assert set(os.environ) - {"LANG", "LC_CTYPE", "PATH", "PYTHONHASHSEED", "TZ"}
#: inherited descriptors
import os
for fd in range(3, 256):
    try: kind = os.fstat(fd)
    except OSError: continue
    if fd != 199: break
else: raise SystemExit
#: a new file [landlock]
open(FOLDER + "/new", "w").close()
#: appending to the canary [landlock]
open(CANARY, "a").close()
#: writing into the canary
open(CANARY, "w").write("x")
#: truncating the canary
import os
os.truncate(CANARY, 0)
#: deleting the canary
import os
os.unlink(CANARY)
#: renaming the canary
import os
os.rename(CANARY, CANARY + "x")
#: another name for the canary
import os
os.link(CANARY, CANARY + "x")
#: a link
import os
os.symlink("/etc", FOLDER + "/etc")
#: a folder
import os
os.mkdir(FOLDER + "/folder")
#: removing the folder
import shutil
shutil.rmtree(FOLDER)
#: a pipe with a name
import os
os.mkfifo(FOLDER + "/pipe")
#: changing rights
import os
os.chmod(CANARY, 0)
#: changing the owner
import os
os.chown(CANARY, os.getuid(), os.getgid())
#: changing times
import os
os.utime(CANARY)
#: an attribute of the canary
import os
os.setxattr(CANARY, "user.x", b"x")
#: a nameless file in shared memory [landlock]
import os
os.open("/dev/shm", os.O_TMPFILE | os.O_WRONLY)
#: a named file in shared memory
from multiprocessing.shared_memory import SharedMemory
SharedMemory(create=True, size=1)
#: a temporary file
import tempfile
tempfile.TemporaryFile()
#: a file where it stands
open("wmtp-escape", "w")
#: a byte code cache
import importlib.util, json, os
open(importlib.util.cache_from_source(json.__file__), "ab")
#: TCP to the listener
import socket
socket.create_connection(("127.0.0.1", TCP)).send(b"x")
#: UDP to the listener [seccomp]
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", UDP))
#: the listener's path [seccomp]
import socket
socket.socket(socket.AF_UNIX).connect(UNIX)
#: an abstract socket
import socket
socket.socket(socket.AF_UNIX).bind("\0wmtp-escape")
#: a pair of sockets [seccomp]
import socket
socket.socketpair()
#: a socket by number
call(41, 2, 1, 0)
#: raw packets
import socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
#: listening
import socket
socket.socket().listen()
#: talking to the kernel
import socket
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
#: an event loop of sockets
import asyncio
asyncio.run(asyncio.sleep(0))
#: killing the server
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
#: asking for the server by signal
import os
os.kill(os.getppid(), 0)
#: killing the grader
import os, signal
os.kill(GRADER, signal.SIGKILL)
#: killing everybody
import os, signal
os.kill(-1, signal.SIGKILL)
#: killing the group
import os, signal
os.killpg(0, signal.SIGKILL)
#: a descriptor of the server
import os
os.pidfd_open(os.getppid())
#: signals by ownership of a descriptor
import fcntl, os
fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())
#: signals by time
call(222, 0, 0, 0)
#: leaving the session
import os
os.setpgid(0, 0)
os.setsid()
#: outliving the server [fork-filter]
call(157, 1, 0, 0, 0, 0)
#: tracing the server
import os
call(101, 16, os.getppid(), 0, 0)
#: letting itself be traced
call(101, 0, 0, 0, 0)
#: reading the server's memory
import ctypes, os
buffer = ctypes.create_string_buffer(8)
piece = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
assert call(310, os.getppid(), piece, 1, piece, 1, 0)
#: taking the server's descriptor
import os
call(438, os.pidfd_open(os.getppid()), 0, 0)
#: another root
import os
os.chroot("/")
#: a mount
call(165, 0, b"/mnt", b"tmpfs", 0, 0)
#: new namespaces
call(272, 0x10000000)
#: another's namespace
call(308, 0, 0x10000000)
#: becoming root
import os
os.setuid(0)
#: being root [user]
import os
assert os.getuid() == 0 or os.geteuid() == 0
#: an owner's file under a readable folder [user]
assert open(PRIVATE).read()
#: another personality
call(135, 0x0040000)
#: bpf
call(321, 5, 0, 0)
#: io_uring
import ctypes
call(425, 8, (ctypes.c_uint32 * 30)())
#: userfaultfd
call(323, 1)
#: perf
import ctypes
call(298, (ctypes.c_uint64 * 16)(1, 112), 0, -1, -1, 0)
#: a key in the kernel
call(248, b"user", b"x", b"x", 1, -3)
#: shared memory of old [seccomp]
identity = call(29, 0, 4096, 0o1600)
call(31, identity, 0, 0)
#: a message queue
call(240, b"wmtp-escape", 0o102, 0o600, 0)
#: the kernel's log
call(103, 3, 0, 0)
#: a kernel module
call(175, 0, 0, b"")
#: the clock
import time
time.clock_settime(time.CLOCK_REALTIME, 0)
#: the host's name
import socket
socket.sethostname("x")
#: priority
import os
os.nice(-1)
#: other cores
import os
os.sched_setaffinity(0, {0})
#: reboot
call(169, 0xfee1dead, 672274793, 0x89abcdef, 0)
#: leaving with success
import sys
sys.exit(0)
#: leaving at once
import os
os._exit(0)
#: leaving from within the function
def f(): __import__("os")._exit(0)
f()
#: leaving by an exception
raise SystemExit(0)
#: leaving by number
call(231, 0)
#: saying passed
import sys
print("passed")
sys.stdout.flush()
assert False
#: writing passed everywhere
import os
for fd in range(256):
    try: os.write(fd, b"x passed\n")
    except OSError: pass
os._exit(0)
#: closing everything
import os
os.closerange(0, 256)
assert False
#: another AssertionError
import builtins
builtins.AssertionError = type("AssertionError", (Warning,), {})
assert False
#: silence for exceptions
import sys
sys.excepthook = lambda *a: None
1 / 0
#: leaving at exit
import atexit, os
atexit.register(os._exit, 0)
1 / 0
#: a trace that swallows
import sys
sys.settrace(lambda *a: None)
assert False
#: another os.write
import os
os.write = lambda *a: 1
os._exit = lambda code: None
assert False
#: another exec
import builtins
builtins.exec = builtins.compile = lambda *a, **k: None
assert False
#: a broken exception
class Sly(Exception):
    def __str__(self): __import__("os")._exit(0)
raise Sly
#: an exception that calls itself none
class Sly(BaseException):
    __class__ = property(lambda self: type(None))
raise Sly
#: a null pointer
import ctypes
ctypes.string_at(0)
#: source too deep for the parser
eval("(" * 100000 + ")" * 100000)

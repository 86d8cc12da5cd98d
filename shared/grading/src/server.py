"""Warm fork server: grades one program per fork.

Runs confined (Landlock, base system call filter, spare user). Frames on descriptor 0: 4 bytes of length,
little endian, then JSON. First frame in: the filter for forks. Then one request, one reply, until the
other side hangs up. A fork trusts nothing that the program can change: what it needs after the program
has run is held in locals, and a verdict counts only together with the request's token.
"""
import sys

sys.path[:] = [entry for entry in sys.path if entry]

import _sitebuiltins
import atexit
import builtins
import ctypes
import gc
import importlib
import json
import linecache
import os
import random
import resource
import select
import signal
import struct
import threading
import time
import traceback
import types

# The usual imports of generated programs, loaded once so that a fork finds them ready.
import abc, array, bisect, cmath, collections, collections.abc, contextlib, copy, dataclasses, datetime
import decimal, enum, fractions, functools, hashlib, heapq, inspect, io, itertools, math, numbers, operator
import pprint, queue, re, statistics, string, textwrap, typing, unicodedata

NAME = "program.py"
CALLS_FD, REPLIES_FD, REPORT_FD = 197, 198, 199
MAX_FD = 256
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
SECCOMP_MODE_FILTER = 2
MESSAGE_CHARS = 300
STDERR_BYTES = 8000
STDERR_CHARS = 2000
NOT_RUN = 120
MAX_ANSWER_BYTES = 64 << 20
NO_ANSWER = "the candidate's process answered what is no answer"
TAGGED, MAKERS = tagged(), makers()


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def receive(fd, size):
    chunks = []
    while size:
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def receive_frame(fd):
    return json.loads(receive(fd, struct.unpack("<I", receive(fd, 4))[0]))


def send_frame(fd, value):
    data = json.dumps(value).encode()
    write_all(fd, struct.pack("<I", len(data)) + data)


def write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data):]


def make_fork():
    """Returns the C library's `fork`. `os.fork` also makes interpreter locks anew, in case another thread held one, and
    runs hooks that do the same for Python's. This process has one thread, which holds none: for it they only touch
    memory, more than all else that a fork does before its program runs."""
    fork = ctypes.PyDLL(None, use_errno=True).fork
    get_errno = ctypes.get_errno

    def call():
        pid = fork()
        if pid < 0:
            number = get_errno()
            raise OSError(number, os.strerror(number))
        return pid

    return call


def make_system():
    """Returns a function `prctl(option, argument)` that raises on failure."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    get_errno = ctypes.get_errno

    def call(option, *arguments):
        padded = (list(arguments) + [0, 0, 0, 0])[:4]
        if prctl(option, *padded) != 0:
            number = get_errno()
            raise OSError(number, os.strerror(number))

    return call


def wait_for(control, pid, wall_secs):
    """Waits for a fork; kills it at the wall limit or when the other side has gone. True: killed."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(control, select.POLLRDHUP)
        ready = poll.poll(wall_secs * 1000)
        if any(fd == pidfd for fd, _ in ready):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    finally:
        os.close(pidfd)


def tail(fd, size):
    end = os.lseek(fd, 0, os.SEEK_END)
    return os.pread(fd, size, max(0, end - size)).decode("utf-8", "replace")


def serve(control, request, fork, system, fork_filter):
    out, err, report = fds = [os.memfd_create(name) for name in ("out", "err", "report")]
    try:
        if request["stdin"] is not None:
            # Not a pipe: programs ask for its size, and read all of it at once.
            fds.append(os.memfd_create("in"))
            write_all(fds[3], request["stdin"].encode())
            os.lseek(fds[3], 0, os.SEEK_SET)
        started = time.monotonic()
        pid = fork()
        if pid == 0:
            try:
                run(request, fds, system, fork_filter)
            finally:
                os._exit(NOT_RUN)
        timed_out = wait_for(control, pid, request["wall_secs"])
        _, status, usage = os.wait4(pid, 0)
        return {
            "status": status,
            "timed_out": timed_out,
            "cpu_secs": usage.ru_utime + usage.ru_stime,
            "wall_secs": time.monotonic() - started,
            "report": os.pread(report, 4096, 0).decode("utf-8", "replace"),
            "stderr": tail(err, STDERR_BYTES)[-STDERR_CHARS:],
            "stdout": os.pread(out, request["keep_stdout"], 0).decode("utf-8", "replace"),
        }
    finally:
        for fd in fds:
            os.close(fd)


def dress():
    """Makes this process look like a fresh interpreter that runs a file, so that its forks do. What a fork need not do
    itself it does not pay for."""
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        null = os.open("/dev/null", flags)
        os.dup2(null, fd)
        os.close(null)
    sys.stdin = sys.__stdin__ = open(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    sys.argv[:] = [NAME]
    sys.orig_argv[:] = ["python3", NAME]
    # The same for every fork: an unseeded program gets the same verdict every time.
    random.seed(0)
    # Python ignores this signal; by default it ends a program that floods its output.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def tie_to_parent(system):
    """Ends with the server."""
    server = os.getppid()
    system(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(NOT_RUN)


def confine(source, limits, streams, system, fork_filter):
    """Holds a fork in: its streams (descriptor to the one it becomes), its limits, its filter."""
    for fd, target in streams.items():
        os.dup2(fd, target)
    first = 3
    for target in sorted(streams.values()):
        if target >= first:
            os.closerange(first, target)
            first = target + 1
    os.closerange(first, MAX_FD)
    tie_to_parent(system)

    linecache.cache[NAME] = (len(source), None, source.splitlines(True), NAME)
    for limit, soft, hard in (
        (resource.RLIMIT_FSIZE, limits["output_bytes"], limits["output_bytes"]),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_secs"], limits["cpu_secs"] + 1),
    ):
        resource.setrlimit(limit, (soft, hard))
    system(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fork_filter)


def describe(error, source):
    """Exception type and text; for a bare assertion the line that failed."""
    name = type(error).__name__
    try:
        text = str(error)
        if not text and isinstance(error, AssertionError):
            line = None
            trace = error.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == NAME:
                    line = trace.tb_lineno
                trace = trace.tb_next
            if line is not None:
                text = source.split("\n")[line - 1].strip()
    except BaseException:
        text = "(no text)"
    return f"{name}: {text}"[:MESSAGE_CHARS] if text else name


def print_trace(error):
    try:
        trace = error.__traceback__
        trace = trace.tb_next if trace is not None else None
        lines = traceback.format_exception(type(error), error, trace, limit=-8)
        os.write(2, "".join(lines).encode("utf-8", "backslashreplace"))
    except BaseException:
        pass


def new_main():
    """Puts a fresh `__main__` in place. Returns its namespace."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=NAME)
    return main.__dict__


def wind_up():
    """What `python3 program.py` does at its end, in its order: threads, exit handlers, streams, the module itself. Programs
    that print fast keep their output in buffers of their own and write it in the last two. The caller must not hold the
    module's namespace."""
    threading._shutdown()
    atexit._run_exitfuncs()
    flush(sys.stdout)
    flush(sys.__stdout__)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.modules.pop("__main__", None)
    gc.collect()
    flush(sys.__stdout__)


def flush(stream):
    # The program may have closed it, or put something else in its place.
    try:
        stream.flush()
    except Exception:
        pass


def run(request, fds, system, fork_filter):
    write, leave, join = os.write, os._exit, b"%s %s\n%s"
    token = request["token"].encode()
    source = request["source"]

    def finish(kind, message=b""):
        write(REPORT_FD, join % (token, kind, message))
        leave(0)

    failures = (
        (MemoryError, b"memory"),
        (SystemExit, b"exit"),
        (AssertionError, b"assert"),
        (BaseException, b"error"),
    )
    everything, of_kind, memory, leaving = BaseException, isinstance, MemoryError, SystemExit
    judged_by_output = request["stdin"] is not None
    passed = join % (token, b"passed", b"")
    out_of_memory = join % (token, b"memory", b"MemoryError")

    try:
        confine(source, request, dict(zip(fds, (1, 2, REPORT_FD, 0))), system, fork_filter)
        namespace = new_main()
    except BaseException as error:
        finish(b"setup", describe(error, source).encode("utf-8", "replace"))

    try:
        code = compile(source, NAME, "exec", dont_inherit=True)
    except MemoryError:
        finish(b"memory", b"MemoryError while compiling")
    except BaseException as error:
        print_trace(error)
        finish(b"syntax", describe(error, source).encode("utf-8", "replace"))

    try:
        try:
            exec(code, namespace)
        except leaving as error:
            if not judged_by_output or error.code not in (None, 0):
                raise
        if judged_by_output:
            del namespace
            wind_up()
    except everything as error:
        if of_kind(error, memory):
            write(REPORT_FD, out_of_memory)
            leave(0)
        for kind_of_error, kind in failures:
            if of_kind(error, kind_of_error):
                print_trace(error)
                finish(kind, describe(error, source).encode("utf-8", "replace"))
    write(REPORT_FD, passed)
    leave(0)


def main():
    control = os.dup(0)
    code = bytes.fromhex(receive_frame(control)["fork_filter"])
    program = FilterProgram(len(code) // 8, code)
    fork, system = make_fork(), make_system()
    # Nobody of the same user may look into this process.
    system(PR_SET_DUMPABLE, 0)

    # `-S` leaves these out.
    eof = "Ctrl-D (i.e. EOF)"
    builtins.exit = _sitebuiltins.Quitter("exit", eof)
    builtins.quit = _sitebuiltins.Quitter("quit", eof)
    builtins.help = _sitebuiltins._Helper()
    # The stack limit is large for deep recursion; threads would each reserve that much.
    threading.stack_size(16 << 20)
    fork_filter = ctypes.addressof(program)
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]
    dress()
    gc.collect()
    gc.freeze()

    send_frame(control, {"ready": True})
    keep = (program, code)
    while keep:
        try:
            request = receive_frame(control)
            grade = serve_apart if "candidate" in request else serve
            send_frame(control, grade(control, request, fork, system, fork_filter))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


if __name__ == "__main__":
    # Held here: the fork's `__main__` takes this module's place.
    server_module = sys.modules["__main__"]
    main()
    os._exit(0)

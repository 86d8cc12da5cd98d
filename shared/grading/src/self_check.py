# Tries the usual ways out of the sandbox; leaves nothing behind where one is open.
import os
import socket

reached = []


def attempt(name, action):
    try:
        action()
    except BaseException:
        return
    reached.append(name)


def fork():
    if os.fork() == 0:
        os._exit(0)


attempt("fork", fork)
attempt("write", lambda: os.open("/tmp", os.O_TMPFILE | os.O_WRONLY))
attempt("read /etc/passwd", lambda: open("/etc/passwd").read())
attempt("list /", lambda: os.listdir("/"))
attempt("parent's environment", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read())
attempt("socket", lambda: socket.socket())
attempt("signal", lambda: os.kill(os.getppid(), 0))
if set(os.environ) - {"LANG", "LC_CTYPE", "PATH", "PYTHONHASHSEED", "TZ"}:
    reached.append("environment")
assert not reached, ", ".join(reached)

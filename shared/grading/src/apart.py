# Candidate and tests in processes of their own. Goes in front of server.py, whose names it uses.
#
# The tests call the candidate's functions by name; arguments and results cross two pipes as plain data. A tagged form of JSON
# holds them: None, booleans, numbers and texts as they are, everything else as [tag, content]. Only the reading side counts
# for the verdict, and it makes nothing but values of Python's own types.
def tagged():
    """How each type that crosses is taken apart, most special first; a type's subclasses cross as the type itself."""
    listed = lambda values: [pack(value) for value in values]
    pairs = lambda items: [[pack(key), pack(value)] for key, value in items]
    iterators = (map, filter, zip, enumerate, reversed, types.GeneratorType, itertools.chain)
    iterators += tuple(type(iter(empty)) for empty in ([], (), {}, set(), "", range(0), {}.values(), {}.items()))
    return (
        (collections.Counter, "Counter", lambda value: pairs(dict.items(value))),
        (collections.OrderedDict, "OrderedDict", lambda value: pairs(dict.items(value))),
        (dict, "dict", lambda value: pairs(dict.items(value))),
        (list, "list", lambda value: listed(list.__iter__(value))),
        (tuple, "tuple", lambda value: listed(tuple.__iter__(value))),
        (set, "set", lambda value: listed(set.__iter__(value))),
        (frozenset, "frozenset", lambda value: listed(frozenset.__iter__(value))),
        (bytes, "bytes", lambda value: bytes.hex(value)),
        (bytearray, "bytearray", lambda value: bytearray.hex(value)),
        (complex, "complex", lambda value: [value.real, value.imag]),
        (range, "range", lambda value: [hex(value.start), hex(value.stop), hex(value.step)]),
        (collections.deque, "deque", lambda value: [listed(value), value.maxlen]),
        (array.array, "array", lambda value: [value.typecode, listed(value)]),
        (type({}.keys()), "keys", listed),
        (type({}.values()), "values", listed),
        (type({}.items()), "items", lambda value: pairs(value)),
        (iterators, "iterator", listed),
        (decimal.Decimal, "Decimal", str),
        (fractions.Fraction, "Fraction", lambda value: [hex(value.numerator), hex(value.denominator)]),
        (datetime.datetime, "datetime", lambda value: datetime.datetime.isoformat(value)),
        (datetime.date, "date", lambda value: datetime.date.isoformat(value)),
        (datetime.time, "time", lambda value: datetime.time.isoformat(value)),
        (datetime.timedelta, "timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    )


def pack(value):
    """A value as JSON holds it. TypeError: it is no plain data."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        value = int.__int__(value)
        return value if -(1 << 63) < value < 1 << 63 else ["int", hex(value)]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    for kind, tag, take in TAGGED:
        if isinstance(value, kind):
            return [tag, take(value)]
    raise TypeError(type(value).__name__)


def makers():
    """How what [`tagged`] took apart is put together again."""
    listed = lambda values: [unpack(value) for value in values]
    pairs = lambda items: [(unpack(key), unpack(value)) for key, value in items]
    whole = lambda text: int(text, 16)
    return {
        "Counter": lambda content: collections.Counter(dict(pairs(content))),
        "OrderedDict": lambda content: collections.OrderedDict(pairs(content)),
        "dict": lambda content: dict(pairs(content)),
        "list": listed,
        "tuple": lambda content: tuple(listed(content)),
        "set": lambda content: set(listed(content)),
        "frozenset": lambda content: frozenset(listed(content)),
        "bytes": bytes.fromhex,
        "bytearray": bytearray.fromhex,
        "complex": lambda content: complex(*content),
        "range": lambda content: range(*map(whole, content)),
        "deque": lambda content: collections.deque(listed(content[0]), content[1]),
        "array": lambda content: array.array(content[0], listed(content[1])),
        "keys": lambda content: dict.fromkeys(listed(content)).keys(),
        "values": lambda content: dict(enumerate(listed(content))).values(),
        "items": lambda content: dict(pairs(content)).items(),
        "iterator": lambda content: iter(listed(content)),
        "Decimal": decimal.Decimal,
        "Fraction": lambda content: fractions.Fraction(*map(whole, content)),
        "datetime": datetime.datetime.fromisoformat,
        "date": datetime.date.fromisoformat,
        "time": datetime.time.fromisoformat,
        "timedelta": lambda content: datetime.timedelta(*content),
        "int": whole,
        "type": builtin_type,
    }


def builtin_type(name):
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise ValueError("no type")
    return found


def unpack(tree):
    """The value of a packed one. Any exception: it was none."""
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    tag, content = tree
    return MAKERS[tag](content)


class NotByValue(BaseException):
    """Something that the tests need cannot cross as plain data."""


class Opaque:
    """Stands for a result that cannot cross, such as a match of a pattern: tests that ask no more than whether it is true get
    their answer."""

    def __init__(self, name, truth):
        self.__dict__.update(name=name, truth=truth)

    def __bool__(self):
        return self.truth if isinstance(self.truth, bool) else self.refuse()

    def refuse(self, *_):
        raise NotByValue(f"the result is a {self.name}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __len__ = __iter__ = __contains__ = refuse
    __getitem__ = __getattr__ = __setattr__ = __call__ = __str__ = __repr__ = __format__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __int__ = __float__ = __index__ = refuse


class Gone(BaseException):
    """The candidate's process has ended, or answers what is no answer."""


def pack_or_refuse(value):
    try:
        return pack(value)
    except Exception as error:
        raise NotByValue(f"{type(value).__name__}: {error}") from None


def names_of(code):
    """Every name that a text uses, those of its functions too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_of(constant)
    return names


def answer(namespace, call):
    """What the candidate answers to one question of the tests."""
    if call[0] == "define":
        return [[name, *definition(namespace[name])] for name in call[1] if name in namespace]
    _, name, arguments, named = call
    try:
        result = namespace[name](*unpack(arguments), **unpack(named))
    except BaseException as error:
        for kind in type(error).__mro__:
            if getattr(builtins, kind.__name__, None) is kind:
                return ["raised", kind.__name__, describe_text(error)]
        return ["raised", "Exception", ""]
    try:
        return ["value", pack(result)]
    except Exception:
        pass
    try:
        return ["opaque", type(result).__name__, bool(result)]
    except BaseException:
        return ["opaque", type(result).__name__, None]


def describe_text(error):
    try:
        return str(error)[:MESSAGE_CHARS]
    except BaseException:
        return ""


def definition(value):
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if callable(value):
        return ["call"]
    try:
        return ["value", pack(value)]
    except Exception:
        return ["opaque", type(value).__name__]


def run_candidate(request, calls, replies, system, fork_filter):
    """Runs the candidate, then answers until nobody asks. It holds neither the tests nor the token, and no process that it
    was forked from did."""
    source = request["candidate"]
    confine(source, request, {calls: CALLS_FD, replies: REPLIES_FD}, system, fork_filter)
    namespace = new_main()
    try:
        exec(compile(source, NAME, "exec", dont_inherit=True), namespace)
        while True:
            send_frame(REPLIES_FD, answer(namespace, receive_frame(CALLS_FD)))
    except BaseException:
        os._exit(1)


def ask(call):
    """One question to the candidate's process; any answer of the wrong form ends the tests."""
    try:
        send_frame(CALLS_FD, call)
        size = struct.unpack("<I", receive(REPLIES_FD, 4))[0]
        if size > MAX_ANSWER_BYTES:
            raise ValueError("too long")
        return json.loads(receive(REPLIES_FD, size))
    except (EOFError, OSError):
        raise Gone("the candidate's process ended before its tests did") from None
    except (ValueError, RecursionError):
        raise Gone(NO_ANSWER) from None


def read_value(tree):
    try:
        return unpack(tree)
    except Exception:
        raise Gone("the candidate's process answered what is no value") from None


def remote(name):
    """A function that stands for one of the candidate's."""

    def call(*arguments, **named):
        reply = ask(["call", name, pack_or_refuse(arguments), pack_or_refuse(named)])
        if not isinstance(reply, list) or not reply:
            raise Gone(NO_ANSWER)
        tag, *content = reply
        if tag == "value" and len(content) == 1:
            return read_value(content[0])
        if tag == "opaque" and len(content) == 2:
            return Opaque(f"{str(content[0])!r}", content[1])
        if tag == "raised" and len(content) == 2:
            kind = getattr(builtins, str(content[0]), None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(str(content[1]))
            raise Gone(f"{name} raised {content[0]}")
        raise Gone(NO_ANSWER)

    return call


def remote_names(code):
    """What the candidate defines of the names that the tests use. A built-in name is the candidate's only where the tests use
    nothing else of it: MBPP has tasks that ask for a `sum`, and a candidate must not bring its own `abs` along."""
    asked = sorted(names_of(code))
    found = {}
    try:
        for name, kind, *content in ask(["define", asked]):
            if name not in asked:
                continue
            if kind == "module" and content[0] in sys.stdlib_module_names:
                found[name] = importlib.import_module(content[0])
            elif kind == "call":
                found[name] = remote(name)
            elif kind == "value":
                found[name] = read_value(content[0])
            else:
                raise NotByValue(f"{name} is no plain data")
    except (TypeError, ValueError, IndexError, ImportError):
        raise Gone(NO_ANSWER) from None
    own = {name: value for name, value in found.items() if not hasattr(builtins, name)}
    is_called = any(not isinstance(value, types.ModuleType) for value in own.values())
    return own if is_called else found


def run_judge(control, request, fds, system, fork_filter):
    """Reads the tests from the other side itself, so that no process but this one ever holds them; then runs them."""
    tie_to_parent(system)
    calls, replies, report = fds
    judge = receive_frame(control)
    source, token = judge["tests"], judge["token"].encode()

    def finish(kind, message=""):
        os.write(REPORT_FD, b"%s %s\n%s" % (token, kind, message.encode("utf-8", "replace")))
        os._exit(0)

    try:
        targets = {calls: CALLS_FD, replies: REPLIES_FD, report: REPORT_FD}
        confine(source, request, targets, system, fork_filter)
        namespace = new_main()
        code = compile(source, NAME, "exec", dont_inherit=True)
    except BaseException as error:
        finish(b"setup", describe(error, source))
    try:
        namespace.update(remote_names(code))
        exec(code, namespace)
    except NotByValue as error:
        finish(b"opaque", str(error)[:MESSAGE_CHARS])
    except Gone as error:
        finish(b"gone", str(error)[:MESSAGE_CHARS])
    except MemoryError:
        finish(b"memory", "MemoryError")
    except AssertionError as error:
        finish(b"assert", describe(error, source))
    except BaseException as error:
        finish(b"error", describe(error, source))
    finish(b"passed")


def serve_apart(control, request, fork, system, fork_filter):
    """Grades a candidate in two forks: one runs it, the other runs the tests."""
    report = os.memfd_create("report")
    calls, replies = os.pipe(), os.pipe()
    pipes = [*calls, *replies]
    running = {}
    started = time.monotonic()

    def start(run, *arguments):
        pid = fork()
        if pid == 0:
            try:
                run(*arguments, system, fork_filter)
            finally:
                os._exit(NOT_RUN)
        running[pid] = run
        return pid

    def reap(pid):
        # One that has ended, or is ending, keeps the status that it ended with.
        kill(pid)
        _, status, usage = os.wait4(pid, 0)
        del running[pid]
        return status, usage.ru_utime + usage.ru_stime

    try:
        candidate = start(run_candidate, request, calls[0], replies[1])
        judge = start(run_judge, control, request, (calls[1], replies[0], report))
        while pipes:
            os.close(pipes.pop())
        timed_out = wait_for(control, judge, request["wall_secs"])
        status, judge_secs = reap(judge)
        candidate_status, candidate_secs = reap(candidate)
        return {
            "status": status,
            "candidate_status": candidate_status,
            "timed_out": timed_out,
            "cpu_secs": judge_secs + candidate_secs,
            "wall_secs": time.monotonic() - started,
            "report": os.pread(report, 4096, 0).decode("utf-8", "replace"),
        }
    finally:
        for pid in list(running):
            reap(pid)
        for fd in (report, *pipes):
            os.close(fd)


def kill(pid):
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)



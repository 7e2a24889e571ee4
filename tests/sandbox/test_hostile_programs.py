"""Programs that try to do harm, each behind every combination of layers: none hurts its caller, none is left behind."""

import contextlib
import dataclasses
import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preftune.sandbox import Job, Limits, Sandboxes, available, folders

MODES = {
    "all": {},
    "no namespaces": {"namespaces": False},
    "limits only": {"namespaces": False, "landlock": False, "call_filter": False},
}
MARK = f"marker-{uuid.uuid4().hex}"
LIMITS = Limits(seconds=2, clock=2.5, memory=256, disk=2)
SHORT = Limits(seconds=1, clock=0.5)
"""For programs that never end."""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no sandbox on Windows")


def job(text, **fields):
    """`say(…)` in the text reports a line."""
    head = f"# {MARK}\nimport os\ndef say(*words): os.write(4, (' '.join(map(str, words)) + '\\n').encode())\n"
    return Job(head + textwrap.dedent(text), **fields)


def strays():
    """Processes of our programs that still exist."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


@pytest.fixture(scope="module", autouse=True)
def own_prefix():
    """Folders of this module alone, so that leftovers can be told from other tests' folders."""
    before = folders.PREFIX
    folders.PREFIX = f"preftune-sandbox-{uuid.uuid4().hex}-"
    yield
    left = leftovers()
    folders.PREFIX = before
    assert left == []


def leftovers(but=None):
    """Folders of supervisors, without that of a supervisor that still works."""
    places = {"/tmp", "/var/tmp", os.environ.get("TMPDIR", "/tmp")}
    found = [str(path) for place in places for path in Path(place).glob(folders.PREFIX + "*")]
    return [path for path in found if but is None or path != but.scratch]


def wait_until(done, seconds=20.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module", params=MODES)
def pool(request):
    layers = available(**MODES[request.param])
    with Sandboxes(layers, LIMITS, 1) as sandboxes:
        yield sandboxes


@pytest.fixture
def box(pool):
    """A sandbox that must be as good as new after the test, with nothing of the program left."""
    yield pool
    after = pool.run(job("print(sum(range(10)))"))
    assert (after.outcome, after.code, after.stdout) == ("exit", 0, b"45\n")
    assert strays() == []


def guarded(pool):
    """Signals and processes outside are out of reach (unless only limits can be had, and we are no root)."""
    return pool.layers.filter or pool.layers.namespaces is not None or pool.layers.user


def test_what_goes_in_and_comes_out(box):
    out = box.run(
        Job(
            "import os, sys\n"
            "os.write(4, os.read(3, 99)); sys.stderr.write('err'); print(sys.stdin.read().upper()); sys.exit(3)",
            message=b"in and out",
            stdin=b"text",
        )
    )
    assert (out.outcome, out.code, out.stdout, out.stderr, out.report) == ("exit", 3, b"TEXT\n", b"err", b"in and out")
    assert 0 < out.cpu < 2 and 0 < out.seconds < 5


def test_large_input_reaches_the_program_and_may_be_ignored(box):
    data = os.urandom(1 << 20)
    out = box.run(Job("import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))", stdin=data))
    assert out.stdout == f"{zlib.crc32(data)}\n".encode()
    assert box.run(Job("print(1)", message=data, stdin=data)).stdout == b"1\n"


def test_forking_is_refused(box):
    out = box.run(
        job("""
        made = 0
        for _ in range(20):
            try:
                pid = os.fork()
            except OSError:
                break
            if pid == 0:
                import time
                time.sleep(60)
            made += 1
        say(made)
        """)
    )
    assert (out.outcome, out.report) == ("exit", b"0\n")


def test_threads_run_where_they_can_be_told_from_processes(box):
    out = box.run(
        job("""
        import threading
        done = []
        try:
            for n in range(4):
                thread = threading.Thread(target=done.append, args=(n,))
                thread.start()
                thread.join()
        except RuntimeError:
            pass
        say(len(done))
        """)
    )
    assert out.report == (b"4\n" if box.layers.filter else b"0\n")


def test_fork_bomb_with_some_processes_allowed(pool):
    if not pool.layers.own_processes:
        pytest.skip("no further process is allowed where it would be one of ours")
    limits = dataclasses.replace(SHORT, processes=3)
    with Sandboxes(pool.layers, limits, 1) as sandboxes:
        out = sandboxes.run(
            job("""
            import time
            def bomb():
                while True:
                    try:
                        if os.fork():
                            say("fork")
                    except OSError:
                        time.sleep(0.02)
            bomb()
            """)
        )
        assert out.outcome == "time"
        assert out.report.count(b"fork") <= 3 + 16  # threads are counted with them
        assert strays() == []
        assert sandboxes.run(job("print(1)")).stdout == b"1\n"


def test_daemon_does_not_survive(pool):
    if not pool.layers.own_processes:
        pytest.skip("no further process is allowed where it would be one of ours")
    with Sandboxes(pool.layers, Limits(processes=4), 1) as sandboxes:
        out = sandboxes.run(
            job("""
            import time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for number in range(5):
                        os.close(number)
                    time.sleep(60)
                os._exit(0)
            os.wait()
            say("left")
            """)
        )
        assert (out.outcome, out.report) == ("exit", b"left\n")
        assert strays() == []


@pytest.mark.parametrize("stream", ["1", "2", "4"])
def test_endless_output_is_cut(box, stream):
    out = box.run(job(f"while True: os.write({stream}, b'x' * 65536)"))
    assert out.outcome == "output"
    assert len(out.stdout + out.stderr + out.report) == 1 << 20


def test_huge_file(box):
    out = box.run(
        job("""
        with open("big", "wb", buffering=0) as file:
            try:
                for _ in range(16):
                    file.write(b"x" * (1 << 20))
            except OSError as error:
                say(error.errno)
        say(os.path.getsize("big") <= 2 << 20)
        """)
    )
    number, small = out.report.split()
    assert int(number) in (27, 28) and small == b"True"  # EFBIG, or ENOSPC of the folder in memory


def test_many_files_fill_no_disk_with_namespaces(box):
    if box.layers.namespaces is None:
        pytest.skip("only the size of a file is limited, as the documentation says")
    out = box.run(
        job("""
        try:
            for n in range(100_000):
                with open(str(n), "wb", buffering=0) as file:
                    file.write(b"x" * 4096)
        except OSError:
            say(n)
        """)
    )
    assert int(out.report) * 4096 <= 2 << 20


def test_memory_bomb(box):
    out = box.run(
        job("""
        held = []
        try:
            while True:
                held.append(bytearray(1 << 24))
        except MemoryError:
            count = len(held)
            del held
            say(count)
        """)
    )
    assert out.outcome == "exit" and int(out.report) * 16 < 256


def test_killing_the_parent(box):
    """Behind limits alone, without root, it can: then the supervisor is replaced."""
    out = box.run(job("os.kill(os.getppid(), 9); import time; time.sleep(0.2); say('alive')"))
    if guarded(box):
        assert out.outcome in ("exit", "signal")
    else:
        assert out.outcome == "lost"


def test_killing_everybody(box):
    if not guarded(box):
        pytest.skip("would end every process of this user")
    witness = threading.Event()
    out = box.run(
        job("""
        import signal
        for target in (-1, 1, 0):
            try:
                os.kill(target, signal.SIGTERM)
            except OSError as error:
                say(type(error).__name__)
        """)
    )
    assert out.outcome in ("exit", "signal")
    assert not witness.wait(0)  # we are still here


def test_killing_the_trainer(box):
    if not guarded(box):
        pytest.skip("would end this test")
    out = box.run(job(f"os.kill({os.getpid()}, 9)"))
    assert out.outcome == "exit" and out.code == 1
    assert b"PermissionError" in out.stderr or b"ProcessLookupError" in out.stderr


@pytest.fixture
def secret_file():
    """World-readable, outside any folder that is closed to others."""
    path = Path("/tmp") / f"secret-{uuid.uuid4().hex}"
    path.write_text("the secret")
    path.chmod(0o644)
    yield path
    assert path.read_text() == "the secret" and path.stat().st_mode & 0o777 == 0o644
    path.unlink()


def test_reading_a_file_that_all_may_read(box, secret_file):
    """Limits and the user don't prevent it; namespaces and Landlock do."""
    out = box.run(job(f"say(open({str(secret_file)!r}).read())"))
    hidden = box.layers.namespaces is not None or box.layers.landlock
    assert (out.report == b"") is hidden
    assert hidden or not box.layers.isolated


def test_reading_a_private_file(box, secret_file):
    secret_file.chmod(0o600)
    out = box.run(job(f"say(open({str(secret_file)!r}).read())"))
    secret_file.chmod(0o644)
    assert (out.report == b"") is (box.layers.namespaces is not None or box.layers.landlock or box.layers.user)


@pytest.mark.parametrize(
    "act",
    ["open(path, 'w').write('x')", "os.remove(path)", "os.chmod(path, 0)", "os.rename(path, path + '.moved')",
     "os.truncate(path, 0)", "os.utime(path, (0, 0))"],
)  # fmt: skip
def test_changing_files_outside(box, secret_file, act):
    if not guarded(box) or (not box.layers.user and not box.layers.isolated):
        pytest.skip("limits alone leave this user's files open")
    out = box.run(job(f"path = {str(secret_file)!r}\n{act}"))
    # In a private root /tmp is the program's own folder, where it may make such a file.
    assert out.code == (0 if box.layers.namespaces and "open" in act else 1)


def test_writing_into_the_interpreter(box):
    if not guarded(box) or (not box.layers.user and not box.layers.isolated):
        pytest.skip("limits alone leave this user's files open")
    out = box.run(job("open(os.path.dirname(os.__file__) + '/json/__init__.py', 'a').write('')"))
    assert out.code == 1 and (b"Read-only" in out.stderr or b"PermissionError" in out.stderr)


def test_environment_and_parent_are_not_to_be_seen(box, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Sandboxes(box.layers, LIMITS, 1) as sandboxes:
        out = sandboxes.run(
            job(f"""
            say(*sorted(os.environ))
            for pid in (os.getppid(), {os.getpid()}):
                for name in ("environ", "mem", "maps", "fd"):
                    try:
                        path = f"/proc/{{pid}}/{{name}}"
                        data = os.listdir(path) if name == "fd" else open(path, "rb").read(99999)
                        if pid == {os.getpid()} or b"hf_secret" in str(data).encode():
                            say("saw", name)
                    except OSError:
                        pass
            """)
        )
    first, *seen = out.report.decode().splitlines()
    expected = {"HOME", "LANG", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "PATH", "PYTHONHASHSEED", "TMPDIR"}
    assert set(first.split()) <= expected
    if box.layers.user or box.layers.isolated:
        assert seen == []


def test_no_descriptor_of_ours_is_open(box):
    out = box.run(
        job("""
        for number in range(64):
            try:
                os.fstat(number)
                say(number)
            except OSError:
                pass
        """)
    )
    numbers = {int(line) for line in out.report.split()}
    assert numbers <= {0, 1, 2, 3, 4, 6}  # 6 is the interpreter's own folder, where it must be handed over


def test_network(box):
    """Namespaces have no network, the filter no sockets; the user and limits prevent neither."""
    server = socket.create_server(("127.0.0.1", 0))
    out = box.run(
        job(f"""
        import socket
        say(socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=1))
        """)
    )
    server.close()
    blocked = box.layers.namespaces is not None or box.layers.filter or box.layers.landlock
    assert (out.code == 1) is blocked
    assert blocked or not box.layers.isolated


def test_asyncio_works(box):
    out = box.run(job("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    say('ran')\nasyncio.run(f())"))
    assert out.report == b"ran\n"


@pytest.mark.parametrize("text", ["import time\nwhile True: time.sleep(9)", "while True: pass"])
def test_never_ending(pool, text):
    deaf = """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
    """
    with Sandboxes(pool.layers, SHORT, 1) as sandboxes:
        out = sandboxes.run(job(textwrap.dedent(deaf) + text))
        assert out.outcome == "time" and out.seconds < 5
        assert strays() == []
        assert sandboxes.run(job("print(1)")).stdout == b"1\n"


def test_processor_time_is_limited_before_the_clock():
    with Sandboxes(available(), Limits(seconds=1, clock=30), 1) as sandboxes:
        out = sandboxes.run(job("while True: pass"))
    assert out.outcome == "time" and 0.5 < out.cpu < 2


@pytest.mark.parametrize("left_out", ["call_filter", "landlock"])
def test_one_layer_less(left_out):
    """What each of the others still refuses: forks (limits), signals, the network and files (namespaces, Landlock)."""
    layers = available(**{left_out: False}, namespaces=left_out != "landlock")
    if not (layers.namespaces or layers.user or layers.filter):
        pytest.skip("nothing but limits is left")
    with Sandboxes(layers, LIMITS, 1) as sandboxes:
        assert sandboxes.run(job("os.fork()")).code == 1
        assert sandboxes.run(job(f"os.kill({os.getpid()}, 9)")).code == 1
        assert sandboxes.run(job("import socket; socket.create_connection(('127.0.0.1', 9))")).code == 1
        assert sandboxes.run(job("os.kill(-1, 9)")).outcome in ("exit", "signal")
    assert strays() == []


def test_nobody_answers_a_question(box):
    assert b"EOFError" in box.run(job("input()")).stderr


def test_raising_its_own_limits(box):
    out = box.run(
        job("""
        import resource
        for name in ("CPU", "AS", "FSIZE", "NPROC", "NOFILE", "CORE"):
            kind = getattr(resource, f"RLIMIT_{name}")
            try:
                resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                say(name)
            except (OSError, ValueError):
                pass
        """)
    )
    assert set(out.report.split()) <= (
        {b"NPROC"} if not guarded(box) or not (box.layers.user or box.layers.namespaces) else set()
    )


def test_lowering_the_limits_of_others(box):
    if not guarded(box):
        pytest.skip("limits alone leave this user's processes open")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    out = box.run(job(f"import resource\nresource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (3, 3))"))
    assert out.code == 1 and resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_tracing_and_mounting(box):
    if not box.layers.filter:
        pytest.skip("the filter's part")
    out = box.run(
        job("""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace(0, 0, 0, 0)
        say(errno.errorcode[ctypes.get_errno()])
        libc.unshare(0x10000000)
        say(errno.errorcode[ctypes.get_errno()])
        libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
        say(errno.errorcode[ctypes.get_errno()])
        libc.prctl(1, 0)  # PR_SET_PDEATHSIG
        say(errno.errorcode[ctypes.get_errno()])
        ctypes.set_errno(0)
        libc.syscall(435, 0, 0)  # clone3
        say(errno.errorcode[ctypes.get_errno()])
        """)
    )
    assert out.report.split() == [b"EPERM"] * 4 + [b"ENOSYS"]


def test_becoming_root(box):
    out = box.run(
        job("""
        for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            try:
                change()
            except OSError:
                say("refused")
        say(os.getuid() == 0)
        """)
    )
    if box.layers.user or box.layers.namespaces:
        assert out.report.split() == [b"refused"] * 3 + [b"False"]


def test_crashes_are_told_apart(box):
    assert box.run(job("import ctypes; ctypes.string_at(0)")).outcome == "signal"
    deep = box.run(
        job("""
        import sys
        class Deep:
            def __getattr__(self, name):
                return getattr(self, name)
        sys.setrecursionlimit(10**9)
        Deep().end
        """)
    )
    assert deep.outcome in ("signal", "exit") and deep.code != 0
    assert box.run(job("os._exit(7)")).code == 7


def test_closing_and_moving_descriptors(box):
    out = box.run(job("os.closerange(0, 100)"))
    assert out.outcome == "exit" and out.report == b""
    out = box.run(job("os.dup2(4, 1); os.dup2(4, 2); print('to the report')"))
    assert out.report == b"to the report\n" and out.stdout == b""


def test_writing_into_the_folder(box):
    out = box.run(
        job("""
        import tempfile
        open("a.txt", "w").write("x")
        with tempfile.NamedTemporaryFile() as file:
            say(os.path.dirname(file.name) == os.getcwd() == os.path.expanduser("~"))
        say(sorted(os.listdir(".")))
        """)
    )
    assert out.report == b"True\n['a.txt']\n"
    assert box.run(job("say(os.listdir('.'))")).report == b"[]\n"


def test_folders_that_are_hard_to_remove(box, secret_file):
    out = box.run(
        job(f"""
        os.symlink({str(secret_file)!r}, "link")
        os.symlink({str(secret_file.parent)!r}, "folder-link")
        os.symlink(".", "loop")
        os.mkdir("closed"); os.mkdir("closed/inner"); open("closed/inner/file", "w")
        os.mkfifo("pipe")
        for n in range(50):
            os.mkdir("d"); os.chdir("d")
        try:
            os.chmod("/tmp/none", 0)
        except OSError:
            pass
        say("made")
        """)
    )
    assert out.report == b"made\n"
    out = box.run(
        job("os.mkdir('a'); os.mkdir('a/b'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0); say('made')")
    )
    # Where Landlock guards this user's own files, modes can't be changed at all.
    assert out.report == b"made\n" or (not box.layers.user and box.layers.namespaces is None and box.layers.filter)


def test_bytes_that_are_no_text(box):
    out = box.run(job("os.write(1, bytes(range(256))); os.write(2, b'\\xff\\x00'); os.write(4, b'\\xff')"))
    assert (out.stdout, out.stderr, out.report) == (bytes(range(256)), b"\xff\x00", b"\xff")


def test_a_deadline_ends_the_wait(box):
    began = time.monotonic()
    out = box.run(job("import time\ntime.sleep(60)"), began + 0.3)
    assert out.outcome == "unfinished"
    assert box.run(job("pass"), began).outcome == "unfinished"  # over already: nothing was started


def test_supervisor_that_is_killed_is_replaced(box):
    supervisor = box._all[0]
    box.run(job("pass"))
    supervisor._process.kill()
    assert box.run(job("print(1)")).outcome == "lost"
    assert box.run(job("print(1)")).stdout == b"1\n"


def test_a_trainer_that_is_killed_leaves_nothing(pool, tmp_path):
    """kill -9 of the caller while a program runs: supervisor, program and folder go by themselves."""
    code = textwrap.dedent(f"""
        import sys
        sys.path[:] = {sys.path!r}
        from preftune.sandbox import Job, Layers, Limits, Sandboxes, folders
        folders.PREFIX = {folders.PREFIX!r}
        sandboxes = Sandboxes({pool.layers!r}, Limits(seconds=60), 1)
        sandboxes.run(Job("pass"))
        print("ready", flush=True)
        sandboxes.run(Job({job("import time; say('x'); time.sleep(60)").code!r}))
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout.readline() == b"ready\n"
        wait_until(lambda: len([p for p in strays() if p != str(trainer.pid)]) == 1)
        trainer.kill()
    wait_until(lambda: strays() == [])
    wait_until(lambda: leftovers(but=pool._all[0]) == [])


def test_programs_in_several_threads(pool):
    with Sandboxes(pool.layers, Limits(), 3) as sandboxes, ThreadPoolExecutor(8) as threads:
        outs = threads.map(lambda n: sandboxes.run(job(f"print({n})")).stdout, range(30))
        assert list(outs) == [f"{n}\n".encode() for n in range(30)]

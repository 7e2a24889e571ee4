"""Which layers are chosen, what they say of themselves, and the parts that stand alone."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.sandbox import Job, Layers, Limits, SandboxError, Sandboxes, available, describe, folders, pool, probe
from preftune.sandbox.records import pack, unpack

LINUX = sys.platform == "linux"
HERE = Path(__file__).resolve()


def test_layers_describe_themselves():
    words = describe()
    assert "limits" in words and available() is available()
    left_out = available(namespaces=False)
    assert left_out.namespaces is None and "no namespaces (left out)" in left_out.describe()
    weak = available(namespaces=False, landlock=False, call_filter=False)
    assert not weak.isolated and "no filter (left out)" in weak.describe()


def test_isolated_means_files_network_and_signals():
    assert Layers("user", filter=True).isolated and Layers(filter=True, landlock=True).isolated
    assert not Layers("root", True).isolated  # no filter
    assert not Layers(None, True, True).isolated  # files


def test_each_layer_falls_back_and_says_why(monkeypatch):
    def works(layers, limits=None):
        return "not on this kernel" if layers.namespaces or layers.landlock else ""

    monkeypatch.setattr(probe, "works", works)
    layers = probe.available.__wrapped__()
    assert layers.namespaces is None and layers.filter and not layers.landlock
    if LINUX:
        assert layers.why_not == {"namespaces": "not on this kernel", "landlock": "not on this kernel"}


def test_root_without_user_and_filter_is_refused(monkeypatch):
    monkeypatch.setattr(probe, "works", lambda layers, limits=None: "forbidden" if layers.user or layers.filter else "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxError, match=r"can't run them as another user .* Run preftune as an ordinary user"):
        probe.available.__wrapped__()


def test_windows_is_refused(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(SandboxError, match="on Linux, or in WSL"):
        probe.available.__wrapped__()


def test_macos_has_limits_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    layers = probe.available.__wrapped__()
    assert (layers.namespaces, layers.user, layers.filter, layers.landlock) == (None, False, False, False)
    assert "only Linux has it" in layers.describe()


def test_nothing_of_linux_is_imported_elsewhere():
    """The modules of other platforms: what they import when sys.platform says macOS."""
    code = (
        "import sys; sys.platform = 'darwin'\n"
        "import preftune.sandbox.supervisor\n"
        "assert not {'preftune.sandbox.linux', 'ctypes'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_part_that_is_not_linux_runs_programs(monkeypatch):
    """macOS' way, as far as it can be had here, on harmless programs: fork and limits."""
    monkeypatch.setattr(pool, "_BOOT", "import sys; sys.platform = 'darwin'; " + pool._BOOT)
    with Sandboxes(Layers(), Limits(seconds=1, clock=0.5), 1) as sandboxes:
        assert sandboxes.run(Job("print(input())", stdin=b"text")).stdout == b"text\n"
        assert sandboxes.run(Job("import time; time.sleep(60)")).outcome == "time"
        assert sandboxes.run(Job("while True: print('x' * 9999)")).outcome == "output"
        assert sandboxes.run(Job("print(1)")).stdout == b"1\n"


@pytest.mark.parametrize("field", ["seconds", "memory", "disk", "output", "clock", "processes"])
def test_limits_are_positive(field):
    with pytest.raises(ValueError, match="limits of a sandbox"):
        Limits(**{field: -1})


@given(st.dictionaries(st.text(), st.integers()), st.lists(st.binary()))
def test_frames_come_back(header, blobs):
    header.pop("blobs", None)
    frame = pack(header, *blobs)
    assert int.from_bytes(frame[:8], "big") == len(frame) - 8
    assert unpack(frame[8:]) == (header, blobs)


@pytest.mark.parametrize(
    "frame",
    [pack({}), pack({"outcome": "passed", "code": 0, "seconds": 0.0, "cpu": 0.0}, b"", b"", b""), pack({"problem": 1}),
     pack({"outcome": "exit", "code": "0", "seconds": 0.0, "cpu": 0.0}, b"", b"", b""), b"\0" * 7 + b"\x04[[[[",
     pack({"outcome": "exit", "code": 0, "seconds": 0.0, "cpu": 0.0}, b""), b"\xff" * 8, b""],
)  # fmt: skip
def test_answers_that_are_none_cost_the_program_alone(frame, monkeypatch):
    """A supervisor that says nonsense is taken for lost, and replaced."""
    serve = (
        f"import os; os.read(0, 9999); os.write(1, {pack({'ready': True})!r}); os.read(0, 9999); os.write(1, {frame!r})"
    )
    monkeypatch.setattr(pool, "_BOOT", serve)
    with Sandboxes(Layers(), Limits(), 1) as sandboxes:
        assert [sandboxes.run(Job("pass")).outcome for _ in range(2)] == ["lost", "lost"]


@given(st.binary(max_size=40))
def test_damaged_frames_are_told(data):
    """A supervisor may be gone, or taken over: its answer is never trusted."""
    try:
        header, blobs = unpack(data)
    except ValueError:
        return
    assert isinstance(header, dict) and all(isinstance(blob, bytes) for blob in blobs)


def test_a_folder_deeper_than_any_call_stack_is_removed():
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    top = tempfile.mkdtemp(dir=memory)
    outside = tempfile.mkdtemp(dir=memory)
    Path(outside, "kept").write_text("kept")
    here = os.getcwd()
    os.chdir(top)
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    os.symlink(outside, "link")
    Path("file").write_text("x")
    os.chmod(".", 0)
    os.chdir(here)
    Path(top, ".moved-0").write_text("in the way")
    Path(top, "wide").mkdir()
    for n in range(100):
        Path(top, "wide", f"d{n}").mkdir(mode=0)
    os.chmod(top, 0)
    folders.remove(top)
    assert not os.path.exists(top) and Path(outside, "kept").read_text() == "kept"
    folders.remove(top)  # not there: nothing to do
    shutil.rmtree(outside)


def test_folders_are_made_where_others_may_pass(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    mine, open_to_all = folders.make(False), folders.make(True)
    try:
        assert mine.startswith(str(closed)) and not open_to_all.startswith(str(closed))
        assert folders.passable(open_to_all)
    finally:
        folders.remove(mine)
        folders.remove(open_to_all)


@pytest.mark.skipif(not LINUX, reason="Linux only")
class TestFilter:
    """The filter's program, run by an interpreter of the few instructions that it uses."""

    def judge(self, program, number, *arguments, machine=None):
        from preftune.sandbox import seccomp

        data = struct.pack("<IIQ6Q", number, machine or seccomp._ARCHITECTURE, 0, *[*arguments, *[0] * 6][:6])
        steps = list(struct.iter_unpack("<HBBI", program))
        held, at = 0, 0
        while True:
            code, yes, no, value = steps[at]
            at += 1
            if code == 0x20:
                (held,) = struct.unpack_from("<I", data, value)
            elif code == 0x06:
                return value
            else:
                met = {0x15: held == value, 0x25: held > value, 0x45: bool(held & value)}[code]
                at += yes if met else no

    ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000

    def test_what_it_says(self):
        from preftune.sandbox import seccomp

        n = seccomp._number
        strict = seccomp.build(7, processes=False, kills=False, metadata=False)
        loose = seccomp.build(7, processes=True, kills=True, metadata=True)
        for program in (strict, loose):
            assert len(program) // 8 < 4096  # the kernel's limit
            assert self.judge(program, 0) == self.ALLOW
            assert self.judge(program, 451) == self.ENOSYS
            assert self.judge(program, 1 << 30) == self.ENOSYS  # x32
            assert self.judge(program, 0, machine=0x40000003) == self.KILL  # 32-bit
            for table in (seccomp.OTHER_PROCESSES, seccomp.KERNEL, seccomp.NETWORK_AND_SHARED_MEMORY):
                assert all(self.judge(program, n(p)) == self.EPERM for p in table.values() if n(p) is not None)
            assert self.judge(program, n(seccomp._CLONE), 0x10000011) == self.EPERM  # a user namespace
            assert self.judge(program, n(seccomp._CLONE), 0x3D0F00) == self.ALLOW  # a thread
            assert self.judge(program, n(seccomp._PRLIMIT), 8) == self.EPERM
            assert self.judge(program, n(seccomp._PRLIMIT), 0) == self.ALLOW
            assert self.judge(program, n(seccomp._PRLIMIT), 7) == self.ALLOW
            for both, (index, values) in seccomp._BY_ARGUMENT.items():
                for value in values:
                    assert self.judge(program, n(both), *[0] * index, value) == self.EPERM
                assert self.judge(program, n(both), *[0] * index, 9999) == self.ALLOW
        kill = n(seccomp._KILLS["kill"])
        assert self.judge(strict, kill, 7, 9) == self.ALLOW and self.judge(strict, kill, 8, 9) == self.EPERM
        assert self.judge(strict, kill, 0xFFFFFFFF, 9) == self.EPERM and self.judge(loose, kill, 8, 9) == self.ALLOW
        assert self.judge(strict, n(seccomp._CLONE), 17) == self.EPERM
        assert self.judge(loose, n(seccomp._CLONE), 17) == self.ALLOW
        for pair in seccomp.METADATA.values():
            if n(pair) is not None:
                assert self.judge(strict, n(pair)) == self.EPERM and self.judge(loose, n(pair)) == self.ALLOW


def other_python():
    """A Python that an ordinary user may run, where the tests run as root."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        real = os.path.realpath(path)
        if not os.path.exists(real) or not folders.passable(os.path.dirname(real)):
            continue
        asked = [real, "-c", "import sys; print(sys.version_info >= (3, 11))"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout == "True\n":
            return real
    return None


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="as an ordinary user the other tests test this")
@pytest.mark.parametrize("namespaces", [True, False])
def test_for_an_ordinary_user(namespaces):
    python = other_python()
    if python is None or not folders.passable(str(HERE.parents[2])):
        pytest.skip("no Python, or no checkout, that an ordinary user can reach")
    code = f"""
        import os, sys
        sys.path.insert(0, {str(HERE.parents[2])!r})
        sys.dont_write_bytecode = True
        from preftune.sandbox import Job, Limits, Sandboxes, available
        layers = available(namespaces={namespaces})
        print(layers.namespaces, layers.user, layers.isolated)
        kill = "import os\\ntry: os.kill({{}}, 9)\\nexcept OSError: os.write(4, b'no')"
        jobs = [
            Job(kill.format("os.getppid() or 1")),
            Job(kill.format(os.getpid())),
            Job("import os; os.fork()"),
            Job("import socket; socket.create_connection(('127.0.0.1', 1))"),
            Job("print(open('/etc/passwd').read())"),
            Job("import os; os.chmod('/tmp', 0)"),
            Job("import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()"),
        ]
        with Sandboxes(layers, Limits(), 1) as sandboxes:
            for job in jobs:
                out = sandboxes.run(job)
                print(out.outcome, out.code, out.stdout, out.report)
    """
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, user=1234, group=1234, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    how, user, isolated = first.split()
    assert how in ("user", "None") and user == "False"
    assert namespaces or how == "None"
    kill_parent, kill, fork, network, read, change, thread = lines
    assert kill == "exit 0 b'' b'no'" and kill_parent.startswith(("exit", "signal"))
    assert fork.startswith("exit 1") and network.startswith("exit 1") and thread.startswith("exit 0 b'1")
    if isolated == "True":
        assert read.startswith("exit 1") and change.startswith("exit 1" if how == "None" else "exit")

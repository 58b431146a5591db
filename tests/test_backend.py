"""The backend that a run gets, chosen, refused, forbidden or missing, and the reports of it to the operator."""

from __future__ import annotations

import errno
import logging
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import outcome
import pytest
import trio
from support.descriptors import descriptor_limit, next_descriptor
from support.processes import TIMEOUT

import gain_trio
from gain_trio import RingUnavailable
from gain_trio._kernel import _os_errors, load_error, ring_unavailable

pytestmark = [pytest.mark.connections, pytest.mark.slow]

RESTRICTED = str(Path(__file__).resolve().parent / "support" / "restricted.py")

# Serves one client, who is in the same process, and says what it was on.
PROGRAM = """
import sys, trio, gain_trio

async def echo(connection):
    async for data in connection:
        await connection.send(data)

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo, "tcp://127.0.0.1:0")
        client = await gain_trio.connect("tcp://127.0.0.1:%d" % server.addresses[0][1])
        async with client:
            await client.send(b"hello")
            print(await client.receive())
        nursery.cancel_scope.cancel()
    info = gain_trio.backend_info()
    print(info.backend)
    print(info.reason)

try:
    gain_trio.run(main, backend=sys.argv[1])
except gain_trio.RingUnavailable as error:
    print(type(error).__name__)
    print(error.errno)
    print(error)
"""


def python(*arguments: str, **environment: str) -> tuple[list[str], list[str]]:
    """Run Python with nothing of gain_trio's in its environment but this; the lines it prints, and those it complains."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GAIN_TRIO_")}
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**inherited, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr.splitlines()


def restricted(restriction: str, backend: str, **environment: str) -> tuple[list[str], list[str]]:
    """Run PROGRAM under a restriction."""
    return python(RESTRICTED, restriction, "-c", PROGRAM, backend, **environment)


# --- a ring that is not available ---

compiled = pytest.mark.skipif(
    load_error is not None, reason="what the kernel says does not matter where the compiled modules are missing"
)

FORBIDDEN = [
    ("EPERM", "a seccomp profile forbids it"),
    ("ENOSYS", "a seccomp profile or "),
    ("ENOMEM", "RLIMIT_MEMLOCK"),
    ("EINVAL", "gain_trio needs"),
]


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize(("number", "cause"), FORBIDDEN)
def test_a_forbidden_ring_is_done_without_and_said_in_one_line(number: str, cause: str) -> None:
    out, err = restricted(number, "auto")
    assert out[:2] == ["b'hello'", "trio"]
    [line] = err
    assert line == f"running on Trio's own I/O manager: {out[2]}"
    assert out[2].startswith(f"io_uring cannot be used: {number} ")
    assert cause in out[2]


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize(("number", "cause"), FORBIDDEN)
def test_a_forbidden_ring_that_is_demanded_is_an_error_with_its_cause(number: str, cause: str) -> None:
    out, err = restricted(number, "io_uring")
    assert err == []
    assert out[:2] == ["RingUnavailable", str(getattr(errno, number))]
    assert out[2].startswith(f"io_uring cannot be used: {number} ")
    assert cause in out[2]
    assert "backend='io_uring'" in out[2]


@pytest.mark.no_run
@compiled
def test_the_operator_can_demand_it_too() -> None:
    out, err = restricted("EPERM", "auto", GAIN_TRIO_BACKEND="io_uring")
    assert err == []
    assert out[:2] == ["RingUnavailable", str(errno.EPERM)]
    assert "GAIN_TRIO_BACKEND=io_uring" in out[2]


@pytest.mark.no_run
def test_a_ring_that_nobody_wants_is_not_warned_of() -> None:
    for backend, environment in (("trio", {}), ("auto", {"GAIN_TRIO_BACKEND": "trio"})):
        out, err = restricted("EPERM", backend, **environment)
        assert out[:2] == ["b'hello'", "trio"]
        assert err == []


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize("backend", ["auto", "io_uring"])
def test_without_memory_to_lock(backend: str) -> None:
    """Whether a ring counts as locked memory is for the kernel to say: it is refused with that reason, or else works."""
    out, err = restricted("memlock", backend)
    if out[1] == "io_uring":
        assert (out[0], err) == ("b'hello'", [])
    elif backend == "auto":
        assert out[:2] == ["b'hello'", "trio"]
        assert len(err) == 1
    else:
        assert (out[:2], err) == (["RingUnavailable", str(errno.ENOMEM)], [])
    if out[1] != "io_uring":
        assert out[2].startswith("io_uring cannot be used: ENOMEM ")
        assert "RLIMIT_MEMLOCK is 0 KiB" in out[2]


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A /proc of our own making, empty at first."""
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "thread-self").mkdir()
    monkeypatch.setattr(_os_errors, "_PROC", tmp_path)
    return tmp_path


@pytest.mark.no_run
@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({"sys/kernel/io_uring_disabled": "2\n", "thread-self/status": "Seccomp:\t2\n"}, "io_uring_disabled is 2"),
        ({"sys/kernel/io_uring_disabled": "1\n", "thread-self/status": "CapEff:\t0\n"}, "io_uring_disabled is 1"),
        (
            {
                "sys/kernel/io_uring_disabled": "1\n",
                "sys/kernel/io_uring_group": "-1\n",
                "thread-self/status": "CapEff:\tx",
            },
            "io_uring_disabled is 1",
        ),
        # Let through by the sysctl, as administrator or by its group: so it is something else.
        (
            {"sys/kernel/io_uring_disabled": "1\n", "thread-self/status": "CapEff:\t000001ffffffffff\nSeccomp:\t2\n"},
            "a seccomp profile",
        ),
        (
            {
                "sys/kernel/io_uring_disabled": "1\n",
                "sys/kernel/io_uring_group": f"{os.getegid()}\n",
                "thread-self/status": "CapEff:\t0\nSeccomp:\t2\n",
            },
            "a seccomp profile",
        ),
        ({"sys/kernel/io_uring_disabled": "0\n", "thread-self/status": "Seccomp:\t2\n"}, "a seccomp profile"),
        ({"sys/kernel/io_uring_disabled": "0\n", "thread-self/status": "Seccomp:\t0\n"}, "a security module"),
        ({}, "a security module"),
    ],
)
def test_what_forbids_it_is_told_apart(proc: Path, files: dict[str, str], cause: str) -> None:
    for name, content in files.items():
        (proc / name).write_text(content)
    error = ring_unavailable(-errno.EPERM)
    assert error.errno == errno.EPERM
    assert cause in str(error)


@pytest.mark.no_run
@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({"thread-self/status": "Seccomp:\t0\n"}, "gVisor"),
        ({"thread-self/status": "Seccomp:\t2\n"}, "built without io_uring, or a seccomp profile or sandbox"),
        ({"sys/kernel/io_uring_disabled": "0\n", "thread-self/status": "Seccomp:\t2\n"}, "the kernel has it"),
    ],
)
def test_a_system_call_that_is_not_there(proc: Path, files: dict[str, str], cause: str) -> None:
    for name, content in files.items():
        (proc / name).write_text(content)
    assert cause in str(ring_unavailable(errno.ENOSYS))


@pytest.mark.no_run
@pytest.mark.parametrize(
    ("release", "cause"),
    [
        ("5.10.0-30-amd64", "the kernel (5.10.0-30-amd64) is older than 5.11"),
        ("5.11.0", "this kernel's io_uring (5.11.0), or a sandbox's such as gVisor's, lacks what gain_trio needs"),
        ("6.18.1", "this kernel's io_uring (6.18.1), or a sandbox's such as gVisor's, lacks what gain_trio needs"),
        ("rolling", "lacks what gain_trio needs"),
    ],
)
def test_a_kernel_is_called_old_only_where_its_release_says_so(
    monkeypatch: pytest.MonkeyPatch, release: str, cause: str
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    reason = str(ring_unavailable(errno.EINVAL))
    assert cause in reason
    assert ("older than" in reason) == (release == "5.10.0-30-amd64")


# --- choosing ---


async def ask() -> gain_trio.BackendInfo:
    return gain_trio.backend_info()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log of gain_trio, with none of its variables in the environment."""
    for name in ("GAIN_TRIO_BACKEND", "GAIN_TRIO_UNWANTED"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO, logger="gain_trio")
    return caplog


def only_line(log: pytest.LogCaptureFixture) -> tuple[int, str]:
    """The one line that was logged: its level and text."""
    [record] = log.records
    log.clear()
    return record.levelno, record.getMessage()


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager")
def test_a_run_on_the_ring_says_so_at_level_info(log: pytest.LogCaptureFixture) -> None:
    for backend in ("auto", "io_uring"):
        info = gain_trio.run(ask, backend=backend)
        assert (info.backend, info.tier, info.running) == ("io_uring", "full", True)
        level, line = only_line(log)
        assert level == logging.INFO
        assert line.startswith("running on io_uring, tier full: ")
        assert all(feature in line for feature in info.features)


@pytest.mark.usefixtures("on_trios_own_manager")
def test_a_run_on_trios_own_manager_says_who_asked_for_it(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = gain_trio.run(ask, backend="trio")
    assert (info.backend, info.tier, info.running, info.features) == ("trio", "none", True, ())
    assert only_line(log) == (logging.INFO, f"running on Trio's own I/O manager: {info.reason}")
    assert "backend='trio'" in info.reason
    monkeypatch.setenv("GAIN_TRIO_BACKEND", "trio")
    for info in (gain_trio.run(ask), gain_trio.backend_info()):
        assert (info.backend, info.tier) == ("trio", "none")
        assert "GAIN_TRIO_BACKEND=trio" in info.reason


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager")
def test_the_program_that_decides_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN_TRIO_BACKEND", "trio")
    assert gain_trio.run(ask, backend="io_uring").backend == "io_uring"
    monkeypatch.setenv("GAIN_TRIO_BACKEND", "io_uring")
    assert gain_trio.run(ask, backend="trio").backend == "trio"
    monkeypatch.setenv("GAIN_TRIO_BACKEND", "")  # set to nothing is not set
    assert gain_trio.run(ask).backend == "io_uring"


@pytest.mark.parametrize("start", [gain_trio.run, gain_trio.install], ids=["run", "install"])
@pytest.mark.usefixtures("on_trios_own_manager")
def test_a_backend_that_is_none(start: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [ask] if start is gain_trio.run else []
    with pytest.raises(ValueError, match="backend must be one of auto, io_uring, trio, not 'epoll'"):
        start(*arguments, backend="epoll")
    monkeypatch.setenv("GAIN_TRIO_BACKEND", "epoll")
    with pytest.raises(ValueError, match="GAIN_TRIO_BACKEND must be one of auto, io_uring, trio, not 'epoll'"):
        start(*arguments)
    with pytest.raises(ValueError, match="GAIN_TRIO_BACKEND"):
        gain_trio.backend_info()


@pytest.mark.parametrize("wanted", ["auto", "trio"])
@pytest.mark.parametrize("start", [gain_trio.run, gain_trio.install], ids=["run", "install"])
@pytest.mark.usefixtures("on_trios_own_manager")
def test_ring_options_that_are_none(start: Callable[..., object], wanted: str) -> None:
    arguments = [ask] if start is gain_trio.run else []
    with pytest.raises(TypeError, match=r"ring must be a gain_trio.RingOptions, not 'trio'; .* by backend='trio'"):
        start(*arguments, ring="trio", backend=wanted)
    with pytest.raises(TypeError, match=r"ring must be a gain_trio.RingOptions, not 1024$"):
        start(*arguments, ring=1024, backend=wanted)


@pytest.mark.usefixtures("on_trios_own_manager")
def test_a_plain_run_of_trio_says_what_it_is() -> None:
    info = trio.run(ask)
    assert (info.backend, info.tier, info.running) == ("trio", "none", True)
    assert "gain_trio.run()" in info.reason


@pytest.mark.usefixtures("on_trios_own_manager")
def test_a_plain_run_of_trio_logs_what_it_is_when_it_first_gets_a_connection(log: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert not log.records
        for _ in range(2):
            for listener in await gain_trio.open_listeners("tcp://127.0.0.1:0"):
                await listener.aclose()

    for _ in range(2):
        trio.run(main)
        level, line = only_line(log)
        assert level == logging.INFO
        assert line.startswith("running on Trio's own I/O manager: this run was started without gain_trio.run()")


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_where_the_ring_is_installed_a_run_can_still_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAIN_TRIO_BACKEND", raising=False)
    installed = gain_trio.install()
    assert (installed.backend, installed.running) == ("io_uring", False)
    assert gain_trio.run(ask, backend="trio").backend == "trio"
    assert trio.run(ask).backend == "io_uring"


@compiled
@pytest.mark.usefixtures("on_trios_own_manager")
def test_an_install_that_changes_nothing_says_why_as_do_later_runs(log: pytest.LogCaptureFixture) -> None:
    info = gain_trio.install(backend="trio")
    assert info.backend == "trio"
    assert only_line(log)[0] == logging.INFO
    assert trio.run(ask).reason == info.reason
    with descriptor_limit(next_descriptor()):
        refused = gain_trio.install()
    assert refused.backend == "trio"
    level, line = only_line(log)
    assert level == logging.WARNING
    assert "EMFILE" in line
    assert trio.run(ask).reason == refused.reason
    with descriptor_limit(next_descriptor()), pytest.raises(RingUnavailable, match="EMFILE"):
        gain_trio.install(backend="io_uring")
    gain_trio.uninstall()
    assert "gain_trio.install()" in trio.run(ask).reason


@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_a_logging_handler_that_raises_leaves_no_ring_behind(log: pytest.LogCaptureFixture) -> None:
    class Refusing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise LookupError(record.getMessage())

    refusing = Refusing()
    logging.getLogger("gain_trio").addFilter(refusing)
    try:
        with pytest.raises(LookupError, match="running on"):
            gain_trio.run(ask)
    finally:
        logging.getLogger("gain_trio").removeFilter(refusing)


def test_guest_runs_choose_alike() -> None:
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: list[outcome.Outcome[gain_trio.BackendInfo]] = []
    gain_trio.start_guest_run(ask, run_sync_soon_threadsafe=todo.put, done_callback=ended.append, backend="trio")
    while not ended:
        todo.get(timeout=TIMEOUT)()
    assert ended[0].unwrap().backend == "trio"


# --- a ring that is no part of the installation, or of the system ---

ELSEWHERE = """
import errno, os, select, signal, socket, sys
import trio  # for this system: what Trio imports is its own affair
sys.modules["gain_trio._uring"] = sys.modules["gain_trio._fastpath"] = None  # importing them raises ImportError
for name in ("resource", "fcntl", "grp", "pwd", "cffi"):
    sys.modules[name] = None
for module, names in {
    os: ("eventfd", "eventfd_write", "eventfd_read", "EFD_NONBLOCK", "EFD_CLOEXEC", "register_at_fork", "fork", "geteuid",
         "getgroups", "sched_getaffinity", "uname"),
    select: ("poll", "POLLIN"),
    socket: ("SO_REUSEPORT", "SCM_RIGHTS", "CMSG_SPACE"),
    errno: ("ENONET", "EHOSTDOWN", "EPROTO"),
}.items():
    for name in names:
        delattr(module, name)
sys.platform = sys.argv[1]
if sys.platform == "win32":
    socket.SO_EXCLUSIVEADDRUSE = socket.SO_REUSEADDR  # a number that this kernel takes

import gain_trio, gain_trio.pytest_plugin
from gain_trio._command import _cli
print(gain_trio.backend_info().reason)
""" + PROGRAM.replace("sys.argv[1]", "sys.argv[2]")


@pytest.mark.no_run
@pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])
def test_elsewhere_everything_imports_and_a_server_serves(system: str) -> None:
    out, err = python("-c", ELSEWHERE, system, "auto")
    assert err == [], "no warning appears where no ring is possible"
    assert out[0].startswith("io_uring is a part of Linux")
    assert system in out[0]
    assert out[1:3] == ["b'hello'", "trio"]
    out, _err = python("-c", ELSEWHERE, system, "io_uring")
    assert out[1:3] == ["RingUnavailable", "None"]
    assert system in out[3]


MISSING = 'import sys; sys.modules["gain_trio._uring"] = sys.modules["gain_trio._fastpath"] = None\n' + PROGRAM


@pytest.mark.no_run
def test_without_the_compiled_modules_a_server_serves_and_the_operator_is_told() -> None:
    out, err = python("-c", MISSING, "auto")
    assert out[:2] == ["b'hello'", "trio"]
    [line] = err
    assert "the compiled modules of gain_trio are missing" in line
    assert "install gain_trio again" in line
    out, err = python("-c", MISSING, "io_uring")
    assert (out[:2], err) == (["RingUnavailable", "None"], [])


PURE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("gain_trio._uring", "gain_trio._fastpath"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import gain_trio
print(gain_trio.backend_info().reason)
"""


@pytest.mark.no_run
def test_a_pure_installation_says_that_a_module_is_missing() -> None:
    [reason], err = python("-c", PURE)
    assert err == []
    assert "are missing (No module named 'gain_trio._fastpath');" in reason


# --- a test session by the plugin ---


def plugin_session(tmp_path: Path, *options: str, **environment: str) -> tuple[int, str, str]:
    """Run pytest with gain_trio's plugin, where a ring is forbidden, on one test that runs Trio."""
    (tmp_path / "test_it.py").write_text("import trio\n\ndef test_it():\n    trio.run(trio.sleep, 0)\n")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GAIN_TRIO_")}
    pytest_run = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gain_trio.pytest_plugin", *options]
    result = subprocess.run(
        [
            sys.executable,
            RESTRICTED,
            "EPERM",
            *pytest_run,
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=tmp_path,
        # The plugins that happen to be installed are no part of this, and loading them takes longer than all the rest.
        env={**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize(
    ("options", "environment", "origin"),
    [
        (["--gain-trio-backend=io_uring"], {}, "--gain-trio-backend=io_uring"),
        (["--gain-trio-backend=io_uring"], {"GAIN_TRIO_BACKEND": "trio"}, "--gain-trio-backend=io_uring"),
        ([], {"GAIN_TRIO_BACKEND": "io_uring"}, "GAIN_TRIO_BACKEND=io_uring"),
        ([], {}, "the pytest plugin's default"),
    ],
)
def test_a_session_without_its_ring_is_told_who_demanded_it_and_the_cure(
    tmp_path: Path, options: list[str], environment: dict[str, str], origin: str
) -> None:
    status, _out, err = plugin_session(tmp_path, *options, **environment)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"(the ring is demanded by {origin}); --gain-trio-backend=auto " in err


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize("cure", ["auto", "trio"])
def test_the_cure_outweighs_who_demanded_it(tmp_path: Path, cure: str) -> None:
    status, _out, err = plugin_session(tmp_path, f"--gain-trio-backend={cure}", GAIN_TRIO_BACKEND="io_uring")
    assert status == pytest.ExitCode.OK, err


@pytest.mark.no_run
def test_a_session_is_told_which_variable_is_wrong(tmp_path: Path) -> None:
    status, _out, err = plugin_session(tmp_path, GAIN_TRIO_BACKEND="epoll")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "gain_trio: GAIN_TRIO_BACKEND must be one of auto, io_uring, trio, not 'epoll'" in err

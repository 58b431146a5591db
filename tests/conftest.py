"""The backend of every Trio run of the session, the markers, and the common fixtures.

``GAIN_TRIO_BACKEND`` chooses the backend: ``io_uring`` (the default: without a ring pytest reports an error), ``trio`` for
Trio's own I/O manager, or ``auto`` for the first of the two that is available.  The same tests make the same assertions on
all of them.  Three markers skip a test, with a reason, on a backend that it is not for:

- ``ring``: needs a run on the ring, of any tier.
- ``full_ring``: looks at the inside of a ring that connections are on.
- ``needs("buffer_increment", ...)``: needs these kernel features in use.

The others choose what a target of the Makefile runs:

- ``connections``: opens connections, listeners, endpoints or rings in this process, so the sanitizers run it.
  test_layout.py checks that each such module has the marker.
- ``features``: the kernel features that a ring can do without make a difference to it.
- ``driver``: looks at the ring and at the I/O manager themselves.
- ``memory``: watches the memory of the process, which a sanitizer's quarantine would add to.
- ``no_run``: starts no run on the session's backend, so that makes no difference to it; ``make test`` has it once.
- ``one_backend``: tests what lies above the backends: commands, examples, the supervision of processes, frameworks, parsers.
  ``make test`` and the gate have it on the ring, the nightly run on both backends.
- ``slow``: starts many processes, fills large tables, or computes for seconds; ``make check`` leaves it out.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from support.certificates import TLS_1_2, TLS_1_3, open_tls_pair
from support.descriptors import open_descriptors
from support.forked_workers import fork_workers
from support.markers import may_be_chosen
from support.pairs import PATIENCE, Pair, open_pair, open_unix_pair
from support.rings import opened as opened_ring
from support.tls_pairs import TlsPair
from support.workers import watched

import gain_trio
from gain_trio import BackendInfo, DatagramEndpoint, Feature
from gain_trio._ring import Ring
from gain_trio._server._processes._heartbeat import HeartbeatMonitor
from gain_trio._transports._addresses._passed_descriptors import descriptor_closer

BACKEND_VARIABLE = "GAIN_TRIO_BACKEND"
FEATURES = {name.lower() for name in Feature.__members__}
"""The words that ``needs`` takes."""

session_backend: pytest.StashKey[BackendInfo] = pytest.StashKey()


def choose_backend() -> None:
    """Put every run of the session on the backend that the environment chooses."""
    backend = os.environ.get(BACKEND_VARIABLE) or "io_uring"
    try:
        gain_trio.install(backend=backend)  # type: ignore[arg-type]  # install() refuses other names
    except (gain_trio.RingUnavailable, ValueError) as error:
        raise pytest.UsageError(
            f"{error}.  To run the tests on Trio's own I/O manager: {BACKEND_VARIABLE}=trio"
        ) from error


def make_scheduling_usual() -> None:
    """Have Trio schedule tasks as it does in a program.

    Where Hypothesis is installed, pytest-trio makes the order of a batch repeatable.  Nothing here needs that, and in such a
    run Trio's own loop makes every tick, so C would make none.
    """
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = False


def make_interrupts_usual() -> None:
    """Have SIGINT raise a KeyboardInterrupt, here and in what the tests start.

    A shell without job control starts what runs in the background with the signal ignored, and the tests of Ctrl-C would
    wait for what never comes.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


async def ask_for_backend() -> BackendInfo:
    return gain_trio.backend_info()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ring: needs a run on the ring, of any tier")
    config.addinivalue_line("markers", "full_ring: needs connections on the ring: it looks at their inside")
    config.addinivalue_line("markers", "needs(*features): needs these kernel features, by their lower-case names")
    config.addinivalue_line("markers", "connections: opens connections, listeners or endpoints in this process")
    config.addinivalue_line(
        "markers", "features: the kernel features that a ring can do without make a difference to it"
    )
    config.addinivalue_line("markers", "driver: looks at the ring and the I/O manager themselves")
    config.addinivalue_line("markers", "memory: watches the memory of the process")
    config.addinivalue_line(
        "markers", "no_run: starts no run on the session's backend, so that makes no difference to it"
    )
    config.addinivalue_line("markers", "one_backend: tests what lies above the backends")
    config.addinivalue_line("markers", "slow: starts many processes, fills large tables, or computes for seconds")
    make_scheduling_usual()
    make_interrupts_usual()
    choose_backend()
    config.stash[session_backend] = trio.run(ask_for_backend)


def pytest_unconfigure() -> None:
    gain_trio.uninstall()


def pytest_report_header(config: pytest.Config) -> str:
    info = config.stash[session_backend]
    return f"gain_trio: backend {info.backend}, tier {info.tier} ({', '.join(info.features) or 'no features'})"


def why_not(item: pytest.Item, info: BackendInfo) -> str | None:
    """Why a test cannot be run on this backend, or None."""
    if item.get_closest_marker("ring") and info.tier == "none":
        return f"needs a run on the ring; this session is on Trio's own I/O manager ({BACKEND_VARIABLE})"
    if item.get_closest_marker("full_ring") and info.tier != "full":
        return f"needs connections on the ring; in this session they go over sockets (tier {info.tier})"
    wanted = {name for marker in item.iter_markers("needs") for name in marker.args}
    unknown = wanted - FEATURES
    if unknown:
        raise pytest.UsageError(f"{item.nodeid} needs features that do not exist: {', '.join(sorted(unknown))}")
    missing = wanted - set(info.features)
    return f"needs {', '.join(sorted(missing))}, not in use in this session" if missing else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no module that has no test for ``-m``: to import all of them takes longer than many a target's tests."""
    expression = config.getoption("markexpr")
    if not expression or not collection_path.match("test_*.py"):
        return None
    return True if not may_be_chosen(expression, collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason = why_not(item, config.stash[session_backend])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Freeze the present objects, which live as long as the session, so that garbage collections in tests skip them.

    Once a session is not enough: what pytest and the libraries keep makes a collection ten times as long by the end.
    """
    gc.collect()
    gc.freeze()


def refuse_run(*_arguments: object, **_options: object) -> None:
    """What a test that is marked ``no_run`` gets if it starts a run."""
    raise AssertionError("this test starts a run: without its marker no_run it runs on both backends")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("no_run"):
            patch.setattr(trio, "run", refuse_run)
            patch.setattr(gain_trio, "run", refuse_run)
        yield


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> BackendInfo:
    """The backend of the session's runs."""
    return pytestconfig.stash[session_backend]


@pytest.fixture
def on_trios_own_manager(backend: BackendInfo) -> Iterator[None]:
    """Put the runs that the test starts by trio.run on Trio's own I/O manager."""
    gain_trio.uninstall()
    yield
    gain_trio.install(backend="io_uring" if backend.backend == "io_uring" else "trio")


@pytest.fixture(params=[True, False], ids=["in place", "scheduled"])
def resume_in_place(request: pytest.FixtureRequest, backend: BackendInfo) -> bool:
    """Both ways of waking a task that waits for a connection; over sockets only one exists."""
    assert isinstance(request.param, bool)
    if backend.tier != "full" and not request.param:
        pytest.skip("over sockets, Trio's scheduler wakes every task")
    return request.param


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A connected pair: the client's connection and the accepted one.  Both are aborted at the end."""
    client, served = await open_pair()
    yield client, served
    client.abort()
    served.abort()


@pytest.fixture(params=["TCP", "Unix", "TLS"])
async def any_pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """A connected pair of every kind of connection."""
    if request.param == "Unix":
        client, served = await open_unix_pair(f"unix://{tmp_path}/socket")
    else:
        client, served = await (open_pair() if request.param == "TCP" else open_tls_pair())
    yield client, served
    client.abort()
    served.abort()


@pytest.fixture(params=[TLS_1_2, TLS_1_3], ids=["TLSv1.2", "TLSv1.3"])
async def tls_pair(request: pytest.FixtureRequest) -> AsyncIterator[TlsPair]:
    """Both ends of a TLS connection, of each version."""
    client, served = await open_tls_pair(version=request.param)
    yield client, served
    client.abort()
    served.abort()


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A datagram socket of the standard library on 127.0.0.1: what it sends has arrived when ``sendto`` returns."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.fixture
async def endpoint() -> AsyncIterator[DatagramEndpoint]:
    """A datagram endpoint on 127.0.0.1, closed at the end."""
    async with await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as opened:
        yield opened


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A ring by itself, without Trio."""
    with opened_ring() as ring:
        yield ring


@pytest.fixture
def full_tier() -> None:
    """Skip where a ring has not tier full, which accepts and receives need."""
    with opened_ring() as ring:
        if ring.tier != "full":
            pytest.skip(f"the ring has tier {ring.tier}")


@pytest.fixture
def no_descriptor_leak() -> Iterator[None]:
    """Check that the process has no descriptor after the test's runs that it had not before.

    It may have fewer: a thread that an earlier test has abandoned closes what it has when it ends.
    """
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    end = time.monotonic() + PATIENCE
    while not descriptor_closer.is_idle and time.monotonic() < end:  # threads close what peers have passed
        time.sleep(0.001)
    assert not Counter(open_descriptors()) - Counter(before)


@pytest.fixture(autouse=True)
def handlers_and_hooks_are_left_alone() -> Iterator[None]:
    """Check that the test leaves no handler of signals or log records, tracer or asyncgen hook behind."""
    handler, tracer, hooks = signal.getsignal(signal.SIGINT), sys.gettrace(), sys.get_asyncgen_hooks()
    loggers = [logging.getLogger(), logging.getLogger("gain_trio")]
    logging_to = [logger.handlers[:] for logger in loggers]
    yield
    # One that is left writes to the standard error of a test that is over, in whichever test logs next.
    assert [logger.handlers for logger in loggers] == logging_to
    assert signal.getsignal(signal.SIGINT) is handler
    assert sys.gettrace() is tracer
    assert sys.get_asyncgen_hooks() == hooks
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def no_process_is_late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker process is not late because this machine is slow to run it, but only if the test watches it."""
    is_late = HeartbeatMonitor.is_late
    assert isinstance(is_late, property)
    look = is_late.fget
    assert look is not None
    monkeypatch.setattr(HeartbeatMonitor, "is_late", property(lambda monitor: monitor in watched and look(monitor)))
    yield
    watched.clear()


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forked with their imports done.  What a start needs is tested where they are started."""
    monkeypatch.setattr(trio.lowlevel, "open_process", fork_workers)


@pytest.fixture
def not_installed() -> Iterator[None]:
    """Undo the install() of the session, so that the test observes its own."""
    gain_trio.uninstall()
    yield
    choose_backend()

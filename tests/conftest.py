"""What all tests share: every Trio run of the session is on the ring."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from pairs import Pair, open_descriptors, open_pair

import gain_trio


@pytest.fixture(scope="session", autouse=True)
def on_the_ring() -> Iterator[None]:
    """Have pytest-trio's runs, and all others, on gain_trio's I/O manager."""
    gain_trio.install()
    yield
    gain_trio.uninstall()


@pytest.fixture
def on_trios_own_manager(on_the_ring: None) -> Iterator[None]:
    """For the runs that the test starts itself: trio.run is Trio's own again."""
    gain_trio.uninstall()
    yield
    gain_trio.install()


@pytest.fixture(params=[True, False], ids=["in place", "scheduled"])
def resume_in_place(request: pytest.FixtureRequest) -> bool:
    """Both ways of waking a task."""
    assert isinstance(request.param, bool)
    return request.param


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A connected pair: the client's connection and the accepted one.  What is left of them is aborted."""
    client, served = await open_pair()
    yield client, served
    client.abort()
    served.abort()


@pytest.fixture
def no_descriptor_leak() -> Iterator[None]:
    """After the test's runs there are as many descriptors as before."""
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() == before


@pytest.fixture(autouse=True)
def handlers_and_hooks_are_left_alone() -> Iterator[None]:
    """No test leaves a signal handler, a tracer or asyncgen hooks behind."""
    handler, tracer, hooks = signal.getsignal(signal.SIGINT), sys.gettrace(), sys.get_asyncgen_hooks()
    yield
    assert signal.getsignal(signal.SIGINT) is handler
    assert sys.gettrace() is tracer
    assert sys.get_asyncgen_hooks() == hooks
    assert signal.set_wakeup_fd(-1) == -1

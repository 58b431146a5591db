"""Clients that keep a connection busy with as little as possible, beside a thousand others that are served meanwhile."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support.pairs import until
from support.servers import serving
from trio.testing import MockClock

import gain_trio
from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.features]

OTHERS = 1000
LORISES = 20
LINE_TIMEOUT = 5.0
"""Seconds that a client has for a line, however many bytes of it come meanwhile."""
IDLE_TIMEOUT = 4.0
SPARE = 200


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    needed = 2 * (OTHERS + LORISES) + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} descriptors, and this process can have {hard} (RLIMIT_NOFILE)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def answer_lines(connection: Connection) -> None:
    """A deadline for each line, moved with every one."""
    while True:
        connection.read_deadline = trio.current_time() + LINE_TIMEOUT
        line = await connection.receive_line()
        if line is None:
            return
        await connection.send(line + b"\n")


async def ask(connection: Connection) -> None:
    await connection.send(b"hello\n")
    assert await connection.receive_line() == b"hello"


class Loris:
    """Sends a byte now and then, and notes when it is thrown out."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.end = math.inf

    async def watch(self) -> None:
        try:
            assert await self.connection.receive() == b""
        except trio.BrokenResourceError:
            pass  # by a reset: the server has not read the last byte
        self.end = trio.current_time()

    async def drip(self) -> None:
        if self.end == math.inf:
            await self.connection.send(b"x")


@pytest.mark.parametrize(
    ("kind", "every", "idle_timeout", "thrown_out_at"),
    [
        ("TCP", 1, IDLE_TIMEOUT, LINE_TIMEOUT),
        ("Unix", 1, math.inf, LINE_TIMEOUT),
        ("TCP", math.inf, IDLE_TIMEOUT, IDLE_TIMEOUT),
        ("Unix", math.inf, IDLE_TIMEOUT, IDLE_TIMEOUT),
    ],
    ids=lambda value: str(value),
)
async def test_they_are_thrown_out_and_nobody_else_is(
    mock_clock: MockClock, tmp_path: Path, *, kind: str, every: float, idle_timeout: float, thrown_out_at: float
) -> None:
    address = "tcp://127.0.0.1:0" if kind == "TCP" else f"unix://{tmp_path}/socket"
    async with (
        serving(answer_lines, address, idle_timeout=idle_timeout, backlog=4096) as server,
        trio.open_nursery() as nursery,
    ):
        if kind == "TCP":
            address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        others = [await gain_trio.connect(address) for _ in range(OTHERS)]
        lorises = [Loris(await gain_trio.connect(address)) for _ in range(LORISES)]
        await until(lambda: server.active_connections == OTHERS + LORISES)
        for loris in lorises:
            nursery.start_soon(loris.watch)
        for second in range(8):
            for loris in lorises:
                if second == 0 or second % every == 0:
                    await loris.drip()
            for other in others:  # a byte a second does not keep the server from anything
                await ask(other)
            thrown_out = [loris for loris in lorises if loris.end < math.inf]
            assert len(thrown_out) == (LORISES if second >= thrown_out_at else 0)
            assert server.active_connections == OTHERS + LORISES - len(thrown_out)
            mock_clock.jump(1)
            if second + 1 == thrown_out_at:
                await until(lambda: server.active_connections == OTHERS)
                await until(lambda: all(loris.end < math.inf for loris in lorises))
        assert {loris.end for loris in lorises} == {thrown_out_at}
        statistics = server.statistics()
        assert (statistics.too_slow, statistics.idle) == (
            (LORISES, 0) if thrown_out_at == LINE_TIMEOUT else (0, LORISES)
        )
        for connection in (*others, *(loris.connection for loris in lorises)):
            connection.abort()

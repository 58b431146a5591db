r"""Each parser that can ask for more asks for more than there is, or answers; and a loop around one that does not, refuses.

A parser that asks for bytes which it already has makes the loop around it turn for ever, and without a checkpoint: then
the whole run stands still, by a few bytes of a stranger.
"""

from __future__ import annotations

import ast
import itertools
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzz import cut, places

import gain_trio
from gain_trio import Connection
from gain_trio._http._http_handler import SITE
from gain_trio._http._http_requests import Exchange, Phase
from gain_trio._http._request_reader import MAX_HEAD, RequestReader
from gain_trio._server import _proxy
from gain_trio._server._processes import _control_messages
from gain_trio._server._processes._boot import FRAME
from gain_trio._server._processes._control import ControlChannel
from gain_trio._transports import IncompleteMessage, MessageTooLong
from gain_trio._transports._addresses import _activation
from gain_trio._transports._addresses._address import FdAddress
from gain_trio._transports._connections._framing import Framing
from gain_trio._transports._connections._proxy_protocol import (
    NeedMore,
    ProxyHeader,
    ProxyProtocolError,
    parse_proxy_header,
)

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

PATIENCE = 10
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"


# --- the PROXY protocol ---


def check_proxy(data: bytes) -> None:
    """The invariant, and that a parser which has answered gives the same answer with more behind it."""
    try:
        found = parse_proxy_header(data)
    except ProxyProtocolError:
        return
    if isinstance(found, NeedMore):
        assert found.count > len(data), data
    else:
        assert 0 < found.length <= len(data)
        assert parse_proxy_header(data + b"\r\r\n") == found


BEGINNINGS_V1 = [
    b"",
    b"PROXY",
    b"PROXY ",
    b"PROXY UNKNOWN",
    b"PROXY UNKNOWN " + b"x" * 90,
    V1[:-2],
    V1[:-2] + b"x" * 64,
]


@pytest.mark.parametrize("beginning", BEGINNINGS_V1, ids=range(len(BEGINNINGS_V1)))
def test_every_way_to_end_a_line(beginning: bytes) -> None:
    for length in range(6):
        for end in itertools.product((b"\r", b"\n", b"x", b" "), repeat=length):
            check_proxy(beginning + b"".join(end))


@pytest.mark.parametrize("command", [0x20, 0x21, 0x22, 0x10])
@pytest.mark.parametrize("family", [0x00, 0x01, 0x11, 0x12, 0x21, 0x31, 0x32, 0x41, 0x13, 0xFF])
def test_every_length_of_a_block(command: int, family: int) -> None:
    for said in (0, 1, 2, 11, 12, 15, 36, 216, 300, 4080, 4081, 65535):
        fixed = SIGNATURE + bytes([command, family]) + said.to_bytes(2, "big")
        for there in range(len(fixed) + 1):
            check_proxy(fixed[:there])
        for there in {0, 1, said // 2, max(said - 1, 0), said, said + 1}:
            check_proxy(fixed + bytes(there))


@given(st.sampled_from([b"", b"PROXY ", V1[:-2], SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
@example(b"PROXY UNKNOWN", b"\r\r")
@example(b"PROXY UNKNOWN", b"\n\r")
@example(b"", SIGNATURE + b"\x21\x31\x00\x0c" + bytes(12))
def test_any_bytes(beginning: bytes, rest: bytes) -> None:
    check_proxy(beginning + rest)


FROZE = [
    b"PROXY UNKNOWN\r\r",
    b"PROXY UNKNOWN\n\r",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\r",
    b"PROXY TCP6 ::1 ::1 1 1\r\r\n",
    b"PROXY \r\rAAAAAAAA",
    b"PROXY \n\r\r\r\r\r\r\r\r\r",
]


@pytest.mark.parametrize("data", FROZE)
async def test_a_server_goes_on_serving(data: bytes) -> None:
    async def echo(connection: Connection) -> None:
        async for received in connection:
            await connection.send(received)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(_served, echo)
            address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
            hostile = [await gain_trio.connect(address) for _ in range(3)]
            for client in hostile:
                await client.send(data)
            async with await gain_trio.connect(address) as client:
                await client.send(V1 + b"hello")
                assert await client.receive_exactly(5) == b"hello"
            for client in hostile:
                with pytest.raises((trio.BrokenResourceError, IncompleteMessage)):
                    await client.receive_exactly(1)
                await client.aclose()
            assert server.statistics().refused == len(hostile)
            nursery.cancel_scope.cancel()


async def _served(handler: Any, task_status: trio.TaskStatus[gain_trio.Server]) -> None:
    await gain_trio.serve(handler, "tcp://127.0.0.1:0", proxy_protocol=True, task_status=task_status)


async def _receive(connection: gain_trio.Connection) -> None:
    await connection.receive()


async def test_a_parser_that_asks_for_what_it_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def parse(data: bytes) -> ProxyHeader | NeedMore:
        return NeedMore(min(len(data), 5) or 5)

    monkeypatch.setattr(_proxy, "parse_proxy_header", parse)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(_served, _receive)
            async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
                await client.send(b"PROXY UNKNOWN")
                with pytest.raises((trio.BrokenResourceError, IncompleteMessage)):
                    await client.receive_exactly(1)
            nursery.cancel_scope.cancel()
    assert [record.levelno for record in caplog.records if "the parser wants" in record.getMessage()] == [
        logging.WARNING
    ]


# --- HTTP ---


HTTP_BITS = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"POST /x HTTP/1.1\r\n",
            b"GET / HTTP/1.0\r\n",
            b"Host: here\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 0\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: ,chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"\r\n",
            b"\r",
            b"\n",
            b" ",
            b"5\r\nhello\r\n",
            b"0\r\n",
            b"hello",
            b"\0",
            b"a" * 300,
        ]
    ),
    max_size=14,
).map(b"".join)


@given(HTTP_BITS | st.binary(max_size=200), places(400))
@example(b"\r\r", [1])
@example(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r", [])
def test_an_exchange_answers_or_keeps_what_is_not_whole(data: bytes, cuts: list[int]) -> None:
    whole, pieces = Exchange(SITE), Exchange(SITE)
    said = statuses(whole.feed(data))
    assert "500" not in said
    in_pieces = []
    for piece in cut(data, cuts):
        in_pieces += statuses(pieces.feed(piece))
        assert pieces._reader.unread <= MAX_HEAD
    assert in_pieces == said
    assert pieces.phase is whole.phase


def statuses(answers: bytes) -> list[str]:
    """The statuses of all answers but 100, which depends on whether the body arrives with the head."""
    return [status.decode() for status in re.findall(rb"HTTP/1\.1 ([0-9]+)", answers) if status != b"100"]


def test_a_reader_that_makes_no_progress_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestReader, "_read_size", lambda _reader: None)
    exchange = Exchange(SITE)
    answer = exchange.feed(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert exchange.phase is Phase.OVER


# --- messages out of a stream ---


class Fed(Framing):
    """A queue that is filled by a piece a wait, and refuses a wait for what is there already."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._queue = b""
        self.ended = False

    async def _fill(self, count: int, /) -> int:
        assert not self._queue or count > len(self._queue) or not self.waited, "it asks for what it has"
        self.waited = True
        while len(self._queue) < count and self._pieces:
            self._queue += self._pieces.pop(0)
        self.ended = len(self._queue) < count
        return len(self._queue)

    def _find(self, separator: bytes, start: int, /) -> int:
        return self._queue.find(separator, start)

    def next(self, count: int | None = None, /) -> bytes:
        count = len(self._queue) if count is None else count
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _take_exactly(self, count: int, /) -> bytes | None:
        return self.next(count) if count <= len(self._queue) else None

    waited = False
    """Whether the call in progress has waited."""


BYTES = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"aa"]), max_size=30).map(b"".join)


@given(BYTES, places(60), st.sampled_from([b"\n", b"\r\n", b"aa", b"a\r\na"]), st.integers(4, 40))
def test_framing_asks_for_more_than_there_is(data: bytes, cuts: list[int], separator: bytes, limit: int) -> None:
    calls: list[Callable[[Fed], Any]] = [
        lambda fed: fed.receive_until(separator, max_bytes=limit),
        lambda fed: fed.receive_line(max_bytes=limit),
        lambda fed: fed.receive_exactly(limit),
    ]
    for call in calls:
        fed = Fed(cut(data, cuts))
        for _ in range(len(data) + 2):
            fed.waited = False
            try:
                answer = _outcome(call(fed))
            except (IncompleteMessage, MessageTooLong):
                break
            if answer is None:
                break
        else:
            pytest.fail("there were more messages than bytes")


def _outcome(call: Any) -> Any:
    """The result of a coroutine that never waits; the test fails if it does."""
    try:
        call.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited for the scheduler")


# --- the control channel of a worker process ---

FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.binary(max_size=30).map(lambda content: FRAME.pack(len(content)) + content),
        st.sampled_from(
            [
                FRAME.pack(0),
                FRAME.pack(_control_messages.LARGEST + 1),
                FRAME.pack(2**64 - 1),
                *(
                    FRAME.pack(len(content)) + content
                    for content in (
                        _control_messages.encode(_control_messages.HandOffReceived(1, 2)),
                        _control_messages.encode(_control_messages.Leaving()),
                        _control_messages.encode(_control_messages.ConnectionsEnded((1, 2))),
                    )
                ),
            ]
        ),
    ),
    max_size=6,
).map(b"".join)


@given(FRAMES)
@example(FRAME.pack(0))
def test_the_control_channel_answers_whatever_comes(data: bytes) -> None:
    async def main() -> None:
        own, other = socket.socketpair()
        control = ControlChannel(other)
        with own:
            own.sendall(data)
            own.shutdown(socket.SHUT_WR)
            with trio.fail_after(PATIENCE):
                for _ in range(len(data) + 1):
                    try:
                        message = await control.receive()
                    except ValueError:
                        break  # what comes then cannot be understood: the process is given up
                    if message is None:
                        break
                else:
                    pytest.fail("there were more messages than bytes")
        control.close()

    trio.run(main)


# --- what systemd passes ---

WORDS = st.sampled_from(
    ["", "0", "1", "2", "-1", "+1", " 1", "1e3", "\u0663", "nonsense", "9" * 20, "9" * 5000, "1000000000"]
)
NAMES = st.none() | st.sampled_from(["", ":", "web", "web:api", "::::", "a" * 5000, ":" * 100_000])


@given(st.just("self") | WORDS, st.none() | WORDS, NAMES)
@example("self", "1000000000", None)
@example("self", "9" * 5000, None)
@example("9" * 5000, "1", None)
def test_any_environment_is_answered(pid: str, count: str | None, names: str | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LISTEN_PID", str(os.getpid()) if pid == "self" else pid)
        for name, value in (("LISTEN_FDS", count), ("LISTEN_FDNAMES", names)):
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        patch.setattr(_activation, "FIRST", 1 << 20)  # where this process has no descriptors
        with pytest.raises(OSError, match=r"LISTEN_|descriptor|passed"):
            _activation.ActivationSockets().take(FdAddress(None, None))


# --- loops ---

PACKAGE = Path(gain_trio.__file__).parent

BOUNDED = {
    ("_server/_acceptor.py", "run"): "takes what has been accepted already: a batch, or what the last wait has brought",
    ("_transports/_tls_traffic.py", "_encrypt_kept"): "pieces of one message",
}
"""Loops of asynchronous functions that need not await: each turn takes something away from what is there."""


def loops() -> Iterator[tuple[str, str, ast.While]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.While):
                        yield str(path.relative_to(PACKAGE)), function.name, node


def awaits(loop: ast.While) -> bool:
    return any(isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor) for node in ast.walk(loop))


def test_no_loop_of_an_asynchronous_function_turns_without_an_await() -> None:
    silent = {(path, name) for path, name, loop in loops() if not awaits(loop)}
    assert silent <= set(BOUNDED), "say why it ends, in BOUNDED, or await something"

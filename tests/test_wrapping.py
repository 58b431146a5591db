"""Sockets that exist already: wrapped, given back, and those the process was started with."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.descriptors import is_open, next_descriptor
from support.pairs import (
    MEBIBYTE,
    QUIET,
    Pair,
    clog,
    fill_kernel,
    open_pair,
    pattern,
    receive_all,
    receive_exactly,
    until_queued,
)
from support.processes import TIMEOUT, running
from support.runs import wait_released
from support.sockets import fill, read_available, socket_pair
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Listener, Marks, open_listeners
from gain_trio._transports._addresses import _activation
from gain_trio._transports._backends._ring_connection import RingConnection

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]


@pytest.fixture(params=["tcp", "unix"])
def sockets(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected ends."""
    if request.param == "unix":
        one, other = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            other, _address = server.accept()
    with one, other:
        yield one, other


# --- Connection.from_socket ---


async def test_from_socket(sockets: tuple[socket.socket, socket.socket], backend: gain_trio.BackendInfo) -> None:
    one, other = sockets
    number = one.fileno()
    connection = Connection.from_socket(one)
    assert one.fileno() == -1
    assert connection.fileno() == number
    assert isinstance(connection, RingConnection) == (backend.tier == "full")
    assert not os.get_blocking(number)
    async with connection, Connection.from_socket(other) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, pattern(MEBIBYTE))
            assert await receive_exactly(peer, MEBIBYTE) == pattern(MEBIBYTE)
    one.close()  # its descriptor has another owner now


async def test_from_socket_with_marks(sockets: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection.from_socket(sockets[0], marks=Marks(receive_high=2, receive_low=1))
    async with connection:
        sockets[1].sendall(b"abcdef")
        assert await receive_exactly(connection, 6) == b"abcdef"


async def test_from_socket_takes_trios_sockets() -> None:
    one, other = trio.socket.socketpair()
    async with Connection.from_socket(one) as connection:
        assert one.fileno() == -1
        await other.send(b"x")
        assert await connection.receive() == b"x"
    other.close()


async def test_tcp_nodelay_is_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        async with Connection.from_socket(client) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_from_socket_refuses_what_is_no_connection() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="not connected") as caught:
            Connection.from_socket(listening)
        assert caught.value.errno == errno.ENOTCONN
        listening.listen()
        with pytest.raises(ValueError, match=r"this one listens; use Listener\.from_socket"):
            Connection.from_socket(listening)
        assert listening.fileno() >= 0
        assert listening.getblocking()
    with pytest.raises(ValueError, match="this one is closed"):
        Connection.from_socket(listening)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, pytest.raises(ValueError, match="takes a stream socket"):
        Connection.from_socket(one)
    with pytest.raises(TypeError, match=r"takes a socket\.socket or one of trio\.socket, not 3"):
        Connection.from_socket(3)  # type: ignore[arg-type]


async def test_from_socket_refuses_a_socket_with_tls() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    one, other = socket.socketpair()
    with other, context.wrap_socket(one, do_handshake_on_connect=False) as wrapped:
        with pytest.raises(ValueError, match=r"trio\.SSLStream"):
            Connection.from_socket(wrapped)


async def test_from_socket_refuses_a_stream_of_trios() -> None:
    one, other = trio.socket.socketpair()
    async with trio.SocketStream(one) as stream:
        with pytest.raises(TypeError, match=r"pass its \.socket"):
            Connection.from_socket(stream)  # type: ignore[arg-type]
    other.close()


async def test_pass_fds_needs_a_unix_socket(pair: Pair) -> None:
    sock, _queued = await pair[0].detach()
    with sock, pytest.raises(ValueError, match="through Unix sockets only"):
        Connection.from_socket(sock, pass_fds=True)


def test_outside_a_run(sockets: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(RuntimeError, match=r"Connection\.from_socket\(\) must be called from a Trio task"):
        Connection.from_socket(sockets[0])
    assert sockets[0].fileno() >= 0


@pytest.mark.full_ring
def test_when_there_is_no_room_the_socket_stays_the_callers() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            connections = []
            with pytest.raises(OSError) as caught:
                for _ in range(20):
                    spare = socket.create_connection(server.getsockname())
                    try:
                        connections.append(Connection.from_socket(spare))
                    except OSError:
                        assert spare.fileno() >= 0
                        assert spare.getblocking()
                        spare.close()
                        raise
            assert caught.value.errno == errno.ENOSPC
            for connection in connections:
                connection.abort()

    gain_trio.run(main, ring=gain_trio.RingOptions(max_slots=8))


# --- Listener.from_socket ---


def files(directory: Path) -> list[str]:
    return [str(path) for path in directory.iterdir()]


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_listener_from_socket(family: str, tmp_path: Path) -> None:
    where: Any = ("127.0.0.1", 0) if family == "tcp" else str(tmp_path / "s")
    sock = socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)
    sock.bind(where)
    with pytest.raises(ValueError, match=r"call its listen\(\) first"):
        Listener.from_socket(sock)
    sock.listen()
    async with Listener.from_socket(sock, marks=Marks()) as listener:
        assert sock.fileno() == -1
        with socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX) as client:
            client.connect(listener.local_address)
            async with await listener.accept() as served:
                client.sendall(b"x")
                assert await served.receive() == b"x"
                if family == "tcp":
                    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert family == "tcp" or where in files(tmp_path), "the file is not the listener's"


async def test_listener_from_a_socket_of_trios() -> None:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    sock.listen()
    async with Listener.from_socket(sock) as listener:
        async with await gain_trio.connect(f"tcp://127.0.0.1:{listener.local_address[1]}"):
            await (await listener.accept()).aclose()


# --- detach ---


async def test_detach_gives_the_socket_and_what_was_not_taken(pair: Pair) -> None:
    client, served = pair
    await client.send(b"received and not taken")
    await until_queued(served, 22)
    assert await served.receive(9) == b"received "
    number = served.fileno()
    sock, queued = await served.detach()
    with sock:
        assert sock.fileno() == number
        assert sock.getblocking()
        if queued != b"and not taken":  # over sockets the kernel may hold it still
            queued += sock.recv(100, socket.MSG_DONTWAIT)
        assert queued == b"and not taken"
        await client.send(b"more")
        await client.flush()
        assert sock.recv(100) == b"more"
        sock.sendall(b"answer")
        assert await client.receive() == b"answer"
        assert served.fileno() == -1
        for call in (served.receive(), served.send(b"x"), served.detach(), served.flush()):
            with pytest.raises(trio.ClosedResourceError):
                await call
        await served.aclose()
        served.abort()
        sock.sendall(b"still open")
        assert await client.receive() == b"still open"
    assert await client.receive() == b""


async def test_detach_loses_no_byte_of_a_stream_that_goes_on() -> None:
    """Whatever is on its way while it lets go: what comes from the connection and from the socket is all there is."""
    for round_number in range(20):
        client, served = await open_pair()
        data = pattern(2 * MEBIBYTE)
        async with client, trio.open_nursery() as nursery:

            async def send(client: Connection = client, data: bytes = data) -> None:
                await client.send(data)
                await client.aclose()

            nursery.start_soon(send)
            taken = await receive_exactly(served, round_number * 1000 + 1)
            sock, queued = await served.detach()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            async with stream:
                assert taken + queued + await receive_all(stream) == data
    await wait_released()


async def test_detach_and_wrap_again(pair: Pair) -> None:
    client, served = pair
    for number in range(50):
        await client.send(b"%d\n" % number)
        sock, queued = await served.detach()
        served = Connection.from_socket(sock)
        rest = b"" if queued.endswith(b"\n") else await served.receive_until(b"\n")
        assert queued + rest == b"%d\n" % number
    await served.send(b"end")
    await served.aclose()
    assert await receive_all(client) == b"end"
    await client.aclose()
    await wait_released()


async def test_detach_flushes_first() -> None:
    client, served = await open_pair()
    data = pattern(8 * MEBIBYTE)
    got: list[socket.socket] = []

    async def send_and_detach() -> None:
        await client.send(data)
        sock, _queued = await client.detach()
        got.append(sock)
        sock.shutdown(socket.SHUT_WR)

    async with served, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_detach)
        await wait_all_tasks_blocked()
        assert not got
        assert await receive_all(served) == data
    got[0].close()


async def test_detach_after_a_call_that_waited_for_room_leaves_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"not a byte of this")
    with socket_pair() as (one, other):
        held = fill(one)
        connection = Connection.from_socket(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send_file, path)
            await wait_all_tasks_blocked(QUIET)  # its thread looks for room, and then it waits
            nursery.cancel_scope.cancel()
        sock, _queued = await connection.detach()
        with sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_writable, sock)  # or another task waits for it already
                await wait_all_tasks_blocked()
                assert len(read_available(other)) == held


async def test_detach_of_a_paused_connection() -> None:
    marks = Marks(receive_high=1000, receive_low=10)
    client, served = await open_pair(marks=marks)
    sent = await fill_kernel(client)
    assert served.inbound_buffered >= 1000
    sock, queued = await served.detach()
    assert len(queued) >= 1000
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        client.abort()
        total = len(queued)
        try:
            async for data in stream:
                total += len(data)
        except trio.BrokenResourceError:
            pass
        assert total <= sent
    await wait_released()


async def test_detach_after_the_end_of_the_stream(pair: Pair) -> None:
    client, served = pair
    await client.send(b"last")
    await client.send_eof()
    assert await receive_all(served) == b"last"
    sock, queued = await served.detach()
    with sock:
        assert (queued, sock.recv(10)) == (b"", b"")
        sock.sendall(b"answer")
        assert await client.receive() == b"answer"


async def test_detach_of_a_broken_connection(pair: Pair) -> None:
    client, served = pair
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with pytest.raises(trio.BrokenResourceError):
        await served.detach()
    assert served.fileno() >= 0, "it is the connection's to close"


async def test_detach_while_others_are_at_work(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await served.detach()
        nursery.cancel_scope.cancel()
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.detach()
        nursery.cancel_scope.cancel()
    await served.send(b"still fine")
    assert await receive_exactly(client, 10) == b"still fine"


async def test_cancelled_detach_changes_nothing(pair: Pair) -> None:
    client, served = pair
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await served.detach()
        assert scope.cancelled_caught
        await client.send(b"x")
        assert await served.receive() == b"x"


@pytest.mark.full_ring
async def test_detach_cancelled_while_the_receive_ends(pair: Pair) -> None:
    """Both happen before the kernel hears of either: the receive is cancelled, and armed again."""
    client, served = pair

    async def let_go(scope: trio.CancelScope) -> None:
        with scope:
            await served._detach()  # type: ignore[attr-defined]

    async def cancel(scope: trio.CancelScope) -> None:
        scope.cancel()

    for _ in range(20):
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:  # both run in the next batch, in either order
            nursery.start_soon(let_go, scope)
            nursery.start_soon(cancel, scope)
        assert scope.cancelled_caught
        await client.send(b"goes on")
        assert await served.receive() == b"goes on"


@pytest.mark.full_ring
async def test_detach_when_somebody_sends_meanwhile(pair: Pair) -> None:
    client, served = pair
    assert isinstance(served, RingConnection)
    await served.send(b"not yet with the kernel")
    with pytest.raises(trio.BusyResourceError, match="sending"):
        await served._detach()
    assert await receive_exactly(client, 23) == b"not yet with the kernel"
    await client.send(b"goes on")
    assert await served.receive() == b"goes on"


@pytest.mark.full_ring
async def test_closed_while_it_detaches() -> None:
    async def let_go(served: Connection) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await served._detach()  # type: ignore[attr-defined]

    async def close(served: Connection) -> None:
        served.abort()

    for _ in range(20):
        client, served = await open_pair()
        await wait_all_tasks_blocked()
        async with client, trio.open_nursery() as nursery:  # both run in the next batch, in either order
            nursery.start_soon(let_go, served)
            nursery.start_soon(close, served)
    await wait_released()


@pytest.mark.full_ring
@pytest.mark.parametrize(
    "options", [{"entries": 4}, {"buffer_count": 2, "buffer_size": 4096}, {"unwanted": "cqe_skip"}]
)
def test_detach_on_a_small_ring(options: dict[str, Any]) -> None:
    if "unwanted" in options:
        options = {"unwanted": gain_trio.Feature.CQE_SKIP}

    async def main() -> None:
        async def one() -> None:
            client, served = await open_pair()
            async with client:
                for number in range(10):
                    await client.send(pattern(10_000))
                    sock, queued = await served.detach()
                    served = Connection.from_socket(sock)
                    assert queued + await receive_exactly(served, 10_000 - len(queued)) == pattern(10_000), number
                await served.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        await wait_released()

    gain_trio.run(main, ring=gain_trio.RingOptions(**options))


def test_a_socket_that_was_detached_outlives_its_run() -> None:
    async def main() -> tuple[socket.socket, socket.socket]:
        client, served = await open_pair()
        return (await client.detach())[0], (await served.detach())[0]

    one, other = trio.run(main)
    with one, other:
        one.sendall(b"x")
        assert other.recv(10) == b"x"
        assert select.select([one], [], [], 0) == ([], [], [])


async def test_a_handler_may_detach() -> None:
    kept: list[socket.socket] = []

    async def keep(connection: Connection) -> None:
        kept.append((await connection.detach())[0])

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, keep, "tcp://127.0.0.1:0")
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            while server.active_connections or not kept:
                await trio.lowlevel.checkpoint()
            kept[0].sendall(b"open")
            assert await client.receive() == b"open"
            kept[0].close()
        assert server.statistics().handler_errors == 0
        nursery.cancel_scope.cancel()


# --- fd:// ---


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Sockets as systemd passes them, from a number on at which this process has room."""
    fresh = _activation.ActivationSockets()
    monkeypatch.setattr(_activation, "passed", fresh)
    for variable in _activation.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    first = 700
    moved = []
    for number, sock in enumerate(sockets):
        os.dup2(sock.fileno(), first + number)
        moved.append(socket.socket(fileno=first + number))
        sock.close()
    monkeypatch.setattr(_activation, "FIRST", first)
    yield moved
    for sock in moved:
        with contextlib.suppress(OSError):  # a listener has closed it
            sock.close()


def announce(monkeypatch: pytest.MonkeyPatch, count: int, names: str | None = None, pid: int | None = None) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
    monkeypatch.setenv("LISTEN_FDS", str(count))
    if names is not None:
        monkeypatch.setenv("LISTEN_FDNAMES", names)


async def check_and_close(listener: Listener) -> None:
    async with listener, await gain_trio.connect(f"tcp://127.0.0.1:{listener.local_address[1]}") as client:
        served = await listener.accept()
        await served.send(b"hello")
        assert await client.receive() == b"hello"
        await served.aclose()


async def test_a_descriptor_by_its_number(passed: list[socket.socket]) -> None:
    [listener] = await open_listeners(f"fd://{passed[0].fileno()}")
    assert listener.fileno() == passed[0].fileno()
    assert listener.local_address == passed[0].getsockname()
    assert not os.get_inheritable(listener.fileno())
    await check_and_close(listener)


async def test_all_that_systemd_passed(passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, 3)
    listeners = await open_listeners("fd://systemd")
    assert [listener.fileno() for listener in listeners] == [sock.fileno() for sock in passed]
    assert not any(variable in os.environ for variable in _activation.VARIABLES)
    with pytest.raises(OSError, match="opened before by another fd:// address") as caught:
        await open_listeners("fd://systemd")
    assert caught.value.errno == errno.EBUSY
    for listener in listeners:
        await check_and_close(listener)


@pytest.mark.parametrize("first", ["fd://700", "fd://systemd", "fd://systemd/web"])
@pytest.mark.parametrize("second", ["fd://700", "fd://systemd/web"])
async def test_no_descriptor_has_two_owners(
    passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    announce(monkeypatch, 3, "web:api:api")
    listeners = await open_listeners(first)
    with pytest.raises(
        OSError, match=f"cannot listen on {second}: .* opened before by another fd:// address"
    ) as caught:
        await open_listeners(second)
    assert caught.value.errno == errno.EBUSY
    for listener in listeners:
        await check_and_close(listener)


async def test_one_address_twice(passed: list[socket.socket]) -> None:
    with pytest.raises(OSError, match="opened before by another fd:// address"):
        await gain_trio.serve(print, ["fd://700", "fd://700"])
    assert not is_open(700), "what was opened for it is closed, as with other addresses, and once"


async def test_a_number_that_has_become_another_descriptors(
    passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program may open as many as it likes, one after the other; systemd has passed each of its own once."""
    announce(monkeypatch, 1)
    for address in ("fd://systemd", "fd://700", "fd://700"):
        [listener] = await open_listeners(address)
        await check_and_close(listener)
        assert not is_open(700)
        os.dup2(passed[1].fileno(), 700)
    with pytest.raises(OSError, match="opened before"):
        await open_listeners("fd://systemd")
    with pytest.raises(ValueError, match="pass_fds"):
        await open_listeners("fd://700", pass_fds=True)
    [listener] = await open_listeners("fd://700")  # which has let go of it
    await check_and_close(listener)
    with pytest.raises(OSError, match="opened before"):
        await open_listeners("fd://systemd")


async def test_of_systemds_sockets_those_that_are_left(
    passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, 3)
    [first] = await open_listeners("fd://701")
    others = await open_listeners("fd://systemd")
    assert [listener.fileno() for listener in others] == [700, 702]
    for listener in (first, *others):
        await check_and_close(listener)


async def test_by_name(passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, 3, "web:api:web")
    web = await open_listeners("fd://systemd/web")
    assert [listener.fileno() for listener in web] == [passed[0].fileno(), passed[2].fileno()]
    with pytest.raises(OSError, match="no socket of this name was passed; there are: api, web") as caught:
        await open_listeners("fd://systemd/other")
    assert caught.value.errno == errno.ENOENT
    api = await open_listeners("fd://systemd/api")
    assert [listener.fileno() for listener in api] == [passed[1].fileno()]
    for listener in web + api:
        await check_and_close(listener)


async def test_without_names_they_are_unknown(passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, 1)
    [listener] = await open_listeners("fd://systemd/unknown")
    await check_and_close(listener)


async def test_nothing_passed(passed: list[socket.socket]) -> None:
    with pytest.raises(
        OSError, match=r"cannot listen on fd://systemd: systemd has passed no sockets: LISTEN_PID is not"
    ):
        await open_listeners("fd://systemd")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LISTEN_PID": "1"}, r"passed to process 1 \(LISTEN_PID\), and this is \d+; .* exec"),
        ({"LISTEN_PID": "x"}, "LISTEN_PID is not a process: 'x'"),
        ({"LISTEN_FDS": "x"}, "LISTEN_FDS is not a number: 'x'"),
        ({"LISTEN_FDS": ""}, "LISTEN_FDS is not a number: ''"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES has 2 names for 3 descriptors"),
        ({"LISTEN_FDS": "100", "LISTEN_FDNAMES": ":".join("x" * 100)}, "this process has no descriptor 703"),
    ],
)
async def test_an_environment_that_is_wrong(
    passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    announce(monkeypatch, 3)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=message):
        await open_listeners("fd://systemd")
    assert "LISTEN_PID" in os.environ, "what was not used stays"


async def test_what_cannot_be_served_is_left_alone(
    passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = socket.socketpair()
    with one, other:
        os.dup2(one.fileno(), passed[1].fileno())
        announce(monkeypatch, 3, "a:b:c")
        with pytest.raises(ValueError, match=r"which is connected and does not listen: .*Accept=no"):
            await open_listeners("fd://systemd")
        [listener] = await open_listeners("fd://systemd/c")
        await check_and_close(listener)
        [listener] = await open_listeners("fd://systemd/a")
        await check_and_close(listener)


async def test_a_number_that_is_no_listening_socket() -> None:
    with pytest.raises(OSError, match="this process has no descriptor") as caught:
        await open_listeners(f"fd://{next_descriptor()}")
    assert caught.value.errno == errno.EBADF
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="is not a socket") as caught:
        await open_listeners(f"fd://{reader}")
    os.close(reader)
    os.close(writer)
    assert caught.value.errno == errno.ENOTSOCK
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="SOCK_DGRAM"):
            await open_listeners(f"fd://{sock.fileno()}")
        assert sock.getsockname()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backlog": 5}, "was set by the process that opened"),
        ({"mode": 0o600}, "mode, owner and group"),
        ({"reuse_port": True}, "port"),
    ],
)
async def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await open_listeners("fd://3", **options)


async def test_pass_fds_over_a_passed_socket(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    [listener] = await open_listeners(f"fd://{sock.fileno()}", pass_fds=True)
    sock.detach()
    async with listener, await gain_trio.connect(f"unix://{tmp_path}/s", pass_fds=True) as client:
        async with await listener.accept() as served:
            await client.send_fds(b"x", [0])
            data, [received] = await served.receive_fds(1, 1)
            assert data == b"x"
            os.close(received)


PROGRAM = """
import os, sys, trio, gain_trio

async def echo(connection):
    async for data in connection:
        await connection.send(data)

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo, sys.argv[1])
        print(*(port for _host, port in server.addresses), "LISTEN_FDS" in os.environ, flush=True)

gain_trio.run(main)
"""

LAUNCHER = """
import os, socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for number, sock in enumerate(sockets, 20):
    os.dup2(sock.fileno(), number)
for number in (0, 1):
    os.dup2(20 + number, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:api")
os.execv(sys.executable, [sys.executable, "-W", "error", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("address", "count"), [("fd://systemd", 2), ("fd://systemd/api", 1)])
def test_a_program_that_was_started_like_that(tmp_path: Path, address: str, count: int) -> None:
    program, launcher = tmp_path / "program.py", tmp_path / "launcher.py"
    program.write_text(PROGRAM)
    launcher.write_text(LAUNCHER)
    with running(launcher, program, address) as started:
        *ports, unset = started.line().split()
        assert (len(ports), unset) == (count, "False"), started.end()
        for port in ports:
            with socket.create_connection(("127.0.0.1", int(port)), TIMEOUT) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"


def test_the_command_line_serves_unix_sockets(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    with running("-m", "gain_trio", "serve", address, "--handler", "echo") as program:
        assert program.line() == f"serving echo on {address}; Ctrl-C stops it"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(tmp_path / "s"))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        program.interrupt()
        assert program.end() == (0, "", "")
    assert not os.path.lexists(tmp_path / "s")


def test_the_command_line_complains_of_activation_that_is_none() -> None:
    command = [sys.executable, "-m", "gain_trio", "serve", "fd://systemd", "--handler", "echo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode != 0
    assert "cannot listen on fd://systemd: systemd has passed no sockets" in done.stderr

"""The number of calls of each callback, for streams and datagrams, in each way of running callbacks."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from support.event_servers import AsyncRecorder, Behaviour, Recorder, dial, started
from support.pairs import pattern
from support.processes import read_exactly

from gain_trio.callbacks import Conn, ConnectionClosed, EventServer

pytestmark = pytest.mark.connections

DATA = os.urandom(512)
PAGE = 4096

ARCHITECTURES = ["reactor", "socket_sharding"]
MODES: dict[str, tuple[type[Recorder], dict[str, Any]]] = {
    "def": (Recorder, {}),
    "async def": (AsyncRecorder, {}),
    "threads": (Recorder, {"async_handler": True}),
    "pool": (Recorder, {"async_handler": True, "pool": True, "pool_size": 2}),
    "async def, with threads": (AsyncRecorder, {"async_handler": True}),
}


def options_for(architecture: str, workers: int = 4) -> dict[str, Any]:
    return {"workers": workers} if architecture == "reactor" else {"workers": workers, "architecture": architecture}


# --- the scenarios ---

Dial = Callable[[], socket.socket]


@attrs.frozen
class Scenario:
    behaviour: Callable[[], Behaviour]
    client: Callable[[Dial, Recorder], None]
    tcp: tuple[int, ...] | None = None
    """How often on_accept, on_read, on_write and on_close are called; None: not with this network."""
    udp: tuple[int, ...] | None = None


def take(conn: Conn, n: int) -> None:
    assert conn.next(n) == DATA


def answer(conn: Conn, n: int) -> None:
    assert n == len(DATA)
    data = conn.next(n)
    assert data == DATA
    assert conn.write(data) == len(DATA)


def answer_and_close(conn: Conn, n: int) -> None:
    assert conn.next(-1) == DATA
    assert conn.write(DATA) == len(DATA)
    conn.close()


def finds_nothing(conn: Conn, n: int) -> None:
    assert n == len(DATA)
    assert conn.next(-1) == b""


def finds_it_closed(conn: Conn, n: int) -> None:
    assert n == len(DATA)
    with pytest.raises(ConnectionClosed):
        conn.next(-1)


def reset_at_once(conn: Conn) -> None:
    conn.set_linger(0)
    conn.close()


def greet(conn: Conn) -> None:
    assert conn.write(DATA) == len(DATA)


def greet_and_close(conn: Conn) -> None:
    greet(conn)
    conn.close()


def set_everything(conn: Conn, *_: object) -> None:
    conn.set_linger(30)
    conn.set_read_buffer(2048)
    conn.set_write_buffer(2048)
    if isinstance(conn.local_addr, tuple) and conn.fd >= 0 and is_stream(conn):
        conn.set_keep_alive_period(60)
        conn.set_no_delay(True)


def is_stream(conn: Conn) -> bool:
    with socket.socket(fileno=os.dup(conn.fd)) as sock:
        return sock.type == socket.SOCK_STREAM


def write_once_more() -> Behaviour:
    def on_write(conn: Conn, _n: int) -> None:
        if not conn.context:
            conn.set_context("written")
            assert conn.write(DATA) == len(DATA)

    return {"on_read": answer, "on_write": on_write}


def only_sends(open_client: Dial, recorder: Recorder) -> None:
    client = open_client()
    client.sendall(DATA)
    recorder.wait_for(on_read=1)
    client.close()


def asks(open_client: Dial, _recorder: Recorder) -> None:
    client = open_client()
    client.sendall(DATA)
    assert read_exactly(client, len(DATA)) == DATA
    client.close()


def asks_until_the_end(open_client: Dial, recorder: Recorder) -> None:
    client = open_client()
    client.sendall(DATA)
    assert read_exactly(client, len(DATA)) == DATA
    if client.type == socket.SOCK_STREAM:
        assert client.recv(1) == b""
    recorder.wait_for(on_write=1)
    client.close()


def is_refused(open_client: Dial, _recorder: Recorder) -> None:
    with pytest.raises(ConnectionResetError):  # by the first call that comes after the reset
        with open_client() as client:
            client.recv(1)


def listens(open_client: Dial, _recorder: Recorder) -> None:
    client = open_client()
    assert read_exactly(client, len(DATA)) == DATA
    client.close()


def listens_until_the_end(open_client: Dial, _recorder: Recorder) -> None:
    client = open_client()
    assert read_exactly(client, len(DATA)) == DATA
    assert client.recv(1) == b""
    client.close()


def asks_once_for_two(open_client: Dial, recorder: Recorder) -> None:
    client = open_client()
    client.sendall(DATA)
    assert read_exactly(client, 2 * len(DATA)) == DATA + DATA
    recorder.wait_for(on_write=2)
    client.close()


def asks_and_shuts_down(open_client: Dial, recorder: Recorder) -> None:
    asks(open_client, recorder)
    assert recorder.server is not None
    recorder.server.async_shutdown()


SCENARIOS = {
    "just read": Scenario(lambda: {"on_read": take}, only_sends, (1, 1, 0, 1), (0, 1, 0, 0)),
    "read and write": Scenario(
        lambda: {"on_read": answer, "on_write": finds_nothing}, asks, (1, 1, 1, 1), (0, 1, 1, 0)
    ),
    "read, write and close": Scenario(
        lambda: {"on_read": answer_and_close, "on_write": finds_it_closed}, asks_until_the_end, (1, 1, 1, 1)
    ),
    "read, write and close of a datagram": Scenario(
        lambda: {"on_read": answer_and_close}, asks_until_the_end, udp=(0, 1, 1, 0)
    ),
    "close in on_accept": Scenario(
        lambda: {"on_accept": reset_at_once, "on_read": answer_and_close}, is_refused, (1, 0, 0, 1)
    ),
    "write in on_accept": Scenario(lambda: {"on_accept": greet}, listens, (1, 0, 1, 1)),
    "write and close in on_accept": Scenario(
        lambda: {"on_accept": greet_and_close}, listens_until_the_end, (1, 0, 1, 1)
    ),
    "an additional write in on_write": Scenario(write_once_more, asks_once_for_two, (1, 1, 2, 1)),
    "an additional datagram in on_write": Scenario(write_once_more, asks_once_for_two, udp=(0, 1, 2, 0)),
    "every property in every callback": Scenario(
        lambda: {
            "on_accept": set_everything,
            "on_read": lambda conn, n: (set_everything(conn), answer(conn, n)),
            "on_write": lambda conn, _n: (set_everything(conn), conn.close()),
        },
        asks_until_the_end,
        (1, 1, 1, 1),
        (0, 1, 1, 0),
    ),
    "shut down by a client": Scenario(lambda: {"on_read": answer}, asks_and_shuts_down, (1, 1, 1, 1), (0, 1, 1, 0)),
}

CASES = [
    pytest.param(network, scenario, expected, id=f"{network}, {name}")
    for name, scenario in SCENARIOS.items()
    for network, expected in (("tcp", scenario.tcp), ("udp", scenario.udp))
    if expected is not None
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("network", "scenario", "expected"), CASES)
def test_how_often_each_callback_is_called(
    network: str, scenario: Scenario, expected: tuple[int, ...], mode: str, architecture: str
) -> None:
    make, options = MODES[mode]
    recorder = make(scenario.behaviour())
    with started(recorder, f"{network}://127.0.0.1:0", **options_for(architecture), **options) as server:
        scenario.client(lambda: dial(server, network), recorder)
        recorder.wait_for(**dict(zip(("on_accept", "on_read", "on_write", "on_close"), expected, strict=True)))
    assert recorder.counts["on_start"] == 1
    assert recorder.numbers() == expected
    assert recorder.reasons == [None] * expected[3]


# --- many of them ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", ["tcp", "udp"])
@pytest.mark.parametrize(("clients", "workers"), [(1, 1), (8, 1), (16, 8)])
def test_many_clients_and_workers(network: str, clients: int, workers: int, mode: str, architecture: str) -> None:
    make, options = MODES[mode]

    def reply(conn: Conn, n: int) -> None:
        data = conn.next(n)
        assert data[:6] == b"cindex"
        conn.write(data[:10] + b"TESTpayload12345")

    def converse(index: int) -> None:
        with dial(server, network) as client:
            for _ in range(5):
                client.sendall(b"cindex%04dtestdata1234567890" % index)
                assert read_exactly(client, 26) == b"cindex%04dTESTpayload12345" % index
        done.append(index)

    done: list[int] = []
    recorder = make({"on_read": reply})
    with started(recorder, f"{network}://127.0.0.1:0", **options_for(architecture, workers), **options) as server:
        threads = [threading.Thread(target=converse, args=(index,)) for index in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == list(range(clients))
        recorder.wait_for(on_write=5 * clients)
    accepted = clients if network == "tcp" else 0
    assert recorder.numbers() == (accepted, 5 * clients, 5 * clients, accepted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_a_thousand_messages_of_one_client(network: str, architecture: str) -> None:
    message = os.urandom(128)

    def reply(conn: Conn, _n: int) -> None:
        buffer = bytearray(128)
        assert conn.read(buffer) == 128
        assert conn.write(buffer) == 128

    recorder = Recorder({"on_read": reply})
    with started(recorder, f"{network}://127.0.0.1:0", **options_for(architecture, 1)) as server:
        with dial(server, network) as client:
            for _ in range(1000):
                client.sendall(message)
                assert read_exactly(client, 128) == message
        recorder.wait_for(on_write=1000)
    assert recorder.counts["on_read"] == recorder.counts["on_write"] == 1000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_connections_are_counted(architecture: str) -> None:
    recorder = Recorder()
    with started(recorder, **options_for(architecture)) as server:
        assert server.active_connections == 0
        clients = [dial(server) for _ in range(10)]
        recorder.wait_for(on_accept=10)
        assert server.active_connections == 10
        for client in clients:
            client.close()
        recorder.wait_for(on_close=10)
    assert recorder.reasons == [None] * 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_the_addresses_seen(network: str, architecture: str) -> None:
    seen: list[tuple[Any, Any]] = []

    def look(conn: Conn, n: int) -> None:
        seen.append((conn.local_addr, conn.remote_addr))
        answer(conn, n)

    recorder = Recorder({"on_read": look})
    with started(recorder, f"{network}://127.0.0.1:0", **options_for(architecture)) as server:
        clients = [dial(server, network) for _ in range(10)]
        for client in clients:
            client.sendall(DATA)
            assert read_exactly(client, len(DATA)) == DATA
        expected = [(server.addresses[0], client.getsockname()) for client in clients]
        for client in clients:
            client.close()
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_a_large_read(mode: str, architecture: str) -> None:
    data = pattern(16 * PAGE)

    def reply(conn: Conn, _n: int) -> None:
        if conn.inbound_buffered == len(data):
            buffer = bytearray(len(data))
            assert conn.read(buffer) == len(data)
            assert conn.write(buffer) == len(data)

    make, options = MODES[mode]
    recorder = make({"on_read": reply})
    with started(recorder, **options_for(architecture), **options) as server:
        with dial(server) as client:
            client.sendall(data)
            assert read_exactly(client, len(data)) == data


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_many_reads(mode: str, architecture: str) -> None:
    page = os.urandom(PAGE)
    lengths: list[int] = []

    def read(conn: Conn, n: int) -> None:
        buffer = bytearray(PAGE)
        count = conn.read(buffer)
        assert count >= n, "on a machine that is busy, a large piece may be told in several"
        assert buffer[:count] == page[:count]
        lengths.append(count)

    make, options = MODES[mode]
    recorder = make({"on_read": read})
    with started(recorder, **options_for(architecture), **options) as server:
        with dial(server) as client:
            for number in range(1, 11):
                client.sendall(page)
                recorder.wait_for(on_read=number)
        recorder.wait_for(on_close=1)
    assert lengths == [PAGE] * 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_shutting_down_with_clients_connected(mode: str, architecture: str) -> None:
    make, options = MODES[mode]
    recorder = make({"on_read": answer})
    with started(recorder, **options_for(architecture), **options) as server:
        clients = [dial(server) for _ in range(10)]
        for client in clients:
            client.sendall(DATA)
            assert read_exactly(client, len(DATA)) == DATA
        recorder.wait_for(on_write=10)
        server.shutdown()
        assert recorder.numbers() == (10, 10, 10, 10), "shutdown() returns when all of it is over"
        assert not server.is_running
        assert server.active_connections == 0
        for client in clients:
            assert client.recv(1) == b""
            client.close()
    assert recorder.reasons == [None] * 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_shutting_down_twice(network: str, architecture: str) -> None:
    recorder = Recorder({"on_read": answer})
    with started(recorder, f"{network}://127.0.0.1:0", **options_for(architecture)) as server:
        with dial(server, network) as client:
            client.sendall(DATA)
            assert read_exactly(client, len(DATA)) == DATA
        server.shutdown()
        server.shutdown()
        server.async_shutdown()


def test_the_peers_of_datagrams_are_released() -> None:
    views: list[Conn] = []

    def keep(conn: Conn, n: int) -> None:
        views.append(conn)
        conn.write(conn.next(n))

    recorder = Recorder({"on_read": keep})
    with started(recorder, "udp://127.0.0.1:0", workers=4) as server:
        for number in itertools.count():
            with dial(server, "udp") as client:
                client.sendall(b"%d" % number)
                assert client.recv(100) == b"%d" % number
            assert server.active_connections == 0
            if number == 100:
                break
        recorder.wait_for(on_write=101)
    assert len({conn.remote_addr for conn in views}) > 1
    for conn in views:
        with pytest.raises(ConnectionClosed):
            conn.write(b"late")
        with pytest.raises(ConnectionClosed):
            conn.next()
        assert (conn.inbound_buffered, conn.outbound_buffered) == (0, 0)


BALANCERS = ["round_robin", "least_connections", "source_ip_hash"]


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param({"load_balancing": name}, id=name) for name in BALANCERS),
        *(
            pytest.param(options, id=" ".join(options))
            for options in (
                {"tcp_keep_alive": 60},
                {"socket_recv_buffer_size": 2048, "socket_send_buffer_size": 2048},
                {"architecture": "socket_sharding", "tcp_keep_alive": 60},
                {"architecture": "socket_sharding", "socket_recv_buffer_size": 2048, "socket_send_buffer_size": 2048},
                {"architecture": "socket_sharding", "cbpf": True},
            )
        ),
    ],
)
def test_options_of_the_server(options: dict[str, Any]) -> None:
    recorder = Recorder({"on_read": answer})
    with started(recorder, workers=8, **options) as server:
        clients = [dial(server) for _ in range(16)]
        for client in clients:
            client.sendall(DATA)
        for client in clients:
            assert read_exactly(client, len(DATA)) == DATA
            client.close()
        recorder.wait_for(on_close=16)
    assert recorder.numbers() == (16, 16, 16, 16)


@pytest.mark.parametrize("options", [{}, {"cbpf": True}, {"async_handler": True}], ids=["plain", "cbpf", "threads"])
def test_datagrams_are_distributed_over_sockets(options: dict[str, Any]) -> None:
    descriptors: set[int] = set()

    def look(conn: Conn, n: int) -> None:
        descriptors.add(conn.fd)
        conn.write(conn.next(n))

    recorder = Recorder({"on_read": look})
    with started(recorder, "udp://127.0.0.1:0", architecture="socket_sharding", workers=4, **options) as server:
        assert len(server.addresses) == 1
        for number in range(60):
            with dial(server, "udp") as client:
                client.sendall(b"%d" % number)
                assert client.recv(100) == b"%d" % number
        recorder.wait_for(on_write=60)
    assert len(descriptors) == 4 or "cbpf" in options


def test_what_a_server_of_datagrams_has_no_use_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with started(Recorder({}), "udp://127.0.0.1:0", cpu_affinity=True):
        assert "cpu_affinity=True has no effect on a server of datagrams" in caplog.text
    with pytest.raises(ValueError, match="the sockets of architecture='socket_sharding'"):
        EventServer(Recorder({}), cbpf=True).start("udp://127.0.0.1:0")


def test_on_start_gets_a_server_that_runs() -> None:
    seen: list[tuple[bool, int, int]] = []

    def look(server: EventServer) -> None:
        seen.append((server.is_running, server.active_connections, len(server.addresses)))

    with started(Recorder({"on_start": look})) as server:
        assert server.is_running
    assert seen == [(True, 0, 1)]
    assert not server.is_running

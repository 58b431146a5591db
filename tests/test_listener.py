"""Listeners: opening, accepting, closing."""

from __future__ import annotations

import asyncio
import copy
import errno
import gc
import os
import pickle
import random
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from support.descriptors import is_open, no_descriptors_left, open_descriptors
from support.pairs import PATIENCE, address_of, receive_all, until
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Listener, open_listeners
from gain_trio._transports._addresses._open_sockets import open_sockets
from gain_trio._transports._addresses._socket_options import SocketOptions
from gain_trio._transports._backends._ring_listener import QUEUE_HIGH, RingListener

pytestmark = [pytest.mark.connections, pytest.mark.features]

LOCAL = "tcp://127.0.0.1:0"


def client_socket(listener: Listener) -> socket.socket:
    """A client whose connection is made, though no task may have accepted it."""
    return socket.create_connection(listener.local_address[:2])


# --- opening ---


@pytest.mark.parametrize(
    ("address", "families", "hosts"),
    [
        (LOCAL, {socket.AF_INET}, {"127.0.0.1"}),
        ("tcp://[::1]:0", {socket.AF_INET6}, {"::1"}),
        ("tcp://localhost:0", {socket.AF_INET, socket.AF_INET6}, {"127.0.0.1", "::1"}),
        ("tcp://:0", {socket.AF_INET, socket.AF_INET6}, {"0.0.0.0", "::"}),
    ],
)
async def test_open_listeners(address: str, families: set[int], hosts: set[str]) -> None:
    listeners = await open_listeners(address)
    assert listeners
    assert {listener.local_address[0] for listener in listeners} <= hosts
    for listener in listeners:
        with socket.socket(fileno=os.dup(listener.fileno())) as sock:
            assert sock.family in families
            assert sock.getsockname() == listener.local_address
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            assert not os.get_inheritable(listener.fileno())
        assert listener.local_address[1] > 0
        assert str(listener.local_address[1]) in repr(listener)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.local_address[0], listener.local_address[0])
        client = await gain_trio.connect(f"tcp://{f'[{host}]' if ':' in host else host}:{listener.local_address[1]}")
        served = await listener.accept()
        assert served.remote_address == client.local_address
        await client.aclose()
        await served.aclose()
        await listener.aclose()


async def test_it_is_one_of_trios_listeners() -> None:
    [listener] = await open_listeners(LOCAL)
    received: list[bytes] = []

    async def handler(connection: Connection) -> None:
        received.append(await receive_all(connection))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        for _ in range(3):
            client = await gain_trio.connect(address_of(listener))
            await client.send(b"hello")
            await client.aclose()
        await until(lambda: len(received) == 3)
        nursery.cancel_scope.cancel()
    assert received == [b"hello"] * 3
    assert listener.fileno() == -1


async def test_reuse_port() -> None:
    [first] = await open_listeners(LOCAL, reuse_port=True)
    [second] = await open_listeners(address_of(first), reuse_port=True)
    assert first.local_address == second.local_address
    await first.aclose()
    await second.aclose()


async def test_a_busy_port_is_named() -> None:
    [listener] = await open_listeners(LOCAL)
    with pytest.raises(OSError, match=f"cannot listen on {address_of(listener)}: Address already in use") as caught:
        await open_listeners(address_of(listener))
    assert caught.value.errno == errno.EADDRINUSE
    assert isinstance(caught.value.__cause__, OSError)
    await listener.aclose()


class TwoAddresses(trio.abc.HostnameResolver):
    """Every name has an IPv6 and an IPv4 address: those of this machine."""

    async def getaddrinfo(self, _host: bytes | None, port: bytes | str | int | None, *_options: int) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)),
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:  # not asked for
        raise NotImplementedError


async def test_a_name_with_two_addresses() -> None:
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    listeners = await open_listeners("tcp://two.example:0")
    assert [listener.local_address[0] for listener in listeners] == ["::1", "127.0.0.1"]
    for listener in listeners:
        await listener.aclose()


def test_a_failure_closes_what_was_opened(no_descriptor_leak: None) -> None:
    """Of two addresses, the port of either is taken."""

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(TwoAddresses())
        for host in ("[::1]", "127.0.0.1"):
            [listener] = await open_listeners(f"tcp://{host}:0")
            async with listener:
                with pytest.raises(OSError, match="cannot listen on"):
                    await open_listeners(f"tcp://two.example:{listener.local_address[1]}")

    gain_trio.run(main)


class SocketWithoutIPv6(socket.socket):
    """The socket class of a machine without IPv6."""

    def __init__(self, family: int, *args: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *args)


async def test_a_name_may_have_addresses_that_the_machine_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", SocketWithoutIPv6)
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    [[sock]] = await open_sockets(["tcp://two.example:0"], SocketOptions())
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("addresses", [["tcp://[::1]:0"], [LOCAL, "tcp://[::1]:0"], ["tcp://[::1]:0", LOCAL]])
@pytest.mark.parametrize("shards", [None, 2])
async def test_an_address_that_the_machine_does_not_support(
    monkeypatch: pytest.MonkeyPatch, no_descriptor_leak: None, addresses: list[str], shards: int | None
) -> None:
    """Opening fails also if the name has another address that works, so that the program gets all that it requested."""
    monkeypatch.setattr(socket, "socket", SocketWithoutIPv6)
    with pytest.raises(OSError, match=r"supports none of the addresses of tcp://\[::1\]:0") as caught:
        await open_sockets(addresses, SocketOptions(), shards=shards)
    assert caught.value.errno == errno.EAFNOSUPPORT


async def test_an_address_of_somebody_else() -> None:
    with pytest.raises(OSError, match=r"cannot listen on tcp://192\.0\.2\.1:0"):
        await open_listeners("tcp://192.0.2.1:0")


async def test_a_host_without_address() -> None:
    with pytest.raises(socket.gaierror):
        await open_listeners("tcp://host.invalid:0")


async def test_backlog() -> None:
    for backlog in (0, -1):
        with pytest.raises(ValueError, match="backlog must be at least 1"):
            await open_listeners(LOCAL, backlog=backlog)
    [listener] = await open_listeners(LOCAL, backlog=1)
    async with listener:
        client = await gain_trio.connect(address_of(listener))
        await (await listener.accept()).aclose()
        await client.aclose()


@pytest.mark.parametrize("function", [open_listeners, gain_trio.connect])
@pytest.mark.parametrize("address", ["127.0.0.1:80", "tcp://127.0.0.1", "udp://127.0.0.1:80"])
async def test_a_bad_address(function: Callable[[str], Awaitable[object]], address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        await function(address)


FUNCTIONS: list[Callable[[], Awaitable[object]]] = [
    lambda: open_listeners(LOCAL),
    lambda: gain_trio.connect("tcp://127.0.0.1:1"),
    lambda: gain_trio.serve(receive_all, LOCAL),
]
NAMES = ["open_listeners", "connect", "serve"]


@pytest.mark.parametrize(("call", "name"), list(zip(FUNCTIONS, NAMES, strict=True)), ids=NAMES)
def test_outside_any_loop(call: Callable[[], Awaitable[object]], name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"gain_trio\.{name}\(\) .*no async library is running here"):
        call().__await__().__next__()


@pytest.mark.parametrize(("call", "name"), list(zip(FUNCTIONS, NAMES, strict=True)), ids=NAMES)
def test_in_asyncio(call: Callable[[], Awaitable[object]], name: str) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=rf"gain_trio\.{name}\(\) .*what is running here is asyncio"):
            await call()

    asyncio.run(main())


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_has_one_owner(duplicate: Callable[[Listener], object]) -> None:
    [listener] = await open_listeners(LOCAL)
    async with listener:
        with pytest.raises(TypeError, match="a listener cannot be copied or pickled"):
            duplicate(listener)
        with client_socket(listener):
            await (await listener.accept()).aclose()


# --- accepting ---


async def test_accept_is_a_checkpoint() -> None:
    [listener] = await open_listeners(LOCAL)
    async with listener:
        clients = [client_socket(listener) for _ in range(3)]
        for client in clients:
            with assert_checkpoints():
                served = await listener.accept()
            await served.aclose()
            client.close()


async def test_accept_by_several_tasks() -> None:
    [listener] = await open_listeners(LOCAL)
    accepted: dict[int, list[Connection]] = {0: [], 1: [], 2: []}

    async def accept(number: int) -> None:
        while True:
            accepted[number].append(await listener.accept())

    async with listener, trio.open_nursery() as nursery:
        for number in accepted:
            nursery.start_soon(accept, number)
        await wait_all_tasks_blocked()
        clients = []
        for count in range(1, 31):
            clients.append(client_socket(listener))
            if count % 3 == 0:
                await until(lambda: sum(map(len, accepted.values())) == len(clients))
        nursery.cancel_scope.cancel()
    served = [connection for connections in accepted.values() for connection in connections]
    assert {connection.remote_address for connection in served} == {client.getsockname() for client in clients}
    assert all(accepted.values()), "each of them got some"
    for connection in served:
        await connection.aclose()
    for client in clients:
        client.close()


async def test_each_of_several_waiting_tasks_gets_one() -> None:
    [listener] = await open_listeners(LOCAL)
    served: list[Connection] = []

    async def accept() -> None:
        served.append(await listener.accept())

    async with listener, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        clients = [client_socket(listener) for _ in range(5)]
    assert len({connection.remote_address for connection in served}) == 5
    for connection in served:
        await connection.aclose()
    for client in clients:
        client.close()


async def test_a_task_that_is_cancelled_while_it_accepts_leaves_the_others_waiting() -> None:
    """Whichever of them it is, also when a client arrives in the same step."""
    for cancelled in range(3):
        for wait in (True, False):
            [listener] = await open_listeners(LOCAL)
            served: list[Connection] = []
            scopes = [trio.CancelScope() for _ in range(3)]

            async def accept(scope: trio.CancelScope) -> None:
                with scope:
                    served.append(await listener.accept())

            async with listener, trio.open_nursery() as nursery:
                for scope in scopes:
                    nursery.start_soon(accept, scope)
                    await wait_all_tasks_blocked()
                clients = []
                if not wait:
                    clients.append(client_socket(listener))
                scopes[cancelled].cancel()
                if wait:
                    await wait_all_tasks_blocked()
                while len(clients) < 2:
                    clients.append(client_socket(listener))
                with trio.move_on_after(PATIENCE) as patience:
                    await until(lambda: len(served) == 2)
                assert not patience.cancelled_caught
                nursery.cancel_scope.cancel()
            assert {connection.remote_address for connection in served} == {c.getsockname() for c in clients}
            for connection in served:
                await connection.aclose()
            for client in clients:
                client.close()


@pytest.mark.full_ring
async def test_the_queue_is_bounded() -> None:
    """Beyond the mark, clients wait in the kernel's backlog and cost no descriptor."""
    [listener] = await open_listeners(LOCAL, backlog=4 * QUEUE_HIGH)
    async with listener:
        clients = [client_socket(listener)]
        served = [await listener.accept()]  # from now on the accept is armed
        before = len(open_descriptors())
        for _ in range(2 * QUEUE_HIGH):
            clients.append(client_socket(listener))
            await trio.lowlevel.checkpoint()
        queued = len(open_descriptors()) - before - 2 * QUEUE_HIGH
        assert QUEUE_HIGH <= queued <= QUEUE_HIGH + 10
        for client in clients[1:]:
            served.append(await listener.accept())
            client.close()
    for connection in served:
        await connection.aclose()
    clients[0].close()


@pytest.mark.full_ring
async def test_accept_while_the_full_queues_cancel_is_in_flight() -> None:
    """The queue is emptied in the step in which it was found full: the accept is armed again when the cancel is done."""
    [listener] = await open_listeners(LOCAL, backlog=4 * QUEUE_HIGH)
    assert isinstance(listener, RingListener)
    emptied = trio.Event()
    async with listener, trio.open_nursery() as nursery:
        clients = [client_socket(listener)]
        served: list[Connection] = [await listener.accept()]

        async def connect_later() -> None:
            await emptied.wait()
            await wait_all_tasks_blocked()
            clients.append(client_socket(listener))

        nursery.start_soon(connect_later)
        clients += [client_socket(listener) for _ in range(QUEUE_HIGH)]
        await until(lambda: len(listener._queue) >= QUEUE_HIGH)
        while (ready := listener._accept_ready()) is not None:
            served.append(ready)
        assert len(served) == 1 + QUEUE_HIGH
        assert listener._operation is not None
        emptied.set()
        with trio.fail_after(PATIENCE):
            served.append(await listener.accept())
    assert served[-1].remote_address == clients[-1].getsockname()
    for connection in served:
        await connection.aclose()
    for client in clients:
        client.close()


async def test_more_pending_clients_than_the_queue_holds() -> None:
    pending = 3 * QUEUE_HIGH
    [listener] = await open_listeners(LOCAL, backlog=4 * QUEUE_HIGH)
    async with listener:
        first = client_socket(listener)
        served = [await listener.accept()]  # from now on the accept is armed
        clients = [first, *(client_socket(listener) for _ in range(pending))]
        await wait_all_tasks_blocked()
        for _ in range(pending):
            with trio.fail_after(10):
                served.append(await listener.accept())
        assert {connection.remote_address for connection in served} == {client.getsockname() for client in clients}
        with trio.move_on_after(0):
            await listener.accept()
            pytest.fail("there is none left")
    for connection in served:
        await connection.aclose()
    for client in clients:
        client.close()


def test_randomly_cancelled_accepts_lose_nothing(no_descriptor_leak: None, resume_in_place: bool) -> None:
    """500 clients, told apart by what they send; accept is cancelled all the while."""
    random_ = random.Random(4712)
    count = 500

    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        received: list[int] = []
        scope = trio.CancelScope()
        cancelled = 0

        async def handle(connection: Connection) -> None:
            async with connection:
                received.append(int.from_bytes(await receive_all(connection), "big"))

        async def be_clients(numbers: range) -> None:
            for number in numbers:
                client = await gain_trio.connect(address_of(listener))
                await client.send(number.to_bytes(2, "big"))
                await client.aclose()
                if random_.random() < 0.5:
                    scope.cancel()

        async def cancel() -> None:
            while True:
                for _ in range(random_.randrange(1, 4)):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for start in range(0, count, 50):
                nursery.start_soon(be_clients, range(start, start + 50))
            nursery.start_soon(cancel)
            accepted = 0
            while accepted < count:
                with trio.move_on_after(random_.choice([0, 1e-5, 1])) as scope:
                    connection = await listener.accept()
                    accepted += 1
                    nursery.start_soon(handle, connection)
                cancelled += scope.cancelled_caught
            await until(lambda: len(received) == count)
            nursery.cancel_scope.cancel()
        await listener.aclose()
        assert sorted(received) == list(range(count))
        assert cancelled > 20

    gain_trio.run(main, resume_in_place=resume_in_place)


async def test_out_of_descriptors() -> None:
    """Every task in accept() gets the error, and can accept the connections when descriptors are free again."""
    [listener] = await open_listeners(LOCAL)
    failed: list[OSError] = []

    async def expect_failure() -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
            await listener.accept()
        failed.append(caught.value)

    async with listener:
        with socket.socket() as client:
            with no_descriptors_left():
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(expect_failure)
                    await wait_all_tasks_blocked()
                    client.connect(listener.local_address)
                with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                    await listener.accept()
            assert [error.errno for error in failed] == [errno.EMFILE] * 3
            served = await listener.accept()
            assert served.remote_address == client.getsockname()
            await served.aclose()


# --- closing ---


async def test_aclose_while_accepting() -> None:
    [listener] = await open_listeners(LOCAL)
    descriptor = listener.fileno()
    closed = 0

    async def expect_closed() -> None:
        nonlocal closed
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        closed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            await listener.aclose()
    assert closed == 3
    assert listener.fileno() == -1
    assert "closed" in repr(listener)
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with assert_checkpoints():
        await listener.aclose()
    await until(lambda: not is_open(descriptor))


async def accept_all(listener: Listener, accepted: list[Connection]) -> None:
    while True:
        try:
            accepted.append(await listener.accept())
        except trio.ClosedResourceError:
            return


@pytest.mark.parametrize("clients", [1, 3, 2 * QUEUE_HIGH])
async def test_a_connection_is_not_left_to_nobody_when_one_of_two_stops(clients: int) -> None:
    """The kernel wakes one of the two that accept on a socket: the one that is stopped before it has looked, perhaps."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as sock:
        [stops] = await open_listeners(f"fd://{os.dup(sock.fileno())}")
        [goes_on] = await open_listeners(f"fd://{os.dup(sock.fileno())}")
    accepted: list[Connection] = []
    async with trio.open_nursery() as nursery:
        for listener in (stops, goes_on):
            nursery.start_soon(accept_all, listener, accepted)
            await wait_all_tasks_blocked()
        sockets = [client_socket(goes_on) for _ in range(clients)]
        stops._stop()
        await until(lambda: len(accepted) == clients)
        sockets.append(client_socket(goes_on))
        await until(lambda: len(accepted) == clients + 1)
        await goes_on.aclose()
    await stops.aclose()
    for client in sockets:
        client.close()
    for connection in accepted:
        connection.abort()


async def test_after_close_nobody_can_connect() -> None:
    """Though an accept was in flight, which held the socket."""
    [listener] = await open_listeners(LOCAL)
    client = client_socket(listener)
    await (await listener.accept()).aclose()
    client.close()
    address = address_of(listener)
    await listener.aclose()
    await wait_all_tasks_blocked()
    with pytest.raises(OSError, match="connect"):
        await gain_trio.connect(address)


@pytest.mark.parametrize("queued", [True, False], ids=["queued here", "in the kernel's backlog"])
def test_close_resets_what_nobody_accepted(no_descriptor_leak: None, queued: bool) -> None:
    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        if queued:
            first = client_socket(listener)
            await (await listener.accept()).aclose()
            first.close()
        clients = [client_socket(listener) for _ in range(10)]
        await wait_all_tasks_blocked()
        await listener.aclose()
        await wait_all_tasks_blocked()
        for client in clients:
            with client, pytest.raises(ConnectionResetError):
                client.settimeout(10)
                client.recv(1)

    gain_trio.run(main)


def test_a_connection_that_arrives_while_closing(no_descriptor_leak: None) -> None:
    """The connection arrives in the same tick: the accept's completion finds the listener closed."""

    async def main() -> None:
        for _ in range(50):
            [listener] = await open_listeners(LOCAL)
            first = client_socket(listener)
            await (await listener.accept()).aclose()
            client = client_socket(listener)
            await listener.aclose()
            with client, pytest.raises(ConnectionResetError):
                await trio.lowlevel.checkpoint()
                await wait_all_tasks_blocked()
                client.settimeout(10)
                client.recv(1)
            first.close()

    gain_trio.run(main)


async def test_a_cancelled_aclose_closes() -> None:
    [listener] = await open_listeners(LOCAL)
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    assert scope.cancelled_caught
    assert listener.fileno() == -1


def test_a_listener_that_is_left_open_ends_with_the_run(no_descriptor_leak: None) -> None:
    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        kept.append(listener)
        clients.append(client_socket(listener))
        await (await listener.accept()).aclose()

    kept: list[Any] = []
    clients: list[socket.socket] = []
    gain_trio.run(main)
    for client in clients:
        client.close()

    async def close() -> None:
        await kept.pop().aclose()

    gain_trio.run(close)


def test_a_listener_that_is_dropped_leaves_no_descriptor() -> None:
    """Also none of a connection that was accepted ahead, and that no task has taken."""
    clients: list[socket.socket] = []

    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        clients.extend(client_socket(listener) for _ in range(3))
        await wait_all_tasks_blocked()

    before = open_descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the listening socket
        gain_trio.run(main)
        gc.collect()
    for client in clients:
        client.close()
    assert open_descriptors() == before

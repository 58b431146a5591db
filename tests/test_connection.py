"""A connection as an object: one of Trio's streams, its calls, its socket and its life."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import socket
import struct
import threading
import warnings
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import is_open
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    clog,
    open_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
    until_queued,
)
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.features]

# --- the class of those on the ring ---


@pytest.mark.full_ring
@pytest.mark.parametrize("name", ["receive", "send", "flush"])
async def test_methods_in_c_belong_to_the_class_itself(name: str) -> None:
    """The interpreter takes a shorter way to a method of the object's own class than to one that it inherits."""
    client, served = await open_pair()
    async with client, served:
        assert getattr(type(served), name).__objclass__ is type(served)


@pytest.mark.full_ring
def test_a_class_keeps_its_own_methods_when_it_adopts_the_others() -> None:
    from gain_trio import _fastpath

    class Own(_fastpath.Connection):
        def flush(self) -> None:  # type: ignore[override]
            """No method in C."""

    own = Own.__dict__["flush"]
    _fastpath.adopt_methods(Own)
    assert Own.__dict__["flush"] is own
    assert Own.__dict__["send"].__objclass__ is Own
    with pytest.raises(TypeError, match="made of this module's Connection or Endpoint"):
        _fastpath.adopt_methods(Connection)


# --- it is one of Trio's streams ---


async def open_clogged_pair() -> Pair:
    client, served = await open_pair()
    await clog(client)
    await clog(served)
    return client, served


async def test_trios_own_checks() -> None:
    with trio.fail_after(60):
        await check_half_closeable_stream(open_pair, open_clogged_pair)


async def test_trios_own_checks_the_other_way_round() -> None:
    async def served_first() -> Pair:
        client, served = await open_pair()
        return served, client

    with trio.fail_after(60):
        await check_half_closeable_stream(served_first, None)


async def test_tls(pair: Pair) -> None:
    client = trio.SSLStream(pair[0], client_context(), server_hostname="localhost")
    served = trio.SSLStream(pair[1], server_context(), server_side=True)
    data = pattern(MEBIBYTE)

    async def echo() -> None:
        async for received in served:
            await served.send_all(received)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(client.send_all, data)
        assert await receive_exactly(client, len(data)) == data
        await client.aclose()


# --- calls as objects ---


async def test_a_call_is_awaited_once(pair: Pair) -> None:
    client, served = pair
    sending = client.send(b"once")
    await sending
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await sending
    receiving = served.receive()
    assert await receiving == b"once"
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await receiving


async def test_a_call_that_waits_is_not_awaited_by_another_task(pair: Pair) -> None:
    client, served = pair
    call = served.receive()
    received: list[bytes] = []

    async def await_it() -> None:
        received.append(await call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(await_it)
        await wait_all_tasks_blocked()
        with trio.fail_after(5), pytest.raises(RuntimeError, match="awaited"):
            await call
        await client.send(b"for the first")
    assert received == [b"for the first"]


async def test_calls_as_tasks(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        nursery.start_soon(client.send, b"x")
    assert served.inbound_buffered == 0


async def test_one_receiver_at_a_time(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        for call in (served.receive, lambda: served.receive_into(bytearray(1)), served.receive_some):
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await call()
        await client.send(b"x")
    await client.send(b"y")
    assert await served.receive() == b"y"


async def test_one_sender_at_a_time(pair: Pair) -> None:
    client, served = pair
    await clog(client)
    first: list[Callable[[], Awaitable[None]]] = [
        lambda: client.send(b"x"),
        client.flush,
        client.wait_send_all_might_not_block,
    ]
    second = [*first, lambda: client.send_all(b"x"), client.send_eof]
    for blocked in first:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked)
            await wait_all_tasks_blocked()
            for call in second:
                with pytest.raises(trio.BusyResourceError, match="sending"):
                    await call()
            nursery.cancel_scope.cancel()
    assert await receive_exactly(served, 24 * MEBIBYTE) == bytes(24 * MEBIBYTE)
    await client.aclose()
    assert await served.receive() == b""  # no send that was cancelled over the high mark has left anything


async def test_sends_cancelled_over_the_high_mark_queue_nothing(pair: Pair) -> None:
    client, _served = pair
    await clog(client)
    before = client.outbound_buffered
    for data in (b"x" * 100_000, b"x", bytearray(100)):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, data)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert client.outbound_buffered == before


async def test_one_receives_while_another_sends(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        await served.send(b"the other direction")
        assert await client.receive() == b"the other direction"
        nursery.cancel_scope.cancel()


# --- the socket ---


async def test_addresses(pair: Pair) -> None:
    client, served = pair
    assert client.local_address == served.remote_address
    assert client.remote_address == served.local_address
    assert client.local_address[0] == "127.0.0.1"
    with socket.socket(fileno=os.dup(client.fileno())) as sock:
        assert sock.getsockname() == client.local_address
    assert client.local_address is client.local_address


async def test_remote_address_after_a_reset(pair: Pair) -> None:
    client, served = pair
    expected = client.remote_address
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with pytest.raises(trio.BrokenResourceError) as caught:
        _ = served.remote_address
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTCONN
    assert served.local_address == expected


async def test_an_address_that_was_asked_for_is_kept(pair: Pair) -> None:
    client, served = pair
    address, local = served.remote_address, served.local_address
    await served.aclose()
    assert (served.remote_address, served.local_address) == (address, local)


async def test_nodelay_is_on(pair: Pair) -> None:
    for connection in pair:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_socket_options(pair: Pair) -> None:
    client, _served = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
    with pytest.raises(OSError, match=os.strerror(errno.ENOPROTOOPT)):
        client.getsockopt(socket.SOL_SOCKET, 12345)
    assert is_open(client.fileno())


async def test_fileno_stays_the_connections(pair: Pair) -> None:
    client, _served = pair
    descriptor = client.fileno()
    assert descriptor >= 0
    assert not os.get_inheritable(descriptor)
    assert str(descriptor) in repr(client)
    await client.aclose()
    assert client.fileno() == -1
    await until(lambda: not is_open(descriptor))


async def test_context(pair: Pair) -> None:
    client, served = pair
    assert client.context is None
    client.context = {"any": "thing"}
    assert client.context == {"any": "thing"}
    assert served.context is None
    await client.aclose()
    assert client.context == {"any": "thing"}


async def test_no_other_attributes(pair: Pair) -> None:
    with pytest.raises(AttributeError):
        pair[0].user_data = 1  # type: ignore[attr-defined]


# --- life ---


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_has_one_owner(pair: Pair, duplicate: Callable[[Connection], object]) -> None:
    client, served = pair
    with pytest.raises(TypeError, match="a connection cannot be copied or pickled"):
        duplicate(client)
    gc.collect()  # nothing is there that would close the descriptor
    await client.send(b"whole")
    assert await served.receive() == b"whole"


@pytest.mark.parametrize("used", [False, True])
async def test_a_dropped_connection_warns_and_closes(used: bool) -> None:
    client, served = await open_pair()
    descriptor = served.fileno()
    if used:
        await client.send(b"x")
        assert await served.receive() == b"x"
        await served.send(b"y")
        await served.flush()
    with pytest.warns(ResourceWarning, match=r"unclosed <gain_trio\.Connection"):
        del served
        await trio.lowlevel.checkpoint()  # a step that the connection's own news resumed holds it
        gc.collect()
    await until(lambda: not is_open(descriptor))
    assert await receive_all(client) == (b"y" if used else b"")
    await client.aclose()


async def test_a_dropped_connection_in_a_cycle_warns_and_closes() -> None:
    client, served = await open_pair()
    descriptor = served.fileno()
    served.context = [served]
    with pytest.warns(ResourceWarning, match="unclosed"):
        del served
        gc.collect()
    await until(lambda: not is_open(descriptor))
    await client.aclose()


@pytest.mark.full_ring  # what looks again is in C; over sockets such a call fails, too, but with another error
def test_one_that_is_closed_just_when_a_call_begins_to_wait() -> None:
    """A first deadline spawns the keeper's task, and an instrument that observes that may close the connection."""

    class Closer(trio.abc.Instrument):
        connection: Connection | None = None

        def task_spawned(self, _task: trio.lowlevel.Task) -> None:
            if self.connection is not None:
                self.connection.abort()

    closer = Closer()

    async def main() -> None:
        client, served = await open_pair()
        served.read_deadline = trio.current_time() + PATIENCE
        closer.connection = served
        async with client:
            with trio.fail_after(PATIENCE / 2), pytest.raises(trio.ClosedResourceError):
                await served.receive()

    trio.run(main, instruments=[closer])


async def test_a_closed_connection_is_dropped_in_silence(pair: Pair) -> None:
    client, served = await open_pair()
    await client.aclose()
    await served.receive()
    await served.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del client, served
        gc.collect()


def test_after_the_run_it_is_closed() -> None:
    async def main() -> tuple[Pair, Awaitable[bytes]]:
        pair = await open_pair()
        await pair[0].send(b"queued")
        await until_queued(pair[1], 6)
        return pair, pair[1].receive()

    (client, served), call = gain_trio.run(main)
    for connection in (client, served):
        assert (connection.fileno(), connection.inbound_buffered, connection.outbound_buffered) == (-1, 0, 0)
        for ask in (connection.peek, connection.next, connection.discard, lambda: client.remote_address):
            with pytest.raises(trio.ClosedResourceError):
                ask()
        connection.abort()

    async def in_another_run() -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: call,
            served.receive,
            served.receive_some,
            lambda: served.send(b"x"),
            served.flush,
            served.send_eof,
        ]
        for again in calls:
            with pytest.raises(trio.ClosedResourceError):
                await again()
        await served.aclose()

    gain_trio.run(in_another_run)


async def test_only_in_its_thread(pair: Pair) -> None:
    client, served = pair

    def in_a_thread() -> None:
        for ask in (served.peek, served.next, served.discard, served.abort):
            with pytest.raises(RuntimeError, match="another thread"):
                ask()
        with pytest.raises(RuntimeError, match="another thread"):
            served.receive().__await__().__next__()

    await trio.to_thread.run_sync(in_a_thread)
    await client.send(b"untouched")
    assert await served.receive() == b"untouched"


async def test_only_in_its_run(pair: Pair) -> None:
    _client, served = pair

    def in_a_thread() -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="another thread"):
                await served.receive()

        gain_trio.run(main)

    await trio.to_thread.run_sync(in_a_thread)


async def test_not_outside_a_task(pair: Pair) -> None:
    client, served = pair

    class Caller(trio.abc.Instrument):
        error: BaseException | None = None

        def before_io_wait(self, _timeout: float) -> None:
            trio.lowlevel.remove_instrument(self)
            try:
                served.receive().__await__().__next__()
            except RuntimeError as error:
                self.error = error

    caller = Caller()
    trio.lowlevel.add_instrument(caller)
    await until(lambda: caller.error is not None)
    assert "must be called from async context" in str(caller.error)
    await client.send(b"x")
    assert await served.receive() == b"x"


def test_many_connections_leave_nothing(no_descriptor_leak: None) -> None:
    async def main() -> None:
        for _ in range(20):
            pairs = [await open_pair() for _ in range(10)]
            for client, served in pairs:
                await client.send(b"x")
                await served.receive()
            for client, served in pairs:
                await client.aclose()
                served.abort()

    gain_trio.run(main)


def test_the_end_of_the_run_closes_what_is_open(no_descriptor_leak: None) -> None:
    kept: list[Connection] = []

    async def main() -> None:
        for _ in range(10):
            kept.extend(await open_pair())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for connection in kept[::2]:
                    nursery.start_soon(connection.receive)
                await wait_all_tasks_blocked()
                scope.cancel()

    gain_trio.run(main)
    assert all(connection.fileno() == -1 for connection in kept)


def test_connections_in_threads() -> None:
    def in_a_thread() -> None:
        async def main() -> None:
            client, served = await open_pair()
            async with client, served:
                for _ in range(100):
                    await client.send(b"ping")
                    assert await served.receive() == b"ping"

        try:
            gain_trio.run(main)
        except BaseException as error:
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=in_a_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


async def test_connect_refused() -> None:
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    port = listener.local_address[1]
    await listener.aclose()
    with pytest.raises(OSError, match=str(port)):
        await gain_trio.connect(f"tcp://127.0.0.1:{port}")


def test_a_cancelled_connect_leaves_nothing(no_descriptor_leak: None) -> None:
    async def main() -> None:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener:
            with trio.CancelScope() as scope:
                scope.cancel()
                await gain_trio.connect(f"tcp://127.0.0.1:{listener.local_address[1]}")
            assert scope.cancelled_caught

    gain_trio.run(main)

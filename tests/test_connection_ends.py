"""The ends of a connection: half closing, closing, resets by the peer, and the end of the run."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    clog,
    open_pair,
    open_trio_pair,
    pattern,
    receive_all,
    until,
    until_queued,
)
from support.sockets import reset
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._transports._peer_progress import STALL

pytestmark = [pytest.mark.connections, pytest.mark.features]

# --- half closing ---


async def test_send_eof(pair: Pair) -> None:
    client, served = pair
    await client.send(b"the end")
    for _ in range(3):
        with assert_checkpoints():
            await client.send_eof()
    for call in (client.send, client.send_all):
        for data in (b"more", b""):
            with pytest.raises(trio.ClosedResourceError, match="send_eof"):
                await call(data)
    assert await receive_all(served) == b"the end"
    await served.send(b"answer")
    assert await client.receive() == b"answer"
    await served.send_eof()
    assert await client.receive() == b""
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_eof()


async def test_send_eof_flushes(pair: Pair) -> None:
    client, served = pair
    data = pattern(4 * MEBIBYTE)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send(data)
            await client.send_eof()
            assert client.outbound_buffered == 0

        nursery.start_soon(send)
        assert await receive_all(served) == data


async def test_a_cancelled_send_eof_is_none(pair: Pair) -> None:
    client, served = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_eof()
    assert scope.cancelled_caught
    await client.send(b"still open")
    assert await served.receive() == b"still open"


# --- closing ---


async def test_aclose_flushes() -> None:
    client, served = await open_pair()
    data = pattern(4 * MEBIBYTE)

    async def send() -> None:
        await client.send(data)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert await receive_all(served) == data
    await served.aclose()


async def test_aclose_is_bounded_and_resets(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    await clog(served)
    start = trio.current_time()
    await served.aclose()
    assert STALL <= trio.current_time() - start < 2 * STALL  # from when the kernel has moved the last of it
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await client.aclose()


async def test_a_cancelled_aclose_with_unsent_data_resets() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await client.aclose()


async def test_a_cancelled_aclose_with_nothing_unsent_ends_the_stream() -> None:
    client, served = await open_trio_pair()
    await served.send(b"all of it")
    await served.flush()
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.aclose()
    assert scope.cancelled_caught
    assert await receive_all(client) == b"all of it"
    await client.aclose()


async def test_aclose_while_a_receive_is_in_flight_sends_fin() -> None:
    client, served = await open_trio_pair()
    await wait_all_tasks_blocked()
    await served.aclose()
    assert await receive_all(client) == b""
    await client.aclose()


async def test_abort_resets() -> None:
    client, served = await open_trio_pair()
    await served.send(b"dropped or not")
    served.abort()
    served.abort()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await served.aclose()
    await client.aclose()


async def test_abort_ends_a_flushing_aclose() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        served.abort()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    await client.aclose()


async def test_a_second_aclose_does_not_disturb_the_first() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            await served.aclose()
        assert len(await receive_all(client)) == 24 * MEBIBYTE
    await client.aclose()


@pytest.mark.parametrize("round_", range(8))
async def test_aclose_while_a_sender_waits(round_: int) -> None:
    """Trio steps the two in either order; the sender is told, and what it sent is flushed."""
    client, served = await open_trio_pair()
    failed = False

    async def send() -> None:
        nonlocal failed
        with pytest.raises(trio.ClosedResourceError):
            await served.send(bytes(24 * MEBIBYTE))
        failed = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.start_soon(served.aclose)
        assert len(await receive_all(client)) == 24 * MEBIBYTE
    assert failed
    await client.aclose()


async def test_calls_after_close(pair: Pair) -> None:
    client, _served = pair
    with assert_checkpoints():
        await client.aclose()
    with assert_checkpoints():
        await client.aclose()
    waiting: list[Callable[[], Awaitable[object]]] = [
        client.receive,
        client.receive_some,
        lambda: client.receive_into(bytearray(1)),
        lambda: client.send(b"x"),
        lambda: client.send(b""),
        lambda: client.send_all(b"x"),
        client.flush,
        client.wait_send_all_might_not_block,
        client.send_eof,
        client.__anext__,
        client.messages().__anext__,
        client.messages(client.receive_line).__anext__,
        client.wait_data,
    ]
    for call in waiting:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    at_once: list[Callable[[], object]] = [
        client.peek,
        client.next,
        client.discard,
        lambda: client.remote_address,
        lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        lambda: client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for ask in at_once:
        with pytest.raises(trio.ClosedResourceError):
            ask()
    assert (client.fileno(), client.inbound_buffered, client.outbound_buffered) == (-1, 0, 0)
    assert "closed" in repr(client)
    client.abort()


async def end_by_aclose(connection: Connection) -> None:
    await connection.aclose()


async def end_by_abort(connection: Connection) -> None:
    connection.abort()


@pytest.mark.parametrize("end", [end_by_aclose, end_by_abort])
async def test_calls_in_progress_on_close(pair: Pair, end: Callable[[Connection], Awaitable[None]]) -> None:
    client, served = pair
    await clog(client)
    ended = 0

    async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal ended
        with pytest.raises(trio.ClosedResourceError):
            await call()
        ended += 1

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, client.receive)
            nursery.start_soon(expect_closed, client.flush)
            await wait_all_tasks_blocked()
            nursery.start_soon(end, client)
            await until(lambda: ended == 2)
            scope.cancel()
    assert ended == 2


@pytest.mark.parametrize("end", [end_by_aclose, end_by_abort])
async def test_a_call_right_after_close_finds_it_closed(
    pair: Pair, end: Callable[[Connection], Awaitable[None]]
) -> None:
    """The call raises ClosedResourceError, not BusyResourceError, though the call in progress has not ended yet."""
    client, served = pair

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        served.abort()
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()
        await end(client)


async def test_close_with_a_receive_from_memory_left(pair: Pair) -> None:
    client, served = pair
    await client.send(b"never taken")
    await until_queued(served, 5)
    call = served.receive()
    served.abort()
    with pytest.raises(trio.ClosedResourceError):
        await call
    assert served.inbound_buffered == 0


# --- errors from the world ---


async def test_a_reset_breaks_receiving(pair: Pair) -> None:
    client, served = pair
    client.abort()
    for call in (
        served.receive,
        served.receive_some,
        lambda: served.receive_into(bytearray(1)),
        served.__anext__,
        served.messages().__anext__,
        served.wait_data,
    ):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


async def test_what_arrived_before_a_reset_is_received(pair: Pair) -> None:
    client, served = pair
    await client.send(b"before")
    await until_queued(served, 6)
    client.abort()
    await wait_all_tasks_blocked()
    assert await served.receive(3) == b"bef"
    assert await served.receive() == b"ore"
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()


async def test_a_reset_breaks_sending(pair: Pair) -> None:
    client, served = pair
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as caught:
        while True:
            await served.send(b"x")
            await trio.lowlevel.checkpoint()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.EPIPE, errno.ECONNRESET)
    for call in (served.flush, served.wait_send_all_might_not_block, served.send_eof, lambda: served.send(b"")):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    assert served.outbound_buffered == 0


@pytest.mark.parametrize("call", ["send", "flush", "wait_send_all_might_not_block", "send_eof"])
async def test_a_reset_wakes_a_sender(call: str) -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:

        async def expect_broken() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await getattr(served, call)(*([b"x"] if call == "send" else []))
            assert isinstance(caught.value.__cause__, OSError)

        nursery.start_soon(expect_broken)
        await wait_all_tasks_blocked()
        reset(client)
    await served.aclose()


async def test_aclose_of_a_broken_connection(pair: Pair) -> None:
    client, served = pair
    await clog(served)
    client.abort()
    with trio.fail_after(STALL / 2):
        await served.aclose()


async def test_aclose_while_it_breaks() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        reset(client)


async def test_errors_are_new_each_time(pair: Pair) -> None:
    """No traceback grows, and no context is carried over."""
    client, served = pair
    client.abort()
    errors = []
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await served.receive()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[1].__context__ is None or isinstance(errors[1].__context__, OSError)


# --- the end of the run ---


@pytest.mark.parametrize("size", [10, 24 * MEBIBYTE])
def test_what_is_unsent_at_the_end_of_the_run_is_never_taken_for_everything(size: int) -> None:
    """The peer gets all of it, or a reset."""
    sent = pattern(size)

    async def main() -> tuple[Connection, socket.socket]:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0", marks=Marks(send_high=64 * MEBIBYTE))
        async with listener:
            peer = socket.create_connection(listener.local_address, timeout=PATIENCE)
            served = await listener.accept()
            await served.send(sent)
            return served, peer

    received = b""
    served, peer = trio.run(main)
    assert served.fileno() == -1
    with peer:
        try:
            while data := peer.recv(MEBIBYTE):
                received += data
        except ConnectionResetError:
            assert len(received) <= size
        else:
            assert received == sent

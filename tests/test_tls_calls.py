"""receive() and send() over TLS, in C on the ring while nothing is unusual: what is plain, what is not, how a call ends."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import signal
import ssl
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from support.certificates import client_context, open_tls_pair
from support.fuzz import cut, examples, given, st
from support.pairs import pattern, receive_all, receive_exactly, until
from support.tls_pairs import SMALL, TlsPair, encrypted, serving_tls, where
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._kernel import fastpath
from gain_trio._transports._tls._tls_connection import TlsConnection
from gain_trio._transports._tls._tls_traffic import ANSWERS, PIECE

pytestmark = pytest.mark.connections

RECORD = 16384


@pytest.mark.skipif(fastpath is None, reason="the compiled modules are missing")
async def test_the_calls_are_in_c(tls_pair: TlsPair) -> None:
    client, _ = tls_pair
    for call in (client.receive(), client.send(b"x")):
        assert type(call).__module__ == "gain_trio._fastpath"
        call.close()
    for name in ("_decrypt_below", "_take_exactly", "_send_nowait"):  # what callbacks need
        assert type(vars(TlsConnection)[name]).__name__ == "method_descriptor"


# --- data ---

SIZES = (1, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD, 65536 + 7, PIECE, PIECE + 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: [data[:5], data[5:]]])
async def test_data_of_any_size_arrives(tls_pair: TlsPair, size: int, kind: Any) -> None:
    client, served = tls_pair
    data = pattern(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, kind(data))
        assert await served.receive_exactly(size) == data
    assert not served.inbound_buffered


@pytest.mark.parametrize("sizes", [(5, 5), (1,) * 100, (RECORD, 1, RECORD), (10, 2 * RECORD, 10), (RECORD,) * 4])
async def test_many_records_are_one_answer(tls_pair: TlsPair, sizes: tuple[int, ...]) -> None:
    client, served = tls_pair
    messages = [pattern(size) for size in sizes]
    sent = encrypted(client, *messages)
    client._below._send_nowait(sent)
    await until(lambda: served._below.inbound_buffered == len(sent))
    received = b""
    while len(received) < sum(sizes):
        received += await served.receive()
    assert received == b"".join(messages)


@pytest.mark.parametrize("size", [100, RECORD, 3 * RECORD])
@pytest.mark.parametrize("cut", [1, 5, 50, -1])
async def test_a_record_may_come_in_parts(tls_pair: TlsPair, size: int, cut: int) -> None:
    client, served = tls_pair
    message = pattern(size)
    sent = encrypted(client, message)
    received = bytearray()

    async def receive() -> None:
        while len(received) < size:
            received.extend(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client._below.send(sent[:cut])
        await wait_all_tasks_blocked(0.01)
        await client._below.send(sent[cut:])
    assert received == message


async def exchange(client: Connection, served: Connection) -> None:
    """From the next record on the receiver in C knows where records end."""
    await client.send(b"first")
    assert await served.receive() == b"first"


@pytest.mark.full_ring
@pytest.mark.parametrize("size", [1, 100, RECORD, 2 * RECORD, 4 * RECORD + 1])
@pytest.mark.parametrize("place", [1, 2, 3, 4, 5, 6, 29, 16406, -1])
async def test_openssl_is_not_asked_for_a_part_of_a_record(tls_pair: TlsPair, size: int, place: int) -> None:
    client, served = tls_pair
    await exchange(client, served)
    message = pattern(size)
    sent = encrypted(client, message)
    arrives = min(place, len(sent) - 1) if place > 0 else len(sent) + place
    whole = 0  # bytes of whole records before the cut, by their headers
    while whole + 5 <= arrives and (end := whole + 5 + int.from_bytes(sent[whole + 3 : whole + 5], "big")) <= arrives:
        whole = end
    received = bytearray()

    async def receive() -> None:
        while len(received) < size:
            received.extend(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client._below.send(sent[:arrives])
        await until(lambda: served._engine._incoming.pending == arrives - whole)
        await wait_all_tasks_blocked()
        assert served._engine._incoming.pending == arrives - whole
        await client._below.send(sent[arrives:])
    assert received == message
    assert not served._engine._incoming.pending


@given(
    st.lists(st.integers(0, 3 * RECORD), min_size=1, max_size=5),
    st.lists(st.integers(1, 160_000), max_size=8),
)
@examples(100)
def test_records_may_be_cut_anywhere(sizes: list[int], places: list[int]) -> None:
    async def main() -> None:
        client, served = await open_tls_pair()
        async with client, served:
            await exchange(client, served)
            messages = [pattern(size) for size in sizes]
            sent = encrypted(client, *(message for message in messages if message))
            received = bytearray()

            async def send() -> None:
                for piece in cut(sent, places) if sent else ():
                    await client._below.send(piece)
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while len(received) < sum(sizes):
                    data = await served.receive()
                    assert data
                    received += data
            assert received == b"".join(messages)

    gain_trio.run(main)


@pytest.mark.parametrize("junk", [b"j", b"\x17\x02", b"\x17\x03\x03\xff\xff", b"\x17\x03\x03\x00\x05short"], ids=repr)
async def test_what_is_no_record_is_an_error_behind_the_data(tls_pair: TlsPair, junk: bytes) -> None:
    client, served = tls_pair
    await exchange(client, served)
    await client._below.send(encrypted(client, b"last") + junk.ljust(5, b"\0"))
    assert await served.receive() == b"last"
    with pytest.raises(trio.BrokenResourceError) as caught:
        await served.receive()
    assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_an_end_amidst_a_record_is_an_error(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    await client._below.send(encrypted(client, b"in two parts")[:-1])
    await client._below.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="close_notify"):
        await served.receive()


async def test_a_receive_that_is_cancelled_amidst_a_record_loses_nothing(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    sent = encrypted(client, b"in two parts")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await client._below.send(sent[:10])
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    await client._below.send(sent[10:])
    assert await served.receive() == b"in two parts"


async def test_a_receive_takes_no_more_than_it_is_asked_for(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"abcdef")
    assert await served.receive(4) == b"abcd"
    assert served.inbound_buffered == 2
    assert await served.receive(max_bytes=4) == b"ef"


@pytest.mark.parametrize("max_bytes", [0, -1, -(1 << 80)])
async def test_a_receive_of_nothing_is_refused(tls_pair: TlsPair, max_bytes: int) -> None:
    _, served = tls_pair
    with pytest.raises((ValueError, OverflowError)):
        await served.receive(max_bytes)


@pytest.mark.parametrize("data", [1, "text", None, memoryview(b"abcd")[::2]])
async def test_what_is_no_data_is_refused(tls_pair: TlsPair, data: Any) -> None:
    client, served = tls_pair
    with pytest.raises((TypeError, BufferError)):
        await client.send(data)
    await client.send(b"data")
    assert await served.receive() == b"data"


async def test_a_send_of_nothing_sends_nothing(tls_pair: TlsPair) -> None:
    client, _ = tls_pair
    sent = client.bytes_sent
    for nothing in tuple[Any, ...]((b"", bytearray(), [])):
        with assert_checkpoints():
            await client.send(nothing)
    await client.flush()
    assert client.bytes_sent == sent


# --- ends ---


async def test_the_last_data_comes_before_the_end(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    sent = encrypted(client, b"last")
    client._engine.close()
    client._below._send_nowait(sent + client._engine.take_outgoing())
    await until(lambda: served._below.inbound_buffered > len(sent))
    assert await served.receive() == b"last"
    assert await served.receive() == b""
    assert await served.receive() == b""


async def test_the_last_data_comes_before_an_error(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    sent = encrypted(client, b"last") + b"junk of some length"
    client._below._send_nowait(sent)
    await until(lambda: served._below.inbound_buffered == len(sent))
    assert await served.receive() == b"last"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await served.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.BrokenResourceError):
        await served.send(b"x")


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_a_call_of_a_closed_connection_is_refused(tls_pair: TlsPair, call: str) -> None:
    client, _ = tls_pair
    late = client.receive() if call == "receive" else client.send(b"x")
    client.abort()
    with pytest.raises(trio.ClosedResourceError):
        await late


@pytest.mark.parametrize("close", ["abort", "aclose"])
async def test_a_close_ends_the_receive_in_progress(tls_pair: TlsPair, close: str) -> None:
    client, _ = tls_pair
    refused = []

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive()
        refused.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        closed = getattr(client, close)()
        if closed is not None:
            await closed
    assert refused


async def test_a_deadline_leaves_the_connection_as_it_was(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    served.read_deadline = -1.0
    with pytest.raises(trio.TooSlowError):
        await served.receive()
    served.read_deadline = float("inf")
    await client.send(b"in time")
    assert await served.receive() == b"in time"


# --- turns ---


async def test_a_cancelled_send_sends_nothing(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send(b"never")
    assert scope.cancelled_caught
    await client.send(b"sent")
    assert await served.receive() == b"sent"


async def test_sends_that_wait_for_nothing_let_others_run(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    turns = 0
    done = False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, served)
        nursery.start_soon(others)
        for _ in range(5000):
            await client.send(b"x")
        assert turns > 1
        done = True
        await client.aclose()


@pytest.mark.parametrize("size", [1000, 8192])
async def test_a_peer_that_does_not_read_stops_a_sender(size: int) -> None:
    client, served = await open_tls_pair(marks=SMALL, client_marks=SMALL)
    async with client, served:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await client.send(bytes(size))
                sent += size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.1)
            assert SMALL.send_high <= client.outbound_buffered < SMALL.send_high + size + 1000
            before = sent
            with trio.move_on_after(0.2):
                await receive_all(served)
            assert sent > before
            nursery.cancel_scope.cancel()
        client.abort()


async def send_until_it_ends(client: Connection, error: type[BaseException], sent: list[bytes]) -> None:
    with pytest.raises(error):
        while True:
            sent.append(pattern(SMALL.send_high - len(sent) % 1000))  # one piece each
            await client.send(sent[-1])


@pytest.mark.parametrize("end", ["too slow", "cancelled"])
async def test_a_send_that_gives_up_the_wait_for_room_is_whole(mock_clock: MockClock, end: str) -> None:
    client, served = await open_tls_pair(marks=SMALL, client_marks=SMALL)
    sent: list[bytes] = []
    async with client, served:
        client.write_deadline = trio.current_time() + 5
        async with trio.open_nursery() as nursery:
            error = trio.TooSlowError if end == "too slow" else trio.Cancelled
            nursery.start_soon(send_until_it_ends, client, error, sent)
            await wait_all_tasks_blocked(0.05)
            assert client.outbound_buffered >= SMALL.send_high
            if end == "too slow":
                mock_clock.jump(6)
            else:
                nursery.cancel_scope.cancel()
        client.write_deadline = math.inf
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"the end")
            expected = b"".join(sent) + b"the end"
            assert await receive_exactly(served, len(expected)) == expected


@pytest.mark.parametrize("end", ["reset", "aclose", "abort", "close now"])
async def test_a_send_that_waits_for_room_ends_with_the_connection(end: str) -> None:
    client, served = await open_tls_pair(marks=SMALL, client_marks=SMALL)
    error = trio.BrokenResourceError if end == "reset" else trio.ClosedResourceError
    sent: list[bytes] = []
    async with client, served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_it_ends, client, error, sent)
            await wait_all_tasks_blocked(0.05)
            assert client.outbound_buffered >= SMALL.send_high
            if end == "reset":
                served.abort()
            elif end == "aclose":
                nursery.start_soon(client.aclose)
                expected = b"".join(sent)
                assert await receive_exactly(served, len(expected)) == expected
            elif end == "abort":
                client.abort()
            else:
                client._close_now()
        if end == "reset":
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.send(b"x")
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno in {errno.ECONNRESET, errno.EPIPE}


async def test_a_send_waits_for_room_more_than_once(tls_pair: TlsPair) -> None:
    """It goes on when the peer reads, and other senders are refused all the time."""
    client, served = tls_pair
    data = pattern(PIECE)
    done = False

    async def send() -> None:
        nonlocal done
        for _ in range(100):
            await client.send(data)
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        assert not done
        for call in (lambda: client.send(b"x"), client.flush, client.wait_send_all_might_not_block):
            with pytest.raises(trio.BusyResourceError):
                await call()
        for _ in range(100):
            assert await receive_exactly(served, PIECE) == data
    assert done


async def test_a_receiver_that_waits_for_room_has_its_turn_beside_a_sender(tls_pair: TlsPair) -> None:
    """TLS has answered a lot, so that a receive looks first whether the peer reads; the peer does."""
    client, served = tls_pair
    data = pattern(PIECE)

    async def send() -> None:
        while True:
            await client.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        client._answered = ANSWERS
        nursery.start_soon(receive_all, served)
        await served.send(b"heard")
        assert await client.receive_exactly(5) == b"heard"
        nursery.cancel_scope.cancel()


async def test_two_tasks_do_not_receive_at_once(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        for call in (served.receive, lambda: served._fill(1), lambda: served._wait_change(0)):
            with pytest.raises(trio.BusyResourceError):
                await call()
        await client.send(b"x")


# --- how a call ends ---


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_a_call_whose_await_was_forgotten_is_named(tls_pair: TlsPair, call: str) -> None:
    client, served = tls_pair
    with pytest.warns(RuntimeWarning, match=rf"^coroutine 'TlsConnection.{call}' was never awaited") as caught:
        client.receive() if call == "receive" else client.send(b"x")
    assert [warning.filename for warning in caught] == [__file__]
    await client.send(b"y")
    assert await served.receive() == b"y"


async def test_an_awaited_call_is_not_awaited_again(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    send = client.send(b"once")
    await send
    receive = served.receive()
    assert await receive == b"once"
    for call in (send, receive):
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await call


async def test_a_call_that_a_task_waits_in_is_not_awaited_by_another(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    call = served.receive()
    received = []

    async def receive() -> None:
        received.append(await call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="being awaited"):
            await call
        await client.send(b"for the first")
    assert received == [b"for the first"]


@pytest.mark.full_ring  # over sockets Trio would not know which task it is that waits
@pytest.mark.parametrize("end", ["close", "throw", "drop"])
async def test_a_call_that_is_driven_by_hand_leaves_the_connection_free(tls_pair: TlsPair, end: str) -> None:
    client, served = tls_pair
    call: Any = served.receive()
    call.send(None)  # it waits
    if end == "close":
        call.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            call.throw(KeyError("thrown"))
    del call
    await client.send(b"x")
    assert await served.receive() == b"x"


@pytest.mark.parametrize("end", ["close", "throw"])
async def test_a_call_ends_before_it_begins(tls_pair: TlsPair, end: str) -> None:
    client, served = tls_pair
    calls: list[Any] = [served.receive(), served.send(b"never")]
    for call in calls:
        if end == "close":
            call.close()
        else:
            with pytest.raises(KeyError):
                call.throw(KeyError("thrown"))
    await client.send(b"x")
    assert await served.receive() == b"x"
    await served.send(b"y")
    assert await client.receive() == b"y"


@pytest.mark.parametrize("end", ["send", "throw", "close"])
async def test_a_call_is_not_driven_from_inside_itself(end: str) -> None:
    context: Any = client_context()
    calls: list[Any] = []
    refused = []

    def called_back(*_: object) -> None:
        while calls:
            call = calls.pop()
            with pytest.raises((RuntimeError, ValueError)) as caught:
                call.close() if end == "close" else getattr(call, end)(None if end == "send" else KeyError("thrown"))
            refused.append(caught.type)

    async def echo(connection: Connection) -> None:
        await connection.send(await connection.receive())

    context._msg_callback = called_back  # OpenSSL calls it for each record
    async with serving_tls(echo) as server:
        client = await gain_trio.connect(where(server), ssl_context=context)
        async with client:
            call = client.send(b"once")
            calls.append(call)
            await call
            assert len(refused) == 1
            assert await client.receive() == b"once"


class Unwanted(Exception):
    """What the handler of a signal raises."""


def signalling(is_armed: list[bool]) -> Any:
    """Make a callback for each record that sends this process a signal, once armed, and runs no Python code behind that.

    So the handler runs where :mod:`ssl` looks for signals: when OpenSSL has decrypted.
    """

    def converter(value: Callable[[], int]) -> Any:
        return type("Converter", (), {"from_param": staticmethod(lambda _: ctypes.c_int(value()))})

    kill = ctypes.CDLL(None).kill
    kill.argtypes = [
        converter(os.getpid),
        converter(lambda: signal.SIGUSR1 if is_armed and is_armed.pop() else 0),
        *(converter(lambda: 0) for _ in range(4)),
    ]
    return kill


@pytest.mark.parametrize("raised", [Unwanted, TimeoutError])
@pytest.mark.parametrize("way", ["receive", "change"])
async def test_an_exception_of_a_signals_handler_leaves_no_hole(way: str, raised: type[Exception]) -> None:
    """Where it has cost bytes, none come behind them."""
    context: Any = client_context()
    is_armed: list[bool] = []
    context._msg_callback = signalling(is_armed)

    def handler(*_: object) -> None:
        raise raised

    async def speak(connection: Connection) -> None:
        assert await connection.receive() == b"?"
        for data in (b"lost", b"never seen"):
            await connection.send(data)
            await connection.flush()
        await trio.sleep_forever()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        async with serving_tls(speak) as server:
            client = await gain_trio.connect(where(server), ssl_context=context)
            async with client:
                await client.send(b"?")
                is_armed.append(True)
                with pytest.raises(raised):
                    if way == "receive":
                        await client.receive()
                    else:
                        await cast("TlsConnection", client)._wait_change(0)
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await client.receive()
                assert isinstance(caught.value.__cause__, InterruptedError)
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- another engine ---


async def test_a_program_may_have_an_ssl_object_of_its_own() -> None:
    """It is called for every record, as by Python's own servers."""
    calls: list[str] = []

    class Counted(ssl.SSLObject):
        def read(self, *arguments: Any) -> Any:
            calls.append("read")
            return super().read(*arguments)

        def write(self, *arguments: Any) -> int:
            calls.append("write")
            return super().write(*arguments)

    context = client_context()
    context.sslobject_class = Counted

    async def echo(connection: Connection) -> None:
        while data := await connection.receive():
            await connection.send(data)

    async with serving_tls(echo) as server:
        client = await gain_trio.connect(where(server), ssl_context=context)
        async with client:
            await client.send(b"through an object of the program's own")
            assert await client.receive() == b"through an object of the program's own"
    assert calls.count("write") == 1
    assert "read" in calls


async def test_what_is_written_while_another_task_waits_for_a_change_is_sent() -> None:
    client, served = await open_tls_pair(marks=Marks(receive_high=65536, receive_low=4096, send_high=8192))
    async with client, served, trio.open_nursery() as nursery:
        changes: list[int] = []

        async def wait() -> None:
            changes.append(await served._wait_change(0))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), b"", bytes(PIECE + 1)):
            served._send_nowait(data)
            assert await client.receive_exactly(len(data)) == bytes(data)
            await served.flush()
        for wrong in ("text", 1):
            with pytest.raises(TypeError):
                served._send_nowait(wrong)  # type: ignore[arg-type]  # a mistake
        assert changes == []
        await client.send(b"end")
    assert changes == [3]


async def test_a_part_of_what_has_arrived_is_taken() -> None:
    client, served = await open_tls_pair()
    async with client, served:
        await client.send(b"abcdef")
        assert await served._wait_change(0) == 6
        assert served._take_exactly(7) is None
        assert served._take_exactly(2) == b"ab"
        assert served._take_exactly(4) == b"cdef"
        assert served._take_exactly(0) == b""
        assert served._take_exactly(-1) == b""
        with pytest.raises(TypeError):
            served._take_exactly("2")  # type: ignore[arg-type]  # a mistake


async def test_no_number_that_is_too_large_takes_all() -> None:
    client, served = await open_tls_pair()
    async with client, served:
        await client.send(b"abcdef")
        assert await served._wait_change(0) == 6
        for large in (sys.maxsize + 1, 1 << 64, (1 << 64) + 6):
            with pytest.raises(OverflowError):
                served._take_exactly(large)
        assert served._take_exactly(sys.maxsize) is None
        assert served._take_exactly(6) == b"abcdef"


async def test_plain_calls_and_others_go_on_from_each_other() -> None:
    client, served = await open_tls_pair(marks=Marks(receive_high=65536, receive_low=4096, send_high=65536))
    async with client, served:
        for number in range(50):
            await client.send(b"%d\n" % number)
            assert await served.receive_line() == b"%d" % number
            await client.send(b"%d" % number)
            assert await served.receive() == b"%d" % number
            await client.send([b"a", b"b%d" % number])
            assert await served._wait_change(0) == len(b"ab%d" % number)
            assert served.next() == b"ab%d" % number
            await served.send(b"back")
            assert await client.receive_some(2) == b"ba"
            assert await client.receive() == b"ck"

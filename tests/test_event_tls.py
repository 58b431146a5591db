"""The calls of a conn over TLS, in which the connection refuses, breaks or lets a step of OpenSSL call the program."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.event_runs import called, serving_events
from support.event_servers import Recorder, WritesUntilBroken
from support.pairs import MEBIBYTE, PATIENCE, receive_all

import gain_trio
from gain_trio.callbacks import Conn, ConnectionClosed, EventServer, ShortBuffer, SlowReader

pytestmark = pytest.mark.connections


async def dial(server: EventServer) -> gain_trio.Connection:
    return await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}", ssl_context=client_context())


async def test_taking_all_a_part_or_more_than_there_is() -> None:
    taken: list[bytes] = []

    def on_read(conn: Conn, n: int) -> None:
        assert n == 10
        with pytest.raises(ShortBuffer, match="11 bytes were asked for, and 10 have arrived"):
            conn.next(11)
        for count in (3, True, 0):
            taken.append(conn.next(count))
        taken.extend((conn.next(), conn.next(-5)))
        with pytest.raises(TypeError):
            conn.next("1")  # type: ignore[arg-type]
        conn.write(b"done")

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, ssl_context=server_context()) as server:
        client = await dial(server)
        await client.send(b"0123456789")
        assert await client.receive_exactly(4) == b"done"
        await client.aclose()
        await called(recorder, "on_close")
    assert taken == [b"012", b"3", b"456789", b"", b""]
    assert not recorder.unexpected


async def test_a_conn_that_is_closed_refuses() -> None:
    def on_read(conn: Conn, _n: int) -> None:
        assert conn.write(b"bye") == 3
        conn.close()
        for call in (conn.next, lambda: conn.write(b"late"), lambda: conn.write(bytearray(b"late"))):
            with pytest.raises(ConnectionClosed):
                call()

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, ssl_context=server_context()) as server:
        client = await dial(server)
        await client.send(b"?")
        assert await receive_all(client) == b"bye"
        await client.aclose()
        await called(recorder, "on_close")
    assert not recorder.unexpected


async def test_writing_to_one_that_was_reset_is_no_error() -> None:
    recorder = WritesUntilBroken()
    async with serving_events(recorder, ssl_context=server_context()) as server:
        client = await dial(server)
        await client.send(b"?")
        assert await client.receive() != b""
        client.abort()
        await called(recorder, "on_close")
    assert recorder.counts["on_read"] == 1
    assert not recorder.unexpected


async def test_the_limit_holds_for_what_is_encrypted() -> None:
    totals: list[int] = []

    def flood(conn: Conn, n: int) -> None:
        conn.discard(n)
        written = 0
        with pytest.raises(SlowReader):
            while True:
                written += conn.write(bytes(65536))
        totals.append(written)

    recorder = Recorder({"on_read": flood})
    options: dict[str, Any] = {"write_limit": MEBIBYTE, "write_policy": "raise", "ssl_context": server_context()}
    async with serving_events(recorder, **options) as server:
        client = await dial(server)
        for turn in range(1, 3):  # it goes on when the kernel has made room
            await client.send(b"?")
            await called(recorder, "on_read", turn)
            assert await client.receive_exactly(totals[-1]) == bytes(totals[-1])
        await client.aclose()
        await called(recorder, "on_close")
    assert not recorder.unexpected


async def test_another_thread_hands_over_what_it_writes() -> None:
    def on_read(conn: Conn, n: int) -> None:
        data = conn.next(n)
        thread = threading.Thread(target=lambda: written.append(conn.write(data)))
        thread.start()
        thread.join(PATIENCE)

    written: list[int] = []
    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, ssl_context=server_context()) as server:
        client = await dial(server)
        await client.send(b"echo")
        assert await client.receive_exactly(4) == b"echo"
        await client.aclose()
        await called(recorder, "on_close")
    assert written == [4]
    assert not recorder.unexpected


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_step_of_openssl_may_end_the_connection(how: str) -> None:
    """A step of OpenSSL's that encrypts an answer, or decrypts what it answers, calls the program, which ends the conn."""
    conns: list[Conn] = []
    ended: list[str] = []

    def message(
        _object: object, direction: str, _version: object, content_type: Any, _message: object, _data: object
    ) -> None:
        if conns and not ended and content_type is ssl._TLSContentType.HEADER:  # type: ignore[attr-defined]
            ended.append(direction)
            if how == "abort":
                conns[0].set_linger(0)
            conns[0].close()

    context = server_context()
    context._msg_callback = message  # type: ignore[attr-defined]

    def on_read(conn: Conn, n: int) -> None:
        data = conn.next(n)
        conns.append(conn)
        assert conn.write(data) == n

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, ssl_context=context) as server:
        client = await dial(server)
        await client.send(b"echo")
        with trio.fail_after(PATIENCE):
            try:
                await receive_all(client)
            except trio.BrokenResourceError:
                assert how == "abort"
        await called(recorder, "on_close")
        client.abort()
    assert ended == ["write"]

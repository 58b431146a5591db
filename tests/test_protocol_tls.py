"""Protocols of asyncio's shape over TLS."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trio
import trio.testing
from support.certificates import open_tls_pair
from support.pairs import fill_kernel, receive_all, receive_exactly
from support.protocols import Echo, Recorder, Running, running

pytestmark = pytest.mark.connections


async def test_over_tls() -> None:
    class Curious(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            info = transport.get_extra_info
            assert info("cipher") == info("ssl_object").cipher()
            assert isinstance(info("sslcontext"), ssl.SSLContext)
            assert info("compression", "default") is None
            assert info("peercert") is None
            assert info("ssl_object").version() == "TLSv1.3"
            with pytest.raises(AttributeError, match="no 'write'"):
                info("ssl_object").write(b"no")
            assert not self.transport.can_write_eof()
            with pytest.raises(NotImplementedError):
                self.transport.write_eof()

        def eof_received(self) -> bool | None:
            super().eof_received()
            return True  # which has no effect with TLS

    protocol = Curious()
    async with running(protocol, open_tls_pair) as run:
        assert "ProtocolTransport open" in repr(run.transport)
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.client.send, bytes(4 << 20))
            await receive_exactly(run.client, 4 << 20)
        await run.client.aclose()
        await run.ended.wait()
        assert run.error is None
    assert (protocol.names[0], protocol.names[-2:]) == ("made", ["eof", "lost"])
    assert protocol.calls[-1] == ("lost", None)


@pytest.mark.parametrize("high", [None, 0, 1 << 20])
async def test_over_tls_writing_is_resumed(high: int | None) -> None:
    """Whatever a protocol that obeys has written before it was told to pause: it writes nothing that could be told of."""

    class Obeys(Recorder):
        left = 24 << 20

        def resume_writing(self) -> None:
            super().resume_writing()
            self.go_on()

        def go_on(self) -> None:
            while self.left and self.names[-1] != "pause":
                self.left -= 1 << 14
                self.transport.write(bytes(1 << 14))
            if not self.left:
                self.transport.close()

    protocol = Obeys()
    async with running(protocol, open_tls_pair) as run:
        run.transport.set_write_buffer_limits(high)
        protocol.go_on()
        assert protocol.names[-1] == "pause"
        assert len(await receive_all(run.client)) == 24 << 20
        await run.ended.wait()
    assert protocol.calls[-1] == ("lost", None)


async def test_over_tls_a_close_is_told_from_a_cut() -> None:
    """close_notify distinguishes the two; without it the end would be an error for the peer."""
    protocol = Echo()
    async with running(protocol, open_tls_pair) as run:
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        run.transport.write(b", and that is all")
        run.transport.close()
        assert await receive_all(run.client) == b", and that is all"
        await run.ended.wait()
        assert run.error is None
    assert protocol.calls[-1] == ("lost", None)


async def test_over_tls_the_peers_end_is_answered_by_one() -> None:
    protocol = Echo()
    async with running(protocol, open_tls_pair) as run:
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        run.client._close_notify()
        assert await receive_all(run.client._below)  # encrypted as it is, it can be nothing else
        await run.ended.wait()
        assert run.error is None
    assert protocol.names[-2:] == ["eof", "lost"]


async def test_over_tls_a_peer_that_does_not_take_the_end_is_waited_for_as_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """close_notify cannot leave, though all that was written could; the 5 seconds are for both."""
    protocol = Recorder()
    client, connection = await open_tls_pair()
    run = Running(client, protocol)
    await fill_kernel(connection._below)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run, connection)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        run.transport.close()
        await run.ended.wait()
        assert trio.current_time() - begun == pytest.approx(5)
    assert isinstance(protocol.calls[-1][1], TimeoutError)
    assert isinstance(run.error, trio.BrokenResourceError)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client._below)
    client.abort()


async def test_over_tls_an_abort_is_no_close() -> None:
    protocol = Recorder()
    async with running(protocol, open_tls_pair) as run:
        run.transport.abort()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(run.client)
        await run.ended.wait()
        assert run.error is None
    assert protocol.calls[-1] == ("lost", None)

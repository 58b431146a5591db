"""A large piece of TLS goes to the kernel as soon as it is encrypted: which pieces, and what goes before and behind them."""

from __future__ import annotations

import pytest
import trio
from support.pairs import pattern, receive_all
from support.tls_pairs import TlsPair

from gain_trio._transports._tls._tls_connection import TlsConnection

pytestmark = pytest.mark.connections

RECORD = 16384
SMALL = 100
LARGE = 40_000


async def exchange(client: TlsConnection, served: TlsConnection) -> None:
    """Nothing is on its way then: the connection's operations begin anew."""
    for sender, receiver in ((client, served), (served, client)):
        await sender.send(b"first")
        assert await receiver.receive() == b"first"
        await sender.flush()


async def ended(sender: TlsConnection, receiver: TlsConnection) -> bytes:
    """All that the receiver gets until the sender's end."""
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.aclose)
        received.append(await receive_all(receiver))
    return received[0]


@pytest.mark.parametrize("size", [RECORD // 2, RECORD, LARGE])
async def test_a_large_piece_is_sent_when_send_returns(tls_pair: TlsPair, size: int) -> None:
    client, served = tls_pair
    await exchange(client, served)
    sent = client.bytes_sent
    await client.send(pattern(size))
    assert client.outbound_buffered == 0
    assert client.bytes_sent > sent + size
    assert await served.receive_exactly(size) == pattern(size)


async def test_a_large_piece_is_sent_when_a_write_without_waiting_returns(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    assert client._send_nowait(pattern(RECORD)) == 0
    assert await served.receive_exactly(RECORD) == pattern(RECORD)


async def test_what_was_sent_before_a_large_piece_goes_before_it(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    head, body, tail = pattern(SMALL), pattern(RECORD), pattern(SMALL + 1)
    client._send_nowait(head)
    assert client._send_nowait(body) == 0
    client._send_nowait(tail)
    assert await ended(client, served) == head + body + tail


@pytest.mark.full_ring
@pytest.mark.parametrize("size", [SMALL, RECORD // 4, 4 * RECORD * 4])
async def test_a_small_and_a_very_large_piece_wait_for_the_end_of_the_batch(tls_pair: TlsPair, size: int) -> None:
    client, served = tls_pair
    await exchange(client, served)
    assert client._send_nowait(pattern(size)) > size
    assert await served.receive_exactly(size) == pattern(size)


@pytest.mark.full_ring
async def test_a_large_piece_behind_a_very_large_one_waits_with_it(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    size = 16 * RECORD
    assert client._send_nowait(pattern(size)) > size
    assert client._send_nowait(pattern(RECORD)) > size + RECORD
    assert await ended(client, served) == pattern(size) + pattern(RECORD)


@pytest.mark.full_ring
async def test_large_pieces_behind_the_first_one_leave_together(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    pieces = [pattern(RECORD + number) for number in range(4)]
    queued = [client._send_nowait(piece) for piece in pieces]
    assert queued[0] == 0 < queued[1] < queued[2] < queued[3]
    await client.flush()
    assert client._send_nowait(pieces[0]) == 0  # that was a batch
    assert await ended(client, served) == b"".join([*pieces, pieces[0]])


@pytest.mark.full_ring
async def test_a_connection_with_an_idle_timeout_sends_at_the_end_of_the_batch(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    client.idle_timeout = 60
    assert client._send_nowait(pattern(RECORD)) > RECORD
    assert await served.receive_exactly(RECORD) == pattern(RECORD)


async def test_large_pieces_for_a_peer_that_does_not_read_arrive_whole(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    count = 0
    while client._send_nowait(pattern(RECORD)) < 6 * RECORD:
        count += 1
    assert await ended(client, served) == pattern(RECORD) * (count + 1)


async def test_a_large_piece_for_a_peer_that_is_gone_raises_soon(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    served.abort()
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(100):
            await client.send(pattern(RECORD))
            await client.flush()

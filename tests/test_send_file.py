"""Connection.send_file: the right bytes of the right file, and no part of a file that could be taken for the whole."""

# ruff: noqa: ASYNC240  # the files are small and in memory, and no other task waits

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from support.descriptors import open_descriptors
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    QUIET,
    Pair,
    fill_kernel,
    open_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Connection
from gain_trio._transports._connections import _file_sending, _files
from gain_trio._transports._connections._files import FileSource

pytestmark = [pytest.mark.connections, pytest.mark.features]

LARGE = 6 * MEBIBYTE
"""More than the kernel holds for a ``pair``."""
LARGEST = 24 * MEBIBYTE
"""More than it holds for any connection."""
RESETS = pytest.mark.parametrize("any_pair", ["TCP", "TLS"], indirect=True)
"""A Unix socket has no reset: its peer sees the end."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture(params=["kernel", "reading"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to send a file."""
    if request.param == "reading":
        monkeypatch.delattr(os, "sendfile", raising=False)
    elif not hasattr(os, "sendfile"):
        pytest.skip("this system has no sendfile")
    return str(request.param)


@pytest.fixture
def pair(any_pair: Pair) -> Pair:
    """Every kind of connection, with small buffers in the kernel."""
    for connection in any_pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, MEBIBYTE // 2)
    return any_pair


async def send_and_receive(pair: Pair, send: Callable[[Connection], AsyncIterator[None]]) -> bytes:
    """The bytes that the peer receives from ``send``."""
    client, served = pair
    received = b""

    async def receive() -> None:
        nonlocal received
        received = await receive_all(served)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        async for _ in send(client):
            pass
        await client.aclose()
    return received


@pytest.mark.parametrize("size", [0, 1, 4096, MEBIBYTE, MEBIBYTE + 1, LARGE])
@pytest.mark.usefixtures("way")
async def test_a_whole_file(pair: Pair, path: Path, size: int) -> None:
    path.write_bytes(pattern(size))

    async def send(client: Connection) -> AsyncIterator[None]:
        assert await client.send_file(path) == size
        assert client.outbound_buffered == 0
        yield

    assert await send_and_receive(pair, send) == pattern(size)


@pytest.mark.usefixtures("way")
async def test_random_parts_in_the_order_of_the_sends_around_them(pair: Pair, path: Path) -> None:
    rng = random.Random(7)
    data = rng.randbytes(3 * MEBIBYTE)
    path.write_bytes(data)
    expected = bytearray()

    async def send(client: Connection) -> AsyncIterator[None]:
        for number in range(20):
            offset = rng.randrange(len(data) + 1)
            count = rng.randrange(len(data) - offset + 1)
            header = b"%d:" % number * rng.choice([1, 100_000])
            expected.extend(header + data[offset : offset + count])
            await client.send(header)
            assert await client.send_file(path, offset, count) == count
            yield

    assert await send_and_receive(pair, send) == expected


@pytest.mark.usefixtures("way")
async def test_a_file_object_and_a_descriptor_stay_open_and_where_they_are(pair: Pair, path: Path) -> None:
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert file.read(3) == b"012"

        async def send(client: Connection) -> AsyncIterator[None]:
            assert await client.send_file(file, 8) == 2
            assert await client.send_file(file.fileno(), 0, 2) == 2
            assert await client.send_file(os.fsencode(path), 4, 1) == 1
            yield

        assert await send_and_receive(pair, send) == b"89014"
        assert file.read(1) == b"3"


async def test_nothing_leaks(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    client, served = await open_pair()
    await client.send_file(path)  # the thread's first
    before = open_descriptors()
    for _ in range(10):
        await client.send_file(path)
        with pytest.raises(ValueError, match="100 bytes"):
            await client.send_file(path, 50, 51)
    assert open_descriptors() == before
    await client.aclose()
    await served.aclose()


async def test_what_is_not_there_is_refused_before_anything_is_sent(pair: Pair, path: Path, tmp_path: Path) -> None:
    client, served = pair
    path.write_bytes(b"ten bytes.")
    for offset, count in ((11, None), (11, 0), (0, 11), (9, 2)):
        with pytest.raises(ValueError, match="has 10 bytes"):
            await client.send_file(path, offset, count)
    for offset, count in ((-1, None), (0, -1)):
        with pytest.raises(ValueError, match=">= 0"):
            await client.send_file(path, offset, count)
    with pytest.raises(FileNotFoundError):
        await client.send_file(tmp_path / "none")
    assert await client.send_file(path, 10) == 0
    await client.send(b"sound")
    assert await receive_exactly(served, 5) == b"sound"


async def test_pipes_fifos_and_directories_are_refused(pair: Pair, tmp_path: Path) -> None:
    client, _served = pair
    os.mkfifo(tmp_path / "fifo")
    reader, writer = os.pipe()
    try:
        for file in (tmp_path / "fifo", tmp_path, reader, "/dev/null"):
            with pytest.raises(ValueError, match="regular files"):
                await client.send_file(file)
    finally:
        os.close(reader)
        os.close(writer)


@RESETS
@pytest.mark.usefixtures("way")
async def test_a_file_that_shrinks_is_an_error_and_the_connection_torn(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    received = b""

    async def receive() -> None:
        nonlocal received
        received = await receive_exactly(served, 1)
        os.truncate(path, 2 * MEBIBYTE)
        received += await receive_all_but_the_reset(served)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        with pytest.raises(EOFError, match="bytes were sent") as caught:
            await client.send_file(path)
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"the rest, for all the peer knows")
        await client.aclose()
    sent = re.search(rf"(\d+) of {LARGE} bytes were sent", str(caught.value))
    assert sent
    assert len(received) <= int(sent[1]) < LARGE


async def receive_all_but_the_reset(connection: Connection) -> bytes:
    """The bytes that arrive before the connection breaks."""
    received = bytearray()
    try:
        while data := await connection.receive():
            received += data
    except trio.BrokenResourceError:
        return bytes(received)
    raise AssertionError(f"a clean end after {len(received)} bytes")


@pytest.mark.usefixtures("way")
async def test_growth_is_ignored(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_file, path)
        start = await receive_exactly(served, 1)
        with path.open("ab") as file:
            file.write(b"more")
        assert start + await receive_exactly(served, LARGE - 1) == pattern(LARGE)
    await client.send(b"!")
    assert await receive_exactly(served, 1) == b"!"


@RESETS
@pytest.mark.parametrize("how", ["cancel", "aclose", "abort", "close soon"])
@pytest.mark.usefixtures("way")
async def test_an_interrupted_transfer_never_looks_complete(pair: Pair, path: Path, how: str) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))

    async def send() -> None:
        if how == "cancel":
            await client.send_file(path)
        else:
            with pytest.raises(trio.ClosedResourceError):
                await client.send_file(path)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await receive_exactly(served, 1)
        if how == "cancel":
            nursery.cancel_scope.cancel()
        elif how == "aclose":
            await client.aclose()
        elif how == "abort":
            client.abort()
        else:
            client._close_now()
    if how == "cancel":
        with pytest.raises(trio.BrokenResourceError):
            await client.send_file(path)
        await client.aclose()
    await receive_all_but_the_reset(served)


@pytest.mark.usefixtures("way")
async def test_cancelled_before_anything_is_sent_the_connection_stays_sound(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_file(path)
    assert scope.cancelled_caught
    await client.send(b"sound")
    assert await receive_exactly(served, 5) == b"sound"


async def test_cancelled_while_it_reads_the_first_piece_the_connection_stays_sound(
    pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, served = pair
    path.write_bytes(b"not a byte of this")
    monkeypatch.delattr(os, "sendfile", raising=False)
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)  # so that a thread reads
    read = FileSource.read

    def cancel_and_read(source: FileSource, done: int) -> bytes:
        trio.from_thread.run_sync(scope.cancel)
        return read(source, done)

    monkeypatch.setattr(FileSource, "read", cancel_and_read)
    with trio.CancelScope() as scope:
        await client.send_file(path)
    assert scope.cancelled_caught
    await client.send(b"sound")
    assert await receive_exactly(served, 5) == b"sound"


@pytest.mark.usefixtures("way")
async def test_one_sends_at_a_time(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_file, path)
        start = await receive_exactly(served, 1)
        for call in (lambda: client.send(b"x"), client.flush, lambda: client.send_file(path)):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with pytest.raises(trio.BusyResourceError):
            client._send_nowait(b"x")
        await served.send(b"the other way is free")
        assert await receive_exactly(client, 21) == b"the other way is free"
        assert start + await receive_exactly(served, LARGE - 1) == pattern(LARGE)
    await client.send(b"!")
    assert await receive_exactly(served, 1) == b"!"


@pytest.mark.usefixtures("way")
async def test_what_is_sent_without_waiting_does_not_get_into_a_file(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    before = client.bytes_sent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_file, path)
        await until(lambda: client.bytes_sent > before)  # a thread opens the file first
        with pytest.raises(trio.BusyResourceError):
            client._send_nowait(b"in between")
        assert await receive_exactly(served, LARGE) == pattern(LARGE)
    client._send_nowait(b"behind")
    assert await receive_exactly(served, 6) == b"behind"


async def test_room_is_waited_for_behind_what_is_being_sent() -> None:
    client, served = await open_pair()
    async with client, served:
        client._send_nowait(bytes(LARGEST))  # all of it is in flight, and nothing is queued behind it
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client._wait_for_room)  # type: ignore[attr-defined]
                await wait_all_tasks_blocked(QUIET)
                await receive_exactly(served, LARGEST)


@pytest.mark.usefixtures("way")
async def test_a_peer_that_does_not_read_holds_no_thread(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    threads = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_file, path)
        await wait_all_tasks_blocked(QUIET)
        while threads.borrowed_tokens:  # it may have room once more while the kernel moves what it has
            await wait_all_tasks_blocked(QUIET)
        assert nursery.child_tasks
        assert await receive_exactly(served, LARGE) == pattern(LARGE)


@pytest.mark.usefixtures("way")
async def test_a_peer_that_goes_breaks_it(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.send_file(path)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno in {errno.EPIPE, errno.ECONNRESET}

        nursery.start_soon(send)
        await receive_exactly(served, 1)
        served.abort()
    with pytest.raises(trio.BrokenResourceError):
        await client.send(b"more")


@pytest.mark.parametrize("any_pair", ["TCP", "Unix"], indirect=True)  # TLS has no send_eof()
@pytest.mark.usefixtures("way")
async def test_after_the_end_or_closed_it_is_refused(pair: Pair, path: Path) -> None:
    client, served = pair
    path.write_bytes(b"x")
    await client.send_eof()
    await served.aclose()
    for connection in pair:
        with pytest.raises(trio.ClosedResourceError):
            await connection.send_file(path)


async def test_a_disk_error_is_no_broken_connection(pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, served = pair
    path.write_bytes(b"x" * 100)

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(_file_sending, "_send_piece", fail)
    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "preadv", fail, raising=False)
    with pytest.raises(OSError, match="the disk is broken"):
        await client.send_file(path)
    await client.send(b"sound")
    assert await receive_exactly(served, 5) == b"sound"


async def test_a_thread_reads_what_the_page_cache_does_not_have(
    pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"0123456789" * 100_000
    path.write_bytes(content)
    monkeypatch.delattr(os, "sendfile", raising=False)
    cached, read = FileSource.read_cached, FileSource.read
    ways = []

    def every_other(source: FileSource, done: int, buffer: bytearray) -> memoryview | None:
        ways.append("cache")
        return cached(source, done, buffer) if len(ways) % 3 else None

    def counted(source: FileSource, done: int) -> bytes:
        ways.append("thread")
        return read(source, done)[:100_000]

    monkeypatch.setattr(FileSource, "read_cached", every_other)
    monkeypatch.setattr(FileSource, "read", counted)

    async def send(connection: Connection) -> AsyncIterator[None]:
        assert await connection.send_file(path) == len(content)
        yield

    assert await send_and_receive(pair, send) == content
    assert "thread" in ways


async def test_a_file_that_the_kernel_does_not_send_is_read(
    pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, served = pair
    path.write_bytes(b"x" * 100)

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EINVAL, "not this file")

    monkeypatch.setattr(_file_sending, "_send_piece", refuse)
    assert await client.send_file(path) == 100
    assert await receive_exactly(served, 100) == b"x" * 100


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [(0.0, [1, 2, 4, 8, 8, 8]), (0.0019, [1, 2, 4, 8, 8, 8]), (0.004, [1] * 25), (0.3, [1])],
    ids=["memory", "quick", "slow", "very slow"],
)
def test_a_disk_that_is_quick_is_asked_for_more_at_a_time(
    seconds: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    asked: list[int] = []

    def send(_descriptor: int, _source: FileSource, _done: int, size: int) -> int:
        nonlocal now
        now += seconds
        asked.append(size >> 20)
        return size

    monkeypatch.setattr(_file_sending, "_send_piece", send)
    monkeypatch.setattr(_file_sending, "time", SimpleNamespace(monotonic=lambda: now))
    one, other = socket.socketpair()
    with one, other:
        part = _file_sending._send_slice(one.fileno(), FileSource("a file", -1, 0, sum(sizes) << 20), 0, 0)
    assert asked == sizes
    assert part.sent == sum(sizes) << 20


@pytest.mark.skipif(not hasattr(os, "sendfile"), reason="this system has no sendfile")
@pytest.mark.parametrize("any_pair", ["TCP", "Unix"], indirect=True)  # the kernel does not send a file over TLS
@pytest.mark.parametrize(("borrowed", "is_patient"), [(0, True), (20, True), (21, False), (39, False)])
async def test_a_thread_is_patient_while_half_of_them_are_free(
    pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch, borrowed: int, is_patient: bool
) -> None:
    client, _served = pair
    path.write_bytes(b"x" * 1000)
    threads = trio.to_thread.current_default_thread_limiter()
    for _ in range(borrowed):
        threads.acquire_on_behalf_of_nowait(object())
    asked: list[float] = []

    def send(_descriptor: int, source: FileSource, _done: int, patience: float) -> _file_sending._SendfileSlice:
        asked.append(patience)
        return _file_sending._SendfileSlice(sent=source.count)

    monkeypatch.setattr(_file_sending, "_send_for_a_while", send)
    assert await client.send_file(path) == 1000
    assert asked == [_files.PATIENCE if is_patient else _files.ROOM_SECONDS]


@pytest.mark.usefixtures("way")
async def test_the_run_ends_with_a_transfer_in_progress(path: Path) -> None:
    path.write_bytes(pattern(LARGEST))
    client, served = await open_pair()
    with contextlib.ExitStack() as stack:
        stack.callback(client.abort)
        stack.callback(served.abort)
        with trio.move_on_after(0) as scope:
            await client.send_file(path)
        assert scope.cancelled_caught


# --- time ---


@pytest.mark.usefixtures("way")
async def test_one_that_is_too_slow_has_sent_a_part(pair: Pair, path: Path, mock_clock: MockClock) -> None:
    client, _served = pair
    path.write_bytes(pattern(LARGE))
    client.write_deadline = trio.current_time() + 5
    before = client.bytes_sent

    async def send() -> None:
        with pytest.raises(trio.TooSlowError):
            await client.send_file(path)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await until(lambda: client.bytes_sent > before)
        mock_clock.jump(4)
        client.write_deadline = trio.current_time() + 3  # it holds for the call in progress, and is moved away
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        client.write_deadline = trio.current_time() - 1  # and nearer
    client.write_deadline = math.inf
    with pytest.raises(trio.BrokenResourceError):
        await client.send(b"the rest, for all the peer knows")


@pytest.mark.usefixtures("way")
async def test_a_deadline_that_has_passed_is_of_no_consequence_to_one_that_need_not_wait(
    pair: Pair, path: Path
) -> None:
    client, served = pair
    path.write_bytes(b"x" * 1000)
    client.write_deadline = trio.current_time() - 1
    assert await client.send_file(path) == 1000
    assert await receive_exactly(served, 1000) == b"x" * 1000


@pytest.mark.usefixtures("way")
async def test_its_bytes_are_no_idleness(
    pair: Pair, path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGEST))
    client.idle_timeout = 10
    monkeypatch.setattr(_file_sending, "SLICE", 0.001)  # the bytes of a slice count when it is over
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_file, path)
        for _ in range(LARGEST // MEBIBYTE):
            before = client.bytes_sent
            await receive_exactly(served, MEBIBYTE)
            await until(lambda before=before: client.bytes_sent > before or not nursery.child_tasks)
            mock_clock.jump(0.5)  # in ten seconds 20 MiB, which the kernel does not hold
            await wait_all_tasks_blocked(0.001)


@pytest.mark.usefixtures("way")
async def test_one_that_moves_nothing_is_idle(pair: Pair, path: Path, mock_clock: MockClock) -> None:
    client, served = pair
    path.write_bytes(pattern(LARGE))
    client.idle_timeout = 10
    before = client.bytes_sent
    ended = trio.Event()

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.send_file(path)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ETIMEDOUT
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await until(lambda: client.bytes_sent > before)  # a thread may have to read the file first
        while not ended.is_set():
            await wait_all_tasks_blocked(QUIET)
            mock_clock.jump(11)
    await client.aclose()
    assert await served.receive()


@pytest.mark.parametrize("any_pair", ["TCP"], indirect=True)
@pytest.mark.parametrize("how", ["too slow", "cancelled"])
async def test_one_that_has_sent_nothing_leaves_the_connection_as_it_was(
    pair: Pair, path: Path, autojump_clock: MockClock, how: str
) -> None:
    """The kernel has no room from the start."""
    client, served = pair
    path.write_bytes(b"not a byte of this")
    held = await fill_kernel(client)
    for _ in range(3):
        if how == "too slow":
            client.write_deadline = trio.current_time() + 5
            with pytest.raises(trio.TooSlowError):
                await client.send_file(path)
        else:
            with trio.move_on_after(5) as scope:
                await client.send_file(path)
            assert scope.cancelled_caught
    client.write_deadline = math.inf
    await client.send(b"sound")
    assert len(await receive_exactly(served, held)) == held
    assert await receive_exactly(served, 5) == b"sound"
    held = await fill_kernel(client)
    with trio.move_on_after(5) as scope:
        await client.send_file(path)
    assert scope.cancelled_caught
    sock, queued = await client.detach()
    with sock:
        assert queued == b""
        assert len(await receive_exactly(served, held)) == held
        sock.sendall(b"plain")
        assert await receive_exactly(served, 5) == b"plain"

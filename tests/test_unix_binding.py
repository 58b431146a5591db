"""The file at the path of a Unix socket, and whether a server may replace it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import open_datagram_endpoint, open_listeners
from gain_trio._transports._addresses import _bind_retry, _unix_binding, _unix_holders
from gain_trio._transports._addresses._unix_binding import RETRY_SECONDS
from gain_trio._transports._addresses._unix_holders import is_held

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]

Start: TypeAlias = Callable[[str], Awaitable[None]]


async def listen(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}")
    await listener.aclose()


async def open_endpoint(path: str) -> None:
    endpoint = await open_datagram_endpoint(f"unix://{path}")
    await endpoint.aclose()


@pytest.fixture(params=[listen, open_endpoint])
def start(request: pytest.FixtureRequest) -> Start:
    chosen: Start = request.param
    return chosen


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def foreign(path: str) -> Iterator[socket.socket]:
    """One that is bound and does not listen."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        yield sock


def exists(path: str) -> bool:
    return os.path.lexists(path)


def same_file(path: str, before: os.stat_result) -> bool:
    return os.path.samestat(os.lstat(path), before)


# --- a server between bind(2) and listen(2) ---


async def test_a_bound_socket_is_not_replaced(
    start: Start, path: str, foreign: socket.socket, autojump_clock: MockClock
) -> None:
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"{path}: a process has bound a socket there that does not listen") as caught:
        await start(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert trio.current_time() == pytest.approx(RETRY_SECONDS, abs=0.1)
    assert same_file(path, before)
    foreign.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


async def test_one_that_listens_meanwhile(start: Start, path: str, foreign: socket.socket) -> None:
    async with trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(OSError, match="a server is listening there"):
                await start(path)

        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        foreign.listen()


async def test_one_that_ends_meanwhile(
    start: Start, path: str, foreign: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_unix_binding, "RETRY_SECONDS", 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, path)
        await wait_all_tasks_blocked()
        foreign.close()
    assert not exists(path)


async def test_a_client_that_has_bound_the_name(path: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "other"))
        server.listen()
        client.bind(path)
        client.connect(str(tmp_path / "other"))
        with pytest.raises(OSError, match="a process has bound"):
            await listen(path)
        assert exists(path)


async def test_a_name_bound_from_within_the_directory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            other.bind("s")
        with pytest.raises(OSError, match="a process has bound"):
            await listen(path)


async def test_a_file_of_another_name(
    path: str, tmp_path: Path, foreign: socket.socket, autojump_clock: MockClock
) -> None:
    os.rename(path, tmp_path / "renamed")
    os.symlink(tmp_path, tmp_path / "link")
    with pytest.raises(OSError, match="a process has bound"):
        await listen(str(tmp_path / "link" / "renamed"))


# --- what tells ---


@pytest.fixture(params=["sock_diag", "/proc/net/unix"])
def one_list(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    if request.param != "sock_diag":
        monkeypatch.setattr(_unix_holders, "_listed", refuse)
    else:
        monkeypatch.setattr(_unix_holders, "_is_named", refuse)


@pytest.mark.usefixtures("one_list")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_is_held(path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
        assert is_held(path, os.lstat(path))
        if kind != socket.SOCK_DGRAM:
            sock.listen()
            assert is_held(path, os.lstat(path))
    assert is_held(path, os.lstat(path)) is False


@pytest.mark.usefixtures("one_list")
def test_is_held_among_many(path: str) -> None:
    pairs = [socket.socketpair() for _ in range(1000)]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert is_held(path, os.lstat(path))
    assert not is_held(path, os.lstat(path))
    for pair in pairs:
        for end in pair:
            end.close()


async def test_without_any_list_a_fresh_file_is_waited_for(
    path: str, foreign: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in another network namespace is in no list either."""
    monkeypatch.setattr(_unix_binding, "is_held", lambda *_arguments: None)
    monkeypatch.setattr(_unix_binding, "RETRY_SECONDS", 30)
    monkeypatch.setattr(_unix_binding, "FRESH", 1e9)
    async with trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(OSError, match="a server is listening there"):
                await listen(path)

        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        foreign.listen()


async def test_without_any_list_an_old_file_is_replaced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unix_binding, "is_held", lambda *_arguments: None)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    await listen(path)


# --- two at once ---


def test_what_was_not_judged_is_put_back(path: str, foreign: socket.socket) -> None:
    judged = os.stat(__file__)
    before = os.lstat(path)
    _unix_binding._remove(path, judged)
    assert same_file(path, before)
    assert os.listdir(os.path.dirname(path)) == ["s"]


def test_what_cannot_be_linked_is_put_back(path: str, foreign: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    before = os.lstat(path)
    _unix_binding._remove(path, os.stat(__file__))
    assert same_file(path, before)
    assert os.listdir(os.path.dirname(path)) == ["s"]


async def test_a_file_that_is_taken_away_while_it_starts(
    path: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    real = _unix_binding._binds

    def bind_and_lose(sock: socket.socket, name: str) -> bool:
        real(sock, name)
        os.rename(name, name + ".away")
        Path(name).touch()
        return True

    monkeypatch.setattr(_unix_binding, "_binds", bind_and_lose)
    with pytest.raises(OSError, match="removed or replaced while this server was starting"):
        await listen(path)
    assert exists(path)


@pytest.mark.parametrize("left_over", [False, True])
def test_of_many_runs_that_start_at_once_one_listens(path: str, left_over: bool) -> None:
    if left_over:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
    count = 8
    listening: list[gain_trio.Listener] = []
    refused: list[int | None] = []
    begin, all_tried = threading.Barrier(count), threading.Barrier(count)

    async def open_one() -> None:
        begin.wait()
        try:
            [own] = await open_listeners(f"unix://{path}")
        except OSError as error:
            refused.append(error.errno)
            all_tried.wait()
            return
        async with own:
            listening.append(own)
            all_tried.wait()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)

    threads = [threading.Thread(target=trio.run, args=(open_one,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listening) == 1
    assert refused == [errno.EADDRINUSE] * (count - 1)


# --- a server that was killed a moment ago ---


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_a_socket_that_the_kernel_gives_back_late_is_waited_for(
    path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's ring has it for some milliseconds more."""
    monkeypatch.setattr(_bind_retry, "RETRY_SECONDS", 30)
    name = path if kind == "path" else f"\0{path}"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(name)
        killed.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, path if kind == "path" else f"@{path}")
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            assert nursery.child_tasks
            killed.close()


async def test_a_server_that_lives_is_looked_at_a_few_times_only(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(100)
        server.setblocking(False)
        with pytest.raises(OSError, match="a server is listening there"):
            await listen(path)
        looks = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
                looks += 1
        assert 1 <= looks < 10

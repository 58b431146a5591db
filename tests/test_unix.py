"""Unix sockets: listening, connecting, who may and who is there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import MEBIBYTE, Pair, clog, open_unix_pair, pattern, receive_all, receive_exactly, until
from support.servers import echo, serving
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, open_listeners
from gain_trio._transports._addresses import _unix
from gain_trio._transports._addresses._address import address_text

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "app.sock")


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract names")
    return f"unix://@gain_trio{tmp_path}" if request.param == "abstract" else f"unix://{tmp_path}/app.sock"


def is_there(path: str) -> bool:
    return os.path.lexists(path)


# --- streams ---


@pytest.mark.parametrize("pass_fds", [False, True])
async def test_trios_own_checks(address: str, pass_fds: bool) -> None:
    left: list[Connection] = []

    async def make() -> Pair:
        pair = await open_unix_pair(address, pass_fds=pass_fds)
        left.extend(pair)
        return pair

    async def make_clogged() -> Pair:
        client, served = await make()
        await clog(client)
        await clog(served)
        return client, served

    with trio.fail_after(60):
        await check_half_closeable_stream(make, make_clogged)
    for connection in left:
        connection.abort()


async def test_serve_and_connect(address: str) -> None:
    data = pattern(MEBIBYTE)
    async with serving(echo, address, workers=2) as server:
        assert [address_text(found) for found in server.addresses] == [address]
        async with await gain_trio.connect(address) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await receive_exactly(client, len(data)) == data
            assert client.remote_address == server.addresses[0]
            assert client.local_address == ""
        await until(lambda: server.active_connections == 0)


async def test_a_usual_piece_of_a_large_transfer_fits_the_kernel(address: str) -> None:
    client, served = await open_unix_pair(address)
    async with client, served:
        for connection in client, served:
            size = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert isinstance(size, int)
            assert size >= 256 * 1024
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the program's word counts
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 4096


async def test_half_close(address: str) -> None:
    client, served = await open_unix_pair(address)
    async with client, served:
        await client.send(b"question")
        await client.send_eof()
        assert await receive_all(served) == b"question"
        await served.send(b"answer")
        await served.aclose()
        assert await receive_all(client) == b"answer"


async def test_abort_ends_the_stream_though_there_is_no_reset(address: str) -> None:
    client, served = await open_unix_pair(address)
    async with served:
        client.abort()
        assert await served.receive() == b""
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(3):  # on the ring the error of one is told to the next
                await served.send(b"x")
                await served.flush()


async def test_peer_credentials(address: str) -> None:
    client, served = await open_unix_pair(address)
    async with client, served:
        me = gain_trio.sockets.PeerCredentials(os.getpid(), os.geteuid(), os.getegid())
        assert client.peer_credentials() == served.peer_credentials() == me
    with pytest.raises(trio.ClosedResourceError):
        client.peer_credentials()


async def test_peer_credentials_are_for_unix_connections(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="only a Unix connection has peer credentials"):
        pair[0].peer_credentials()
    monkeypatch.delattr(socket, "SO_PEERCRED")
    with pytest.raises(OSError, match="SO_PEERCRED") as caught:
        pair[0].peer_credentials()
    assert caught.value.errno == errno.EOPNOTSUPP


async def test_connect_waits_for_a_place_in_the_backlog(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}", backlog=1)
    waiting = []
    async with listener:
        with pytest.raises(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect_and_close, path)
            await wait_all_tasks_blocked(0.01)
            with trio.fail_after(30):
                while nursery.child_tasks:
                    (await listener.accept()).abort()
                    await wait_all_tasks_blocked()
    for sock in waiting:
        sock.close()


async def connect_and_close(path: str) -> None:
    await (await gain_trio.connect(f"unix://{path}")).aclose()


async def test_nobody_listens(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot connect to unix://{path}"):
        await gain_trio.connect(f"unix://{path}")
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to unix://{path}"):
        await gain_trio.connect(f"unix://{path}")


async def test_connecting_can_be_cancelled(path: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await gain_trio.connect(f"unix://{path}")
    assert scope.cancelled_caught


# --- the file ---


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def leave_stale(path: str) -> None:
    """Leave the file of a killed server."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_mode(path: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        [listener] = await open_listeners(f"unix://{path}", mode=mode)
    finally:
        os.umask(before)
    async with listener:
        found = os.lstat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == mode


async def test_without_a_mode_the_umask_decides(path: str) -> None:
    before = os.umask(0o027)
    try:
        [listener] = await open_listeners(f"unix://{path}")
    finally:
        os.umask(before)
    async with listener:
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o750


async def test_nobody_can_connect_before_owner_and_mode_are_set(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def set_mode(path: str, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as early:
            seen.append(early.connect_ex(path))
        real(path, mode)

    real = _unix._set_mode
    monkeypatch.setattr(_unix, "_set_mode", set_mode)
    [listener] = await open_listeners(f"unix://{path}", mode=0o600)
    async with listener:
        assert seen == [errno.ECONNREFUSED]


async def test_the_mode_of_what_a_link_points_to_is_left_alone(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)
    os.symlink(victim, path)
    with pytest.raises(OSError):
        _unix._set_mode(path, 0o666)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


async def test_owner_and_group(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}", owner=os.geteuid(), group=os.getegid())
    await listener.aclose()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    [listener] = await open_listeners(f"unix://{path}", owner="nobody", group=12345, mode=0o660)
    async with listener:
        import pwd

        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (pwd.getpwnam("nobody").pw_uid, 12345)
        assert stat.S_IMODE(found.st_mode) == 0o660


@pytest.mark.parametrize("option", ["owner", "group"])
async def test_unknown_owner(path: str, option: str) -> None:
    with pytest.raises(ValueError, match=r"there is no (user|group) 'no-such-one'"):
        await open_listeners(f"unix://{path}", **{option: "no-such-one"})  # type: ignore[arg-type]
    assert not is_there(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
async def test_an_owner_that_is_refused_leaves_nothing(path: str) -> None:
    with pytest.raises(PermissionError):
        await open_listeners(f"unix://{path}", owner=0)
    assert not is_there(path)


async def test_the_file_goes_with_the_listener(path: str) -> None:
    for _ in range(2):
        [listener] = await open_listeners(f"unix://{path}")
        assert is_there(path)
        await listener.aclose()
        assert not is_there(path)


async def test_a_cancelled_server_removes_its_file(path: str) -> None:
    async with serving(echo, f"unix://{path}"):
        assert is_there(path)
    assert not is_there(path)


async def test_a_file_of_somebody_else_stays(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}")
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        await listener.aclose()
        assert is_there(path)


async def test_a_file_that_is_gone_does_no_harm(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}")
    os.unlink(path)
    await listener.aclose()


async def test_a_file_that_cannot_be_removed_is_told(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [listener] = await open_listeners(f"unix://{path}")

    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    await listener.aclose()
    assert listener.fileno() == -1
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"cannot remove the Unix socket {path}: Permission denied; the next server there replaces it",
        )
    ]


async def test_what_is_left_over_is_replaced(path: str) -> None:
    leave_stale(path)
    async with serving(echo, f"unix://{path}"), await gain_trio.connect(f"unix://{path}") as client:
        await client.send(b"x")
        assert await client.receive() == b"x"


async def test_a_server_that_lives_is_left_alone(path: str) -> None:
    async with serving(echo, f"unix://{path}"):
        with pytest.raises(OSError, match=f"cannot listen on unix://{path}: a server is listening there") as caught:
            await open_listeners(f"unix://{path}")
        assert caught.value.errno == errno.EADDRINUSE
        async with await gain_trio.connect(f"unix://{path}") as client:
            await client.send(b"x")
            assert await client.receive() == b"x"


async def test_a_datagram_socket_that_lives_is_left_alone(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(OSError, match="a server is listening there"):
            await open_listeners(f"unix://{path}")


async def test_an_abstract_name_in_use(tmp_path: Path) -> None:
    address = f"unix://@gain_trio{tmp_path}"
    async with serving(echo, address):
        with pytest.raises(OSError, match="cannot listen on") as caught:
            await open_listeners(address)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
async def test_what_is_no_socket_is_never_removed(path: str, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "directory":
        os.mkdir(path)
    elif kind == "file":
        write(path, "precious")
    else:
        if kind == "link":
            leave_stale(str(target))
        os.symlink(target, path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="not a socket, and it is left alone") as caught:
        await open_listeners(f"unix://{path}")
    assert caught.value.errno == errno.EADDRINUSE
    assert os.lstat(path) == before


async def test_a_server_that_cannot_be_asked_is_left_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_stale(path)
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EACCES)
    with pytest.raises(OSError, match="it is unknown whether a server lives there: Permission denied"):
        await open_listeners(f"unix://{path}")
    assert is_there(path)


async def test_of_many_that_start_at_once_one_listens(path: str) -> None:
    leave_stale(path)
    listeners: list[gain_trio.Listener] = []
    refused: list[OSError] = []

    async def start() -> None:
        try:
            listeners.extend(await open_listeners(f"unix://{path}", mode=0o600))
        except OSError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(start)
    assert len(listeners) == 1
    assert {error.errno for error in refused} == {errno.EADDRINUSE}
    async with await gain_trio.connect(f"unix://{path}"):
        pass
    await listeners[0].aclose()


@pytest.mark.parametrize("lock", [fcntl.LOCK_SH, fcntl.LOCK_EX])
async def test_a_lock_on_the_directory_keeps_no_server_from_starting(path: str, lock: int) -> None:
    """Any user who may read a directory can have one."""
    leave_stale(path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(directory, lock)
        with trio.fail_after(4):
            await open_and_close(path)
    finally:
        os.close(directory)


async def open_and_close(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}")
    await listener.aclose()


# --- what is refused ---


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("unix:///x/y", {"mode": 0o1777}, "at most 0o777"),
        ("unix:///x/y", {"mode": -1}, "at most 0o777"),
        ("unix:///x/y", {"reuse_port": True}, "reuse_port=True is for TCP"),
        ("unix://@x", {"mode": 0o600}, "abstract name, which has no file"),
        ("unix://@x", {"group": 1}, "abstract name, which has no file"),
        ("tcp://127.0.0.1:0", {"mode": 0o600}, "mode, owner and group are for the file of a Unix socket"),
        ("tcp://127.0.0.1:0", {"pass_fds": True}, "pass_fds=True is for Unix sockets"),
        ("udp://127.0.0.1:0", {}, "the scheme must be"),
        ("unix://relative", {}, "three slashes"),
    ],
)
async def test_options_that_make_no_sense(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await open_listeners(address, **options)


async def test_a_directory_that_is_not_there(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot listen on unix://{path}/x: No such file"):
        await open_listeners(f"unix://{path}/x")


async def test_where_there_are_no_unix_sockets(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    for refused in (open_listeners, gain_trio.connect):
        with pytest.raises(ValueError, match=r"no Unix sockets on .*; use tcp://"):
            await refused(f"unix://{path}")

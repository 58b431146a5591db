"""Datagrams through Unix sockets: names, files, full queues, and who can be answered."""

from __future__ import annotations

import errno
import gc
import logging
import os
import pwd
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.datagrams import receive_from, send_back, serving_datagrams, until_counted
from support.descriptors import is_open
from support.pairs import pattern, until
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import DatagramEndpoint, open_datagram_endpoint
from gain_trio._transports._addresses import _unix
from gain_trio._transports._datagrams._unix_endpoint import UnixEndpoint

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "app.sock")


@pytest.fixture(params=["path", "abstract"])
def names(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Two addresses."""
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract names")
    prefix = f"unix://@gain_trio{tmp_path}" if request.param == "abstract" else f"unix://{tmp_path}"
    return f"{prefix}/one", f"{prefix}/other"


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket of the standard library with a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "peer"))
        sock.setblocking(False)
        yield sock


def is_there(path: str) -> bool:
    return os.path.lexists(path)


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def read(path: str) -> str:
    return Path(path).read_text()


def leave_stale(path: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> None:
    """Leave the file of a killed server."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)


async def fill(endpoint: DatagramEndpoint, address: Any = None) -> int:
    """Send until a send waits, which is cancelled; how many there were."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await endpoint.send(b"filling", address)
            sent += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return sent


# --- there and back ---


async def test_there_and_back(names: tuple[str, str]) -> None:
    async with await open_datagram_endpoint(names[0]) as one, await open_datagram_endpoint(names[1]) as other:
        assert isinstance(one, UnixEndpoint)  # also in a run on the ring
        for number in range(300):
            await one.send(b"there %d" % number, other.local_address)
            assert await other.receive() == (b"there %d" % number, one.local_address)
            await other.send(b"", one.local_address)
            assert await one.receive() == (b"", other.local_address)
        assert isinstance(one.local_address, bytes if "@" in names[0] else str)
        assert one.remote_address is None
        now = one.statistics()
        assert (now.sent, now.received, now.failed, now.dropped) == (300, 300, 0, 0)


async def test_connected(names: tuple[str, str], path: str) -> None:
    async with (
        await open_datagram_endpoint(names[0]) as server,
        await open_datagram_endpoint(names[1], remote_address=names[0]) as client,
        await open_datagram_endpoint(f"unix://{path}") as stranger,
    ):
        assert client.remote_address == server.local_address
        await client.send(b"question")
        await client.send(b"question", server.local_address)
        for _ in range(2):
            assert await server.receive() == (b"question", client.local_address)
        await server.send(b"answer", client.local_address)
        assert await client.receive() == (b"answer", server.local_address)
        with pytest.raises(PermissionError) as caught:
            await stranger.send(b"?", client.local_address)
        assert caught.value.filename == client.local_address
        with pytest.raises(ValueError, match="is connected to"):
            await client.send(b"?", path)


async def test_connected_to_a_name_that_somebody_else_takes_over(path: str, tmp_path: Path) -> None:
    """The kernel forgets the connection when the first is gone, and does not keep strangers out then."""
    server = await open_datagram_endpoint(f"unix://{path}")
    async with (
        await open_datagram_endpoint(f"unix://{tmp_path}/c", remote_address=f"unix://{path}") as client,
        await open_datagram_endpoint(f"unix://{tmp_path}/x") as stranger,
    ):
        await client.send(b"first")
        assert (await server.receive())[0] == b"first"
        server.close()
        await wait_all_tasks_blocked()  # a poll of it holds the socket until its cancel is submitted
        for _ in range(2):
            with pytest.raises(FileNotFoundError) as caught:
                await client.send(b"to no receiver")
            assert caught.value.filename == path
        leave_stale(path)
        with pytest.raises(ConnectionRefusedError):
            await client.send(b"to no receiver")
        assert client.statistics().failed == 3
        await stranger.send(b"unexpected", client.local_address)
        async with await open_datagram_endpoint(f"unix://{path}") as server:
            await client.send(b"second")
            assert await server.receive() == (b"second", client.local_address)
            await server.send(b"answer", client.local_address)
            assert await client.receive() == (b"answer", path)
        assert client.statistics().received == 1


async def test_it_can_only_be_connected_to_what_is_there(path: str, tmp_path: Path) -> None:
    own = f"unix://{tmp_path}/c"
    with pytest.raises(FileNotFoundError, match=f"cannot open an endpoint on {own} to unix://{path}: No such file"):
        await open_datagram_endpoint(own, remote_address=f"unix://{path}")
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError):
        await open_datagram_endpoint(own, remote_address=f"unix://{path}")
    assert os.listdir(tmp_path) == ["app.sock"]


@pytest.mark.parametrize("length", [1, 65535, 65536, 150_000])
async def test_large_datagrams(names: tuple[str, str], length: int) -> None:
    async with (
        await open_datagram_endpoint(names[0], max_size=150_000) as one,
        await open_datagram_endpoint(names[1], max_size=1000) as other,
    ):
        await other.send(pattern(length), one.local_address)
        assert await one.receive() == (pattern(length), other.local_address)
        await one.send(pattern(length), other.local_address)
        await until_counted(other, 1)
        assert other.statistics().oversized == (length > 1000)


async def test_a_datagram_over_the_default_size_is_counted_and_not_cut(names: tuple[str, str]) -> None:
    async with await open_datagram_endpoint(names[0]) as one, await open_datagram_endpoint(names[1]) as other:
        await other.send(bytes(100_000), one.local_address)
        await other.send(b"fits", one.local_address)
        assert (await one.receive())[0] == b"fits"
        assert one.statistics().oversized == 1


async def test_a_too_large_datagram_is_refused(names: tuple[str, str]) -> None:
    async with await open_datagram_endpoint(names[0], send_buffer=20_000) as endpoint:
        with pytest.raises(OSError, match="too long") as caught:
            await endpoint.send(bytes(40_001), endpoint.local_address)
        assert caught.value.errno == errno.EMSGSIZE
        assert endpoint.statistics().failed == 1
        await endpoint.send(b"fits", endpoint.local_address)
        assert (await endpoint.receive())[0] == b"fits"


async def test_descriptors_that_somebody_sends_are_not_kept(path: str, peer: socket.socket) -> None:
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:
        reader, writer = os.pipe()
        peer.connect(path)
        try:
            socket.send_fds(peer, [b"x"], [writer])
        except PermissionError:  # SO_PASSRIGHTS: they are not even passed
            peer.send(b"x")
        os.close(writer)
        assert await endpoint.receive() == (b"x", peer.getsockname())
        assert os.read(reader, 1) == b""  # no process has it open any more
        os.close(reader)


# --- who can be answered ---


async def test_a_sender_without_a_name(path: str) -> None:
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
            unnamed.sendto(b"x", path)
            data, address = await endpoint.receive()
        assert (data, address) == (b"x", None)
        with pytest.raises(OSError, match=r"a sender without a name \(None\) cannot be answered") as caught:
            await endpoint.send(b"y", address)
        assert caught.value.errno == errno.EDESTADDRREQ


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("relative", OSError, "neither a path from the root"),
        ("unix:///run/app.sock", OSError, "neither a path from the root"),
        ("", OSError, "neither"),
        (b"", OSError, "neither"),
        ("\0name", OSError, "neither"),
        ("/a\0b", ValueError, "NUL"),
        ("/" + 107 * "x", OSError, "File name too long"),
        (b"\0" + 108 * b"x", OSError, "File name too long"),
        (b"/no such name", FileNotFoundError, "no such name"),
        (b"\0no such name", ConnectionRefusedError, "no such name"),
        (("127.0.0.1", 9), TypeError, "path"),
        (bytearray(b"/x"), TypeError, "path"),
    ],
)
async def test_bad_addresses(path: str, address: Any, error: type[Exception], message: str) -> None:
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:
        with pytest.raises(error, match=message):
            await endpoint.send(b"x", address)
        assert endpoint.statistics().sent == 0


# --- a full queue ---


@pytest.mark.parametrize("connected", [True, False])
async def test_a_full_queue_makes_send_wait(path: str, peer: socket.socket, connected: bool) -> None:
    where = peer.getsockname()
    options = {"remote_address": f"unix://{where}"} if connected else {}
    async with await open_datagram_endpoint(f"unix://{path}", **options) as endpoint, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        sent = 0

        async def send_many() -> None:
            nonlocal sent
            for number in range(100):
                await endpoint.send(b"%d" % number, where)
                sent += 1

        nursery.start_soon(send_many)
        await wait_all_tasks_blocked()
        assert 0 < sent < 100
        assert [await receive_from(peer) for _ in range(100)] == [(b"%d" % number, path) for number in range(100)]
    assert endpoint.statistics().failed == 0


async def test_waiting_does_not_spin(
    path: str, peer: socket.socket, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still: each try is for a pause that has passed."""
    tries = 0
    real = UnixEndpoint._transmit

    def transmit(self: UnixEndpoint, data: Any, address: Any) -> int:
        nonlocal tries
        tries += 1
        return real(self, data, address)

    async with await open_datagram_endpoint(f"unix://{path}") as endpoint, trio.open_nursery() as nursery:
        await fill(endpoint, peer.getsockname())
        monkeypatch.setattr(UnixEndpoint, "_transmit", transmit)
        nursery.start_soon(endpoint.send, b"last", peer.getsockname())
        await wait_all_tasks_blocked()
        assert tries == 2  # at once, and with the place in line
        for pause in (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, 0.05):
            before = tries
            mock_clock.jump(0.9 * pause)
            await wait_all_tasks_blocked()
            assert tries == before
            mock_clock.jump(0.2 * pause)
            await wait_all_tasks_blocked()
            assert tries == before + 1
        nursery.cancel_scope.cancel()


async def test_one_who_does_not_read_holds_up_nobody_else(path: str, peer: socket.socket, tmp_path: Path) -> None:
    finished: list[int] = []

    async def send_one(name: int) -> None:
        await endpoint.send(b"%d" % name, peer.getsockname())
        finished.append(name)

    async with (
        await open_datagram_endpoint(f"unix://{path}") as endpoint,
        await open_datagram_endpoint(f"unix://{tmp_path}/other") as other,
    ):
        count = await fill(endpoint, peer.getsockname())
        async with trio.open_nursery() as nursery:
            for name in range(5):
                nursery.start_soon(send_one, name)
                await wait_all_tasks_blocked()
            for _ in range(100):
                await endpoint.send(b"x", other.local_address)
                assert await other.receive() == (b"x", path)
            assert not finished
            received = [(await receive_from(peer))[0] for _ in range(count + 5)]
        assert received[count:] == [b"0", b"1", b"2", b"3", b"4"]
        assert finished == [0, 1, 2, 3, 4]
        assert endpoint._lines == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("connected", [True, False])
async def test_a_send_that_waits_ends_with_a_cancel_a_close_and_the_receiver(
    path: str, tmp_path: Path, connected: bool
) -> None:
    where = str(tmp_path / "mute")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mute:
        mute.bind(where)
        options: dict[str, Any] = {"remote_address": f"unix://{where}"} if connected else {}
        endpoint = await open_datagram_endpoint(f"unix://{path}", **options)
        sent = await fill(endpoint, where)  # and cancelled
        assert endpoint.statistics().sent == sent

        async def is_refused() -> None:
            with pytest.raises(ConnectionRefusedError) as caught:
                await endpoint.send(b"x", where)
            assert caught.value.filename == where

        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_refused)
            await wait_all_tasks_blocked()
            mute.close()
    os.unlink(where)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mute:
        mute.bind(where)
        await fill(endpoint, where)

        async def is_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await endpoint.send(b"x", where)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_closed)
            await wait_all_tasks_blocked()
            endpoint.close()
    with pytest.raises(trio.ClosedResourceError):
        await endpoint.send(b"x", where)


async def test_somebody_else_waits_for_the_descriptor(path: str, peer: socket.socket) -> None:
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:

        async def is_told(scope: trio.CancelScope) -> None:
            with pytest.raises(OSError, match="another task waits for this endpoint's descriptor") as caught:
                await endpoint.receive()
            assert caught.value.errno == errno.EBUSY
            scope.cancel()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(is_told, scope)
                await trio.lowlevel.wait_readable(endpoint.fileno())  # before the endpoint itself
        peer.sendto(b"goes on", path)
        assert await endpoint.receive() == (b"goes on", peer.getsockname())


async def test_senders_wait_for_the_endpoints_own_queue_only_in_the_kernel(names: tuple[str, str]) -> None:
    """The endpoint always reads, and drops datagrams beyond its queue, as any endpoint does."""
    async with (
        await open_datagram_endpoint(names[0], queue_size=3) as one,
        await open_datagram_endpoint(names[1]) as other,
    ):
        for number in range(50):
            await other.send(b"%d" % number, one.local_address)
        await until_counted(one, 50)
        assert [(await one.receive())[0] for _ in range(3)] == [b"0", b"1", b"2"]
        assert one.dropped == 47


# --- the file ---


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_mode(path: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        endpoint = await open_datagram_endpoint(f"unix://{path}", mode=mode)
    finally:
        os.umask(before)
    async with endpoint:
        found = os.lstat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == mode


@pytest.mark.parametrize("options", [{}, {"owner": os.geteuid()}, {"group": os.getegid()}])
async def test_without_a_mode_the_umask_decides(path: str, options: dict[str, Any]) -> None:
    before = os.umask(0o027)
    try:
        endpoint = await open_datagram_endpoint(f"unix://{path}", **options)
    finally:
        os.umask(before)
    async with endpoint:
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o750


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bind(2) makes the file with the umask's mode")
@pytest.mark.parametrize("options", [{"mode": 0o666}, {"owner": os.geteuid()}, {"mode": 0o600, "group": os.getegid()}])
async def test_nobody_can_send_before_owner_and_mode_are_set(
    path: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    seen = []

    def set_mode(path: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.lstat(path).st_mode))
        real(path, mode)

    real = _unix._set_mode
    monkeypatch.setattr(_unix, "_set_mode", set_mode)
    before = os.umask(0)
    try:
        endpoint = await open_datagram_endpoint(f"unix://{path}", **options)
    finally:
        os.umask(before)
    await endpoint.aclose()
    assert seen == [0]


async def test_owner_and_group(path: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    async with await open_datagram_endpoint(f"unix://{path}", owner="nobody", group=12345, mode=0o660):
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (pwd.getpwnam("nobody").pw_uid, 12345)
        assert stat.S_IMODE(found.st_mode) == 0o660


async def test_a_mode_that_cannot_be_set_leaves_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(_unix, "_set_mode", refuse)
    with pytest.raises(PermissionError, match=f"cannot open an endpoint on unix://{path}: Operation not permitted"):
        await open_datagram_endpoint(f"unix://{path}", mode=0o600)
    assert not is_there(path)


@pytest.mark.parametrize("option", ["owner", "group"])
async def test_unknown_owner(path: str, option: str) -> None:
    with pytest.raises(ValueError, match=r"there is no (user|group) 'no-such-one'"):
        await open_datagram_endpoint(f"unix://{path}", **{option: "no-such-one"})  # type: ignore[arg-type]
    assert not is_there(path)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_what_is_left_over_is_replaced(path: str, peer: socket.socket, kind: socket.SocketKind) -> None:
    leave_stale(path, kind)
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:
        peer.sendto(b"x", path)
        assert await endpoint.receive() == (b"x", peer.getsockname())


@pytest.mark.parametrize("connected", [True, False])
async def test_an_endpoint_that_lives_is_left_alone(path: str, peer: socket.socket, connected: bool) -> None:
    options: dict[str, Any] = {"remote_address": f"unix://{peer.getsockname()}"} if connected else {}
    async with await open_datagram_endpoint(f"unix://{path}", **options) as endpoint:
        for start in (open_datagram_endpoint, gain_trio.open_listeners):
            with pytest.raises(OSError, match=f"unix://{path}: a server is listening there") as caught:
                await start(f"unix://{path}")
            assert caught.value.errno == errno.EADDRINUSE
        peer.sendto(b"x", path)
        assert await endpoint.receive() == (b"x", peer.getsockname())
        assert endpoint.statistics().received == 1


async def test_a_listener_that_lives_is_left_alone(path: str) -> None:
    [listener] = await gain_trio.open_listeners(f"unix://{path}")
    async with listener:
        with pytest.raises(OSError, match="a server is listening there"):
            await open_datagram_endpoint(f"unix://{path}")


async def test_an_abstract_name_in_use(tmp_path: Path) -> None:
    address = f"unix://@gain_trio{tmp_path}"
    async with await open_datagram_endpoint(address):
        with pytest.raises(OSError, match=f"cannot open an endpoint on {address}") as caught:
            await open_datagram_endpoint(address)
        assert caught.value.errno == errno.EADDRINUSE


async def test_what_is_no_socket_is_never_removed(path: str) -> None:
    write(path, "precious")
    with pytest.raises(OSError, match="not a socket, and it is left alone"):
        await open_datagram_endpoint(f"unix://{path}")
    assert read(path) == "precious"


async def test_of_many_that_start_at_once_one_has_it(path: str) -> None:
    leave_stale(path)
    endpoints: list[DatagramEndpoint] = []
    refused: list[OSError] = []

    async def start() -> None:
        try:
            endpoints.append(await open_datagram_endpoint(f"unix://{path}", mode=0o600))
        except OSError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(start)
    assert len(endpoints) == 1
    assert {error.errno for error in refused} == {errno.EADDRINUSE}
    await endpoints[0].aclose()


async def test_the_file_goes_with_the_endpoint(path: str) -> None:
    for _ in range(2):
        async with await open_datagram_endpoint(f"unix://{path}"):
            assert is_there(path)
        assert not is_there(path)


async def test_a_file_of_somebody_else_stays(path: str) -> None:
    async with await open_datagram_endpoint(f"unix://{path}"):
        os.unlink(path)
        leave_stale(path)
    assert is_there(path)


async def test_a_dropped_endpoint_is_closed_and_removes_its_file(path: str) -> None:
    endpoint = await open_datagram_endpoint(f"unix://{path}")
    descriptor = endpoint.fileno()
    await wait_all_tasks_blocked()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del endpoint
        gc.collect()
    await until(lambda: not is_open(descriptor))
    assert not is_there(path)


def test_the_end_of_a_run_removes_the_file(path: str) -> None:
    async def main() -> DatagramEndpoint:
        return await open_datagram_endpoint(f"unix://{path}")

    endpoint = trio.run(main)
    assert endpoint.fileno() == -1
    assert not is_there(path)
    endpoint.close()


async def test_opening_can_be_cancelled(path: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_datagram_endpoint(f"unix://{path}")
    assert scope.cancelled_caught
    assert not is_there(path)


# --- what is refused ---


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("unix:///x/y", {"mode": 0o1777}, "at most 0o777"),
        ("unix:///x/y", {"reuse_port": True}, "reuse_port=True is for UDP"),
        ("unix:///x/y", {"multicast_groups": ["239.1.1.1"]}, "multicast is for UDP"),
        ("unix:///x/y", {"multicast_interface": "lo"}, "multicast is for UDP"),
        ("unix:///x/y", {"multicast_loop": False}, "multicast is for UDP"),
        ("unix:///x/y", {"multicast_ttl": 0}, "multicast is for UDP"),
        ("unix:///x/y", {"max_size": (1 << 24) + 1}, "max_size must be at most 16777216 for a Unix socket"),
        ("unix:///x/y", {"queue_size": 0}, "queue_size must be"),
        ("unix:///x/y", {"remote_address": "udp://127.0.0.1:9"}, "the scheme must be unix"),
        ("udp://127.0.0.1:0", {"remote_address": "unix:///x/y"}, "the scheme must be udp"),
        ("unix://@x", {"mode": 0o600}, "abstract name, which has no file"),
        ("unix://@", {}, "abstract name of a Unix socket is empty"),
        ("udp://127.0.0.1:0", {"mode": 0o600}, "mode, owner and group are for the file of a Unix socket"),
        ("udp://127.0.0.1:0", {"owner": 0}, "mode, owner and group are for the file of a Unix socket"),
        ("unix://relative", {}, "three slashes"),
        ("fd://3", {}, "the scheme must be udp or unix"),
    ],
)
async def test_options_that_make_no_sense(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await open_datagram_endpoint(address, **options)


async def test_a_unix_socket_joins_no_group(path: str) -> None:
    async with await open_datagram_endpoint(f"unix://{path}") as endpoint:
        for call in (endpoint.join, endpoint.leave):
            with pytest.raises(ValueError, match="multicast is for UDP"):
                call("239.1.1.1")


async def test_a_directory_that_is_not_there(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot open an endpoint on unix://{path}/x: No such file"):
        await open_datagram_endpoint(f"unix://{path}/x")


async def test_where_there_are_no_unix_sockets(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ValueError, match=r"no Unix sockets on .*; use udp://"):
        await open_datagram_endpoint(f"unix://{path}")


# --- serve_datagrams ---


async def test_serve_datagrams(names: tuple[str, str]) -> None:
    async with (
        serving_datagrams(send_back, names[0], workers=2) as server,
        await open_datagram_endpoint(names[1], remote_address=names[0]) as client,
    ):
        for number in range(100):
            await client.send(b"%d" % number)
            assert await client.receive() == (b"%d" % number, server.address)
        assert server.statistics().handled == 100
        assert server.addresses == (server.endpoint.local_address,)


async def test_a_cancelled_server_removes_its_file(path: str) -> None:
    async with serving_datagrams(send_back, f"unix://{path}", mode=0o600):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    assert not is_there(path)


async def test_senders_that_cannot_be_answered_are_counted(
    path: str, peer: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender chooses the name that answers go to, and must not be able to fill the log by that."""
    caplog.set_level(logging.INFO, "gain_trio")
    monkeypatch.chdir(tmp_path)
    gone = str(tmp_path / "gone")
    async with serving_datagrams(send_back, f"unix://{path}") as server:
        for name in (None, gone, "relative", b"\0gain_trio" + os.fsencode(tmp_path)):
            # All of them are closed before the server gets its turn.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                if name is not None:
                    sock.bind(name)
                sock.sendto(b"x", path)
            if name == gone:
                os.unlink(gone)
        await until(lambda: server.statistics().handled == 4)
        assert server.statistics().unreachable == 4
        assert server.statistics().handler_errors == 0
        assert {record.levelno for record in caplog.records} == {logging.INFO}
        peer.sendto(b"goes on", path)
        assert await receive_from(peer) == (b"goes on", path)


async def test_a_file_that_the_handler_misses_is_its_own_error(path: str, peer: socket.socket) -> None:
    async def handler(_data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/etc/no such")

    async with serving_datagrams(handler, f"unix://{path}") as server:
        peer.sendto(b"x", path)
        await until(lambda: server.statistics().handled == 1)
        assert (server.statistics().handler_errors, server.statistics().unreachable) == (1, 0)

"""Servers of callbacks as programs run them: in a thread of their own, with clients that block."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import trio

import gain_trio
from gain_trio.callbacks import Conn, EventHandler, EventServer
from support.pairs import PATIENCE

CALLBACKS = ("on_accept", "on_read", "on_write", "on_close")
Behaviour = dict[str, Callable[..., object]]
"""The behaviour of each callback, by its name: a function of the conn, and of n or err if the callback has one."""


class Recorder(EventHandler):
    """A handler that counts callbacks, runs the test's behaviour in them, and lets other threads wait for them."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or {}
        self.counts: Counter[str] = Counter()
        self.reasons: list[BaseException | None] = []
        self.unexpected: list[BaseException] = []
        """The failures of callbacks, because an assertion in one would only close its connection."""
        self.server: EventServer | None = None
        self._changed = threading.Condition()

    def _called(self, name: str, *arguments: object) -> None:
        try:
            self.behaviour.get(name, lambda *_: None)(*arguments)
        except BaseException as error:
            self.unexpected.append(error)
            raise
        finally:
            with self._changed:
                self.counts[name] += 1
                self._changed.notify_all()

    def wait_for(self, **least: int) -> None:
        """Wait until each callback was called at least as often as ``least`` says, in another thread than the server's."""
        with self._changed:
            reached = self._changed.wait_for(lambda: all(self.counts[n] >= c for n, c in least.items()), PATIENCE)
        assert reached, f"waited for {least}, and it is {dict(self.counts)}"

    def numbers(self) -> tuple[int, ...]:
        """The number of calls of each callback."""
        return tuple(self.counts[name] for name in CALLBACKS)

    def on_start(self, server: EventServer) -> None:
        self.server = server
        self._called("on_start", server)

    def on_accept(self, conn: Conn) -> Any:
        self._called("on_accept", conn)

    def on_read(self, conn: Conn, n: int) -> Any:
        self._called("on_read", conn, n)

    def on_write(self, conn: Conn, n: int) -> Any:
        self._called("on_write", conn, n)

    def on_close(self, conn: Conn, err: BaseException | None) -> Any:
        self.reasons.append(err)
        self._called("on_close", conn, err)


class WritesUntilBroken(Recorder):
    """A handler whose first read takes what has come, and writes until the peer's reset is noticed."""

    async def on_read(self, conn: Conn, n: int) -> None:
        conn.discard(n)
        with trio.fail_after(PATIENCE):
            while conn.write(b"x"):
                await trio.lowlevel.checkpoint()
        self._called("on_read", conn, n)


class AsyncRecorder(Recorder):
    """A recorder whose callbacks wait."""

    async def on_accept(self, conn: Conn) -> None:
        await trio.lowlevel.checkpoint()
        self._called("on_accept", conn)

    async def on_read(self, conn: Conn, n: int) -> None:
        await trio.lowlevel.checkpoint()
        self._called("on_read", conn, n)

    async def on_write(self, conn: Conn, n: int) -> None:
        await trio.lowlevel.checkpoint()
        self._called("on_write", conn, n)

    async def on_close(self, conn: Conn, err: BaseException | None) -> None:
        self.reasons.append(err)
        self._called("on_close", conn, err)


@contextlib.contextmanager
def started(handler: Recorder, address: str = "tcp://127.0.0.1:0", **options: Any) -> Iterator[EventServer]:
    """Run a server in a thread; at the end, shut it down and check that it ends without an error."""
    server = gain_trio.callbacks.EventServer(handler, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            server.start(address)
        except BaseException as error:
            failed.append(error)
            with handler._changed:
                handler.counts["on_start"] += 1
                handler._changed.notify_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        handler.wait_for(on_start=1)
        if failed:
            raise failed[0]
        yield server
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not failed, failed
    assert not handler.unexpected, handler.unexpected


def dial(server: EventServer, network: str = "tcp") -> socket.socket:
    """Open a connected client."""
    kind = socket.SOCK_DGRAM if network == "udp" else socket.SOCK_STREAM
    client = socket.socket(socket.AF_INET, kind)
    client.settimeout(PATIENCE)
    try:
        client.connect(server.addresses[0])
    except OSError:
        client.close()
        raise
    return client

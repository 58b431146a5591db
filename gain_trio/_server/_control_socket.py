"""The control socket of a server: a Unix socket by which its user looks at it (``control=``, ``gain-trio top``).

The protocol is for other programs, too, and docs/watching.md describes it: a line of JSON asks, a line of JSON answers, any
number of times.  Nothing is done between two requests, so a server that is not looked at pays nothing.

*Who may connect.*  The file has mode 0600 from bind(2) on, and the kernel refuses every connection before listen(2)
(``_transports/_addresses/_unix.py``).  Then the peer's user (``SO_PEERCRED``) must be this process's, or root: a directory
may be moved, and a descriptor may be passed on.

*What a peer can cost.*  A request is short and has to come in time, an answer has to be read in time, and there are few
watchers at once.  A look is made for all of them together, once a second at most, and a watcher gets each look once: one
that asks without a pause waits for the next look.  One that connects anew for each request waits for its turn.  A worker
process that does not answer costs one look half a second, and then nothing.
"""

from __future__ import annotations

import json
import math
import os
import socket
from typing import Any, Final, Protocol, final

import attrs
import trio

from gain_trio._transports import (
    Connection,
    IncompleteMessage,
    MessageTooLong,
    SocketOptions,
    UnixAddress,
    close_sockets,
    open_sockets,
    shown,
)

from ._listening import serve_listeners
from ._server_config import ServerConfig
from ._snapshot import VERSION, ServerSnapshot, as_json

LARGEST_REQUEST: Final = 1024
"""Bytes of a request with its line feed."""
REQUEST_TIMEOUT: Final = 60.0
"""Seconds that a watcher may wait with its first request, or the next one."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds that a watcher has to read an answer."""
MOST_WATCHERS: Final = 8
"""Watchers at once; another one gets a line that says so."""
MOST_AT_ONCE: Final = 2 * MOST_WATCHERS
"""Connections, those that are sent away included; others wait."""
PAUSE: Final = 0.05
"""Seconds between the answers to two connections, at least, where it is the first answer or a refusal."""
FRESH: Final = 1.0
"""Seconds for which one look serves all watchers."""

_EXAMPLE: Final = json.dumps({"version": VERSION, "request": "snapshot"})


class Watchable(Protocol):
    """A server as the control socket knows it."""

    async def _snapshot(self) -> ServerSnapshot: ...


@final
class ControlSocket:
    """A socket that listens, for the server that :meth:`run` is given.  It removes its file when it is closed."""

    def __init__(self, groups: list[list[socket.socket]]) -> None:
        self._groups = groups

    @classmethod
    async def open(cls, path: str, options: SocketOptions) -> ControlSocket:
        """Listen.

        Args:
          path: where.
          options: with the owner of the file, if that is not this process's user.

        Raises:
          ValueError, OSError: the path is not valid, or not available.
        """
        return cls(await open_sockets([str(UnixAddress(path))], attrs.evolve(options, mode=0o600)))

    def close(self) -> None:
        """Stop listening; for when :meth:`run` was not called.  Again: nothing."""
        close_sockets(self._groups)

    async def run(self, server: Watchable) -> None:
        """Answer, until cancelled."""
        await serve_listeners(_ControlHandler(server), self._groups, ServerConfig(max_connections=MOST_AT_ONCE))


class Misuse(Exception):
    """A request that cannot be answered; the text says why, and what would do."""


def check_request(line: bytes) -> None:
    """Check that a line asks for a snapshot.

    Raises:
      Misuse: it does not.
    """
    try:
        request: Any = json.loads(line)
    except (ValueError, RecursionError):  # which deep nesting is for the parser
        request = None
    if not isinstance(request, dict):
        raise Misuse(f"a request is an object of JSON on one line: {_EXAMPLE}")
    version = request.get("version")
    if version != VERSION:
        given = "none" if version is None else shown(version, 40)
        raise Misuse(f"this server has version {VERSION} of the protocol, and the request {given}")
    if request.get("request") != "snapshot":
        raise Misuse(f'this server knows one request, "snapshot": {_EXAMPLE}')


@final
class _ControlHandler:
    """Answers the requests of a watcher."""

    def __init__(self, server: Watchable) -> None:
        self.__qualname__ = "gain_trio control"  # in the log; in the body of the class it would be the class's own
        self._server = server
        self._watchers = 0
        self._looking = trio.Lock()
        self._answer = b""
        self._taken_at = -math.inf
        self._next_turn = -math.inf

    async def __call__(self, connection: Connection) -> None:
        self._watchers += 1
        try:
            await self._attend(connection)
        except Misuse as misuse:
            await self._turn()
            await self._send(connection, _line({"version": VERSION, "error": str(misuse)}))
        except IncompleteMessage:  # the watcher has gone
            pass
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._answer = b""  # which may be large
                self._taken_at = -math.inf

    async def _attend(self, connection: Connection) -> None:
        user = connection.peer_credentials().uid
        if user not in {os.geteuid(), 0}:
            raise Misuse(f"this server is user {os.geteuid()}'s, and you are user {user}: ask as its user, or as root")
        if self._watchers > MOST_WATCHERS:
            raise Misuse(f"{MOST_WATCHERS} others look at this server already: end one of them, and try again")
        seen = -math.inf
        while True:
            with trio.move_on_after(REQUEST_TIMEOUT) as scope:
                try:
                    line = await connection.receive_until(b"\n", max_bytes=LARGEST_REQUEST)
                except MessageTooLong:
                    raise Misuse(f"a request has at most {LARGEST_REQUEST} bytes") from None
            if scope.cancelled_caught:
                raise Misuse(f"no request has come for {REQUEST_TIMEOUT:g} seconds")
            check_request(line)
            if seen == -math.inf:
                await self._turn()
            elif seen == self._taken_at:
                await trio.sleep_until(seen + FRESH)
            answer, seen = await self._snapshot()
            if not await self._send(connection, answer):
                return

    async def _turn(self) -> None:
        """Wait until there may be an answer again: few connections wait, and so it is not for long."""
        self._next_turn = max(self._next_turn + PAUSE, trio.current_time())
        await trio.sleep_until(self._next_turn)

    async def _send(self, connection: Connection, answer: bytes) -> bool:
        """Send a line, and return whether the watcher has read it, or will."""
        with trio.move_on_after(ANSWER_TIMEOUT):
            await connection.send(answer)
            await connection.flush()
            return True
        connection.abort()
        return False

    async def _snapshot(self) -> tuple[bytes, float]:
        """What the server looks like, or did a moment ago, and when."""
        async with self._looking:
            if trio.current_time() - self._taken_at >= FRESH:
                snapshot = await self._server._snapshot()
                self._taken_at = trio.current_time()
                self._answer = _line(as_json(snapshot, now=self._taken_at))
            return self._answer, self._taken_at


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"

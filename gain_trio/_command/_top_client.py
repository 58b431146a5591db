"""The other end of a server's control socket: what ``gain-trio top`` asks, and what can go wrong with that.

A client believes nothing of what it is sent: an answer has a limit, and has to be one of this protocol.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Final, final

from gain_trio._server import CONTROL_VERSION
from gain_trio._transports import shown

LONGEST_ANSWER: Final = 16 << 20
"""Bytes of an answer."""
PATIENCE: Final = 5.0
"""Seconds to wait for a server that does not answer."""

_SCHEME: Final = "unix://"
_REQUEST: Final = json.dumps({"version": CONTROL_VERSION, "request": "snapshot"}).encode("ascii") + b"\n"


class Unwatchable(Exception):
    """A server that cannot be looked at; the text says why, and what would do."""


@final
class ControlClient:
    """A connection to a control socket.

    Raises:
      Unwatchable: there is none, or it is not for this user.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise Unwatchable(_why_not(path, error)) from None

    def fileno(self) -> int:
        """The descriptor, which is readable when :meth:`receive` has something to do."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def request(self) -> None:
        """Ask for a snapshot.

        Raises:
          Unwatchable: the server is gone.
        """
        try:
            self._socket.sendall(_REQUEST)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it has said before its end can be read still
        except OSError as error:
            raise self._unwatchable(
                f"has a control socket that cannot be written to: {error.strerror or error}"
            ) from None

    def receive(self) -> dict[str, Any] | None:
        """Read what has come; the answer when it is there.

        Raises:
          Unwatchable: the server is gone, refuses, or is no such server.
        """
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise self._unwatchable(
                "does not answer: it is starting still, stopped, or held up by something that runs in it"
            ) from None
        except OSError as error:
            raise self._unwatchable(f"is gone: {error.strerror}") from None
        if not data:
            raise self._unwatchable("has ended")
        self._buffer += data
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            if len(self._buffer) > LONGEST_ANSWER:
                raise self._no_server()
            return None
        self._buffer = rest
        return self._understood(bytes(line))

    def ask(self) -> dict[str, Any]:
        """Ask for a snapshot, and wait for it.

        Raises:
          Unwatchable: see :meth:`receive`.
        """
        self.request()
        end = time.monotonic() + PATIENCE
        while (answer := self.receive()) is None:
            if time.monotonic() > end:
                raise self._unwatchable("takes too long to answer")
        return answer

    def _understood(self, line: bytes) -> dict[str, Any]:
        try:
            answer: Any = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), int):
            raise self._no_server()
        if answer["version"] != CONTROL_VERSION:
            raise self._unwatchable(
                f"has version {answer['version']} of the protocol and this gain-trio version {CONTROL_VERSION}: use the "
                "gain-trio that is installed with the server"
            )
        if "error" in answer:
            raise self._unwatchable(f"refuses: {shown(answer['error'])}")
        return answer

    def _no_server(self) -> Unwatchable:
        return Unwatchable(
            f"what listens at {shown(self.path)} is no control socket of gain_trio: give the PATH of --control"
        )

    def _unwatchable(self, what: str) -> Unwatchable:
        return Unwatchable(f"the server at {shown(self.path)} {what}")


def _why_not(path: str, error: Exception) -> str:
    """Why nothing can be connected to at this path, and the cure."""
    name = shown(path)
    number = error.errno if isinstance(error, OSError) else None
    is_socket = (
        Path(path).is_socket() if number == errno.ECONNREFUSED else number not in {errno.EPROTOTYPE, errno.ENOTSOCK}
    )
    if not is_socket:
        return f"{name} is no control socket of gain_trio: give the PATH of the server's --control"
    if number in {errno.ENOENT, errno.ENOTDIR}:
        address, is_address = path.removeprefix(_SCHEME), path.startswith(_SCHEME)
        cure = f"start the server with --control {name}, or give the PATH that it has"
        return (
            f"there is no control socket at {name}: {f'give the path alone, {shown(address)}' if is_address else cure}"
        )
    if number == errno.ECONNREFUSED:
        return f"no server listens at {name} any more: start it again with --control {name}"
    if number in {errno.EACCES, errno.EPERM}:
        return f"{name} is not for this user: run gain-trio top as {_owner(path)}, or as root"
    if number == errno.EAGAIN:
        return f"the server at {name} takes no connection: it is held up, or too many look at it; try again"
    is_long = number is None and isinstance(error, OSError)  # Python's own: the kernel has no room for the path
    cure = "; give a shorter one, from the current folder for example" if is_long else ""
    return f"cannot connect to {name}: {shown(getattr(error, 'strerror', None) or error)}{cure}"


def _owner(path: str) -> str:
    import pwd  # noqa: PLC0415 - not every system has users

    try:
        user = os.lstat(path).st_uid
        return shown(pwd.getpwuid(user).pw_name)
    except (OSError, KeyError):  # in a folder that may not be looked into, or without a name
        return "the server's user"

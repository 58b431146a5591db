"""Binding a Unix socket to a path where a killed server may have left its file.

bind(2) does not replace a file.  This module replaces a file only if it is a socket (lstat(2)) that refuses a connection,
and that no process has open.  A refused connection alone proves nothing: a server refuses connections between its bind(2)
and its listen(2), too.  So the module searches the kernel's list of sockets (``_unix_holders.py``).  If a process has the
socket open, the module waits for a bounded time, and leaves the file alone then.  A server in another network namespace is
not in that list: if a file is new, the module gives such a server the time to listen.

*No lock.*  Any user could keep a lock that servers of several users share: read permission is enough for flock(2) on the
directory, and every user may bind the name of an abstract socket.  So two servers may find the same left-over file, and
the second must not remove the file that the first has put in its place.  A server therefore keeps the file that it judged
open (``O_PATH``), so that the file system does not use its inode number again; then it renames the file, and removes it
only if it is still the same one under its new name.  Otherwise it puts the file back.  A server that has bound checks, at
the end, that the file is its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from ._bind_retry import bind_with_retries
from ._shown import shown
from ._unix_holders import is_held

logger = logging.getLogger("gain_trio")

RETRY_SECONDS: Final = 1.0
"""Seconds to wait for a socket that a process has bound, and that refuses connections."""
FRESH: Final = 0.25
"""The most seconds that a server in another network namespace needs from bind(2) to listen(2)."""
_PAUSE: Final = 0.01
_LOOK_AGAIN: Final = 50
"""Pauses of bind_with_retries() before it looks at a listening server again, which may have been killed a moment ago."""
_HELD: Final = (
    "a process has bound a socket there that does not listen (yet); see ss -xlp, and try again when it has ended"
)
_JUST_MADE: Final = "a socket of this name was made a moment ago, and refuses connections"
_REPLACED: Final = "its file was removed or replaced while this server was starting"
_FASTER: Final = "another server is starting there"


async def bind_path(sock: socket.socket, path: str) -> None:
    """Bind a socket to a path, and replace a left-over socket there and nothing else.

    Raises:
      OSError: ``EADDRINUSE`` if another file is there, with the reason; and the errors of bind(2).

    A cancelled call has not bound the socket.
    """
    end = trio.current_time() + RETRY_SECONDS
    while True:
        if _binds(sock, path):
            return
        # A live server sees each look at it as a connection.
        reason = await bind_with_retries(functools.partial(_make_room, path), pauses=_LOOK_AGAIN)
        if reason is None and _binds(sock, path):
            return
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, reason or _FASTER)
        await trio.sleep(_PAUSE)


async def file_of(path: str) -> os.stat_result:
    """The socket's file, right after it was bound to ``path``.

    Raises:
      OSError: the file is missing.
    """
    end = trio.current_time() + RETRY_SECONDS
    while True:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISSOCK(found.st_mode):
            return found
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, _REPLACED)
        await trio.sleep(_PAUSE)  # another server may be about to put the file back


async def check_bound(is_own: Callable[[], bool]) -> None:
    """Check that the file is still the one that this server has bound.

    Raises:
      OSError: another server has replaced the file.
    """
    end = trio.current_time() + RETRY_SECONDS
    while not is_own():
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, _REPLACED)
        await trio.sleep(_PAUSE)


def _binds(sock: socket.socket, path: str) -> bool:
    """Bind unless a file of this name exists, and return whether the socket is bound."""
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


_making_room = threading.Lock()
"""Between judging a file and removing it no other run of this process does the same."""


def _make_room(path: str) -> str | None:
    """Remove a left-over socket, or return a temporary reason not to."""
    try:
        with _making_room, _kept(path) as kept:
            reason = _why_not_left_over(path, kept)
            if reason is None:
                _remove(path, kept)
            return reason
    except FileNotFoundError:
        return None  # another server has removed it, or removed it at its end


@contextlib.contextmanager
def _kept(path: str) -> Iterator[os.stat_result]:
    """The lstat(2) of a file, whose inode number stays its own inside the context."""
    flags = getattr(os, "O_PATH", 0)
    if not flags:
        yield os.lstat(path)
        return
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _why_not_left_over(path: str, found: os.stat_result) -> str | None:
    """None for a left-over socket, or a temporary reason not to remove it.

    Raises:
      OSError: the file is not a left-over socket.
    """
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(
            errno.EADDRINUSE,
            "there is something of this name that is not a socket, and it is left alone: remove it, or take another path",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in {0, errno.EAGAIN, errno.EPROTOTYPE}:
        raise OSError(errno.EADDRINUSE, "a server is listening there: end it, or take another path")
    if answer == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if answer != errno.ECONNREFUSED:
        raise OSError(
            errno.EADDRINUSE,
            f"there is a socket of this name, and it is unknown whether a server lives there: {os.strerror(answer)}",
        )
    if is_held(path, found):
        return _HELD
    if 0 <= time.time() - found.st_ctime < FRESH:
        return _JUST_MADE
    return None


def _remove(path: str, judged: os.stat_result) -> None:
    """Remove the file that was judged, and leave any other file where it is.

    Another process may replace the file between the look and rename(2), which takes microseconds; then it is put back.
    """
    if not os.path.samestat(os.lstat(path), judged):
        return
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")  # noqa: PTH118 - bare strings, as everywhere here
    os.rename(path, aside)  # noqa: PTH104 - the same
    if os.path.samestat(os.lstat(aside), judged):
        Path(aside).unlink()
        return
    try:
        os.link(aside, path, follow_symlinks=False)  # link(2) replaces nothing
        Path(aside).unlink()
    except FileExistsError:  # a third server has bound the name; the second detects that in check_bound()
        logger.warning(
            "the Unix socket of a server that was just starting is left as %s: another one is now at %s",
            shown(aside),
            shown(path),
        )
    except OSError:  # link(2) fails for others' files (protected_hardlinks, proc(5)) and on some file systems
        os.rename(aside, path)  # noqa: PTH104 - the same

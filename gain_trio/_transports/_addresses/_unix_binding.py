"""Binding a Unix socket to a path, where a server that was killed may have left its file.

bind(2) does not replace a file.  What is replaced has to be a socket (lstat(2)) that refuses a connection, and that no
process has.  A refused connection alone proves nothing: a server refuses connections between its bind(2) and its listen(2),
too.  So the kernel's list of sockets is asked (``_unix_holders.py``), and a socket that is held is waited for, a bounded
while, and then left alone.  A server in another network namespace is not in that list: a file that has just been made is
given the time that such a server needs to listen.

*No lock.*  A lock that servers of several users share is one that any of them can keep: for flock(2) on the directory,
read permission is enough, and the name of an abstract socket is everybody's.  So two servers may find the same file left
over, and the second must not remove what the first has put in its place.  The file that was judged is therefore kept open
(``O_PATH``), so that its inode's number is not used again; then it is renamed, and removed only if it is still the same one
under its new name.  If it is not, it is put back.  A server that has bound looks, at the end, whether the file is its own.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from ._patient_bind import bind_patiently
from ._shown import shown
from ._unix_holders import is_held

logger = logging.getLogger("gain_trio")

PATIENCE: Final = 1.0
"""Seconds that a socket is waited for which a process has bound, and which refuses connections."""
FRESH: Final = 0.25
"""Seconds that a server needs from bind(2) to listen(2) at most, when it is in another network namespace."""
_PAUSE: Final = 0.01
_LOOK_AGAIN: Final = 50
"""Pauses of bind_patiently() before a server that listens is looked at again: it may have been killed a moment ago."""
_HELD: Final = (
    "a process has bound a socket there that does not listen (yet); see ss -xlp, and try again when it has ended"
)
_JUST_MADE: Final = "a socket of this name was made a moment ago, and refuses connections"
_REPLACED: Final = "its file was removed or replaced while this server was starting"
_FASTER: Final = "another server is starting there"


async def bind_path(sock: socket.socket, path: str) -> None:
    """Bind a socket to a path, and replace a socket there that is left over, and nothing else.

    Raises:
      OSError: ``EADDRINUSE`` if something is there, with the reason; and what bind(2) raises.

    Cancelled, it has not bound.
    """
    end = trio.current_time() + PATIENCE
    while True:
        if _binds(sock, path):
            return
        # A server that lives sees each look at it as a connection.
        reason = await bind_patiently(functools.partial(_make_room, path), pauses=_LOOK_AGAIN)
        if reason is None and _binds(sock, path):
            return
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, reason or _FASTER)
        await trio.sleep(_PAUSE)


async def file_of(path: str) -> os.stat_result:
    """The socket's file, right after it was bound to ``path``.

    Raises:
      OSError: it is not there.
    """
    end = trio.current_time() + PATIENCE
    while True:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISSOCK(found.st_mode):
            return found
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, _REPLACED)
        await trio.sleep(_PAUSE)  # another server may be about to put it back


async def check_bound(is_own: Callable[[], bool]) -> None:
    """Look whether the file is still the one that was bound.

    Raises:
      OSError: it is not: another server has taken its place.
    """
    end = trio.current_time() + PATIENCE
    while not is_own():
        if trio.current_time() >= end:
            raise OSError(errno.EADDRINUSE, _REPLACED)
        await trio.sleep(_PAUSE)


def _binds(sock: socket.socket, path: str) -> bool:
    """Bind, unless there is something of this name."""
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _make_room(path: str) -> str | None:
    """Remove a socket that is left over, or return a reason not to, which may pass."""
    try:
        with _kept(path) as kept:
            reason = _why_not_left_over(path, kept)
            if reason is None:
                _remove(path, kept)
            return reason
    except FileNotFoundError:
        return None  # another server, or its end, has removed it


@contextlib.contextmanager
def _kept(path: str) -> Iterator[os.stat_result]:
    """What lstat(2) says of a file, which stays that file's while this lasts."""
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
    """None for a socket that is left over, or a reason that may pass.

    Raises:
      OSError: it is not left over.
    """
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "there is something of this name that is no socket, and it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in {0, errno.EAGAIN, errno.EPROTOTYPE}:
        raise OSError(errno.EADDRINUSE, "a server is listening there")
    if answer == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if answer != errno.ECONNREFUSED:
        raise OSError(
            errno.EADDRINUSE,
            f"there is a socket of this name, and nobody knows whether a server lives there: {os.strerror(answer)}",
        )
    if is_held(path, found):
        return _HELD
    if 0 <= time.time() - found.st_ctime < FRESH:
        return _JUST_MADE
    return None


def _remove(path: str, judged: os.stat_result) -> None:
    """Remove the file that was judged, and leave any other where it is."""
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")  # noqa: PTH118 - bare strings, as everywhere here
    os.rename(path, aside)  # noqa: PTH104 - the same
    if os.path.samestat(os.lstat(aside), judged):
        Path(aside).unlink()
        return
    try:
        os.link(aside, path, follow_symlinks=False)  # which replaces nothing
        Path(aside).unlink()
    except FileExistsError:  # a third server has taken the name; the second finds that out by check_bound()
        logger.warning(
            "the Unix socket of a server that was just starting is left as %s: another one is now at %s",
            shown(aside),
            shown(path),
        )
    except OSError:  # links are not for everybody's files (protected_hardlinks, proc(5)), and not on every file system
        os.rename(aside, path)  # noqa: PTH104 - the same

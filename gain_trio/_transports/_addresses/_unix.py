"""Unix sockets: listening, datagrams, connecting, and the peer's credentials; unix(7).

*Only permitted users ever connect.*  bind(2) makes the file with the mode that the umask leaves, and the umask belongs to
the whole process: a change for a moment would affect every other thread.  Some servers bind at another name and rename;
that is unnecessary and visible, because getsockname(2) and getpeername(2) still return the bound name.  So this module
binds, then sets owner, group and mode, and then listens.  connect(2) checks the mode at each call, and the kernel refuses
every connection until listen(2): so the mode applies at every moment.  On Linux the file never has more than this mode, not
even for the moment between (see below).  The module sets owner and mode without following
links, so a user who can put a link in place of the file gains nothing.

A datagram socket has no listen(2): every user who may write to its file can send from bind(2) on, and a client that has
connected stays connected whatever the mode becomes.  On Linux, bind(2) makes the file with the mode of the socket's own
inode, less the umask, so fchmod(2) of the socket before it makes a file that no other user may write to until owner and
mode are set.  Other systems lack that: there, a directory that others cannot search keeps them out for that moment.

*Binding replaces a left-over file and nothing else*: see ``_unix_binding.py``.

*Closing removes the file*, if it is still the same (device and inode; the file system does not use the number again while
the socket is bound), and before the socket is closed, so that no other server can have begun to replace it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, final

import attrs
import trio

from ._address import UnixAddress
from ._bind_retry import bind_with_retries
from ._passed_descriptors import SO_PASSRIGHTS, accept_descriptors, descriptor_closer
from ._shown import shown
from ._sockets import deepen_send_buffer
from ._unix_binding import bind_path, check_bound, file_of

_SHORTEST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
_BIND_TAKES_MODE: Final[bool] = sys.platform == "linux"
"""Whether bind(2) makes the file with the mode that fchmod(2) has given the socket."""

logger = logging.getLogger("gain_trio")


@final
@attrs.frozen
class PeerCredentials:
    """The credentials of the peer of a Unix connection, which the kernel recorded at its connect(2) or listen(2)."""

    pid: int
    """The process id; 0 if the peer is in a PID namespace that this process cannot see."""
    uid: int
    """The effective user id."""
    gid: int
    """The effective group id."""


@final
@attrs.frozen(kw_only=True)
class Access:
    """Mode, owner and group of a Unix socket's file, which decide who may connect.  None keeps the system's default."""

    mode: int | None = None
    owner: int | str | None = None
    group: int | str | None = None

    def __attrs_post_init__(self) -> None:
        for name, who in (("owner", self.owner), ("group", self.group)):
            if isinstance(who, bool) or not isinstance(who, int | str | None):
                raise TypeError(f"the {name} of a Unix socket is a number, a name or None, not {who!r}")
            if (isinstance(who, int) and who < 0) or who == "":  # -1 would leave it as it is, see chown(2)
                raise ValueError(f"the {name} of a Unix socket is a number of at least 0, a name or None, not {who!r}")
        if isinstance(self.mode, bool) or not isinstance(self.mode, int | None):
            raise TypeError(f"the mode of a Unix socket is a number such as 0o660, or None, not {self.mode!r}")
        if self.mode is not None and not 0 <= self.mode <= 0o777:
            raise ValueError(f"the mode of a Unix socket is at most 0o777, such as 0o660, not {oct(self.mode)}")

    def __bool__(self) -> bool:
        return (self.mode, self.owner, self.group) != (None, None, None)


def check_unix(instead: str = "tcp://127.0.0.1:PORT") -> None:
    """Raise a :exc:`ValueError` if Python has no Unix sockets here."""
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"Python has no Unix sockets on {sys.platform}; use {instead}")


def check_access(address: UnixAddress, access: Access) -> None:
    """Raise a :exc:`ValueError` if ``access`` is given for an abstract name, which has no file and so no mode."""
    if address.abstract and access:
        raise ValueError(
            f"{address} is an abstract name, which has no file and no mode: all users may connect; "
            "use a path, or look at peer_credentials()"
        )


# --- listening ---


@final
class OwningSocket(socket.socket):
    """A Unix socket that removes its file when it is closed."""

    _file: tuple[str, int, int, int] | None = None

    def owns(self, path: str, found: os.stat_result) -> None:
        """Record the file that bind(2) has made at this path."""
        self._file = (path, found.st_dev, found.st_ino, os.getpid())

    def has_file(self) -> bool:
        """Whether the file is still the one that was bound."""
        assert self._file is not None
        path, device, inode, _process = self._file
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (device, inode)

    def remove_file(self) -> None:
        """Remove the file, if it is still the one that was bound."""
        owned, self._file = self._file, None
        if owned is not None:
            _remove(*owned)

    def close(self) -> None:
        """Remove the file, and close the socket."""
        self.remove_file()
        super().close()


def close_listening(sock: socket.socket) -> None:
    """Close a listener, in a thread if descriptors may be queued in a connection that waits for accept(2).

    Otherwise, and if the kernel cannot refuse descriptors, it is closed at once, so that its address is free.
    """
    receives = False
    with contextlib.suppress(OSError):  # an older kernel, or a socket that other code has closed
        if sock.family == getattr(socket, "AF_UNIX", None):
            receives = bool(sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
    if receives and isinstance(sock, OwningSocket):  # another process may share any other socket: leave that alone
        sock.remove_file()
        receives = not accept_descriptors(sock, False) or _has_waiting(sock)
    if receives:
        descriptor_closer.close_socket(sock)
    else:
        sock.close()


def _has_waiting(sock: socket.socket) -> bool:
    """Whether a connection waits for accept(2)."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _remove(path: str, device: int, inode: int, process: int) -> None:
    if process != os.getpid():  # the child of a fork: the server lives on in its parent
        return
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (device, inode):
            Path(path).unlink()
    except FileNotFoundError:
        pass  # another process has removed the file already
    except OSError as error:  # the process may have dropped privileges since; the socket is closed even so
        logger.warning(
            "cannot remove the Unix socket %s: %s; the next server there replaces it",
            shown(path),
            shown(error.strerror),
        )


async def listen_unix(address: UnixAddress, backlog: int, access: Access, *, pass_fds: bool) -> socket.socket:
    """Open a listening socket, which removes its file when it is closed.

    Raises:
      ValueError: the system does not know the owner or group.
      OSError: the socket cannot be opened; the message does not name the address.
    """
    owner, group = _user_id(access.owner), _group_id(access.group)
    sock = OwningSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        accept_descriptors(sock, pass_fds)
        if address.abstract:
            await bind_with_retries(functools.partial(sock.bind, address.sockaddr))
            sock.listen(backlog)
            return sock
        if _BIND_TAKES_MODE and access.mode is not None:
            os.fchmod(sock.fileno(), access.mode)
        await bind_path(sock, address.path)
        sock.owns(address.path, await file_of(address.path))
        _give(address.path, owner, group, access.mode)
        sock.listen(backlog)
        await check_bound(sock.has_file)
        return sock
    except BaseException:
        sock.close()
        raise


async def bind_unix(
    address: UnixAddress, remote: UnixAddress | None, access: Access, configure: Callable[[socket.socket], None]
) -> socket.socket:
    """Open a non-blocking datagram socket of this name, which removes its file when it is closed.

    Raises:
      ValueError: the system does not know the owner or group.
      OSError: the socket cannot be opened; the message does not name the address.
    """
    owner, group = _user_id(access.owner), _group_id(access.group)
    await trio.lowlevel.checkpoint()
    sock = OwningSocket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        accept_descriptors(sock, False)
        configure(sock)
        if remote is not None:
            sock.connect(remote.sockaddr)  # before it has a name, so that no stranger can send to it in between
        if address.abstract:
            await bind_with_retries(functools.partial(sock.bind, address.sockaddr))
            return sock
        mode = access.mode
        if _BIND_TAKES_MODE and (mode, owner, group) != (None, -1, -1):
            mode = 0o777 & ~_umask() if mode is None else mode
            os.fchmod(sock.fileno(), 0)
        await bind_path(sock, address.path)
        sock.owns(address.path, await file_of(address.path))
        _give(address.path, owner, group, mode)
        await check_bound(sock.has_file)
        return sock
    except BaseException:
        sock.close()
        raise


def _give(path: str, owner: int, group: int, mode: int | None) -> None:
    if (owner, group) != (-1, -1):
        os.chown(path, owner, group, follow_symlinks=False)
    if mode is not None:
        _set_mode(path, mode)


def _umask() -> int:
    """The umask of the process, from /proc, because umask(2) would change it for every thread."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _colon, value = line.partition(":")
        if name == "Umask":
            return int(value, 8)
    raise OSError(errno.EOPNOTSUPP, "the kernel does not report the umask (proc(5), Umask): give a mode as well")


def _set_mode(path: str, mode: int) -> None:
    """Set a mode without following a link, which Linux supports since 6.6, and Python's chmod does not use yet."""
    if os.chmod in os.supports_follow_symlinks:
        Path(path).chmod(mode, follow_symlinks=False)
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTSOCK, "another process has put something else in the place of the socket")
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)


def _user_id(owner: int | str | None) -> int:
    if not isinstance(owner, str):
        return -1 if owner is None else owner
    import pwd  # noqa: PLC0415 - the same

    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {owner!r} who could own the socket") from None


def _group_id(group: int | str | None) -> int:
    if not isinstance(group, str):
        return -1 if group is None else group
    import grp  # noqa: PLC0415 - the same

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {group!r} that could own the socket") from None


# --- connecting ---


async def connect_unix(address: UnixAddress, *, pass_fds: bool) -> socket.socket:
    """Open a connected, non-blocking socket.

    If the server's backlog is full, the function waits for a place there.  The kernel does not report a free place
    (connect(2), ``EAGAIN``), so the function tries again and again.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pause = _SHORTEST_PAUSE
    try:
        sock.setblocking(False)
        accept_descriptors(sock, pass_fds)
        deepen_send_buffer(sock)
        await trio.lowlevel.checkpoint()
        while (answer := sock.connect_ex(address.sockaddr)) == errno.EAGAIN:
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if answer:
            raise OSError(answer, f"cannot connect to {address}: {os.strerror(answer)}")  # noqa: TRY301 - one place closes
    except BaseException:
        sock.close()
        raise
    return sock


# --- the peer's credentials ---


class _HasOptions(Protocol):
    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> Any: ...


_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred


def peer_credentials(connection: _HasOptions) -> PeerCredentials:
    """See :meth:`Connection.peer_credentials`."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        raise OSError(errno.EOPNOTSUPP, f"{sys.platform} has no SO_PEERCRED, which returns the peer's credentials")
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX:
        raise ValueError("only a Unix connection has peer credentials; of this one there is a remote_address")
    return PeerCredentials(
        *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)),
    )

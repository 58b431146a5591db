"""Whether a process has the socket of a file open, which connect(2) does not show of one that does not listen yet.

The kernel lists the Unix sockets of the network namespace with the inode of their files (sock_diag(7), ``UDIAG_SHOW_VFS``).
That is exact: no other user can make a socket that looks like this one.  If there is no such list (the module unix_diag
is missing, or a sandbox forbids it), /proc/net/unix has the names that the sockets were bound by (proc(5)); this module can
look up the absolute ones only.

Neither list has the sockets of other network namespaces, which may share the directory.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG, and the rest by the names that linux/sock_diag.h and linux/unix_diag.h have
_BY_FAMILY: Final = 20
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR: Final = 2
_DONE: Final = 3
_INTERRUPTED: Final = 0x10  # NLM_F_DUMP_INTR
_SHOW_NAME_AND_VFS: Final = 3
_NAME: Final = 0
_VFS: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBHIIIII")
_MESSAGE_SIZE: Final = 16  # struct unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")
_FILE: Final = struct.Struct("=II")
_MOST_PARTS: Final = 100_000
"""The most messages of a list; each has many sockets."""


def is_held(path: str, found: os.stat_result) -> bool | None:
    """Whether a process of this network namespace has the Unix socket of this file open.

    Args:
      path: the name of the file.
      found: its lstat(2).

    Returns:
      None if neither list is available.
    """
    if sys.platform != "linux":
        return None
    for _attempt in range(3):
        try:
            return any(_is_same(file, name, path, found) for file, name in _listed())
        except InterruptedError:  # processes opened or closed sockets meanwhile: the list may lack some
            continue
        except OSError:
            break
    return _is_named(found)


def _is_same(file: tuple[int, int], name: bytes, path: str, found: os.stat_result) -> bool:
    """Whether a listed socket has this file; by the last part of the name on btrfs, where stat(2) has another device."""
    inode, device = file
    if inode != found.st_ino & 0xFFFFFFFF:
        return False
    is_same_device = device == (os.major(found.st_dev) << 20 | os.minor(found.st_dev))
    return is_same_device or os.path.basename(os.fsdecode(name)) == os.path.basename(path)  # noqa: PTH119 - bare strings


def _listed() -> Iterator[tuple[tuple[int, int], bytes]]:
    """The inode and device of each Unix socket that has a file, and its name.

    Raises:
      InterruptedError: the list changed while it was read.
      OSError: there is no list.
    """
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME_AND_VFS, 0xFFFFFFFF, 0xFFFFFFFF)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as sock:
        sock.settimeout(1.0)  # the kernel answers at once
        sock.sendto(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 1, 0) + request, (0, 0))
        for _part in range(_MOST_PARTS):
            part = memoryview(sock.recv(1 << 17))
            while len(part) >= _HEADER.size:
                length, kind, flags, _sequence, _port = _HEADER.unpack_from(part)
                if flags & _INTERRUPTED:
                    raise InterruptedError
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", part, _HEADER.size)[0]
                    raise OSError(number, os.strerror(number))
                described = _described(part[_HEADER.size + _MESSAGE_SIZE : length])
                if described is not None:
                    yield described
                part = part[max((length + 3) & ~3, _HEADER.size) :]
    raise OSError("the list has no end")


def _described(attributes: memoryview) -> tuple[tuple[int, int], bytes] | None:
    file, name = None, b""
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _VFS:
            file = _FILE.unpack_from(attributes, _ATTRIBUTE.size)
        elif kind == _NAME:
            name = bytes(attributes[_ATTRIBUTE.size : length]).rstrip(b"\0")
        attributes = attributes[max((length + 3) & ~3, _ATTRIBUTE.size) :]
    return None if file is None else (file, name)


def _is_named(found: os.stat_result) -> bool | None:
    """The same as :func:`is_held`, by /proc/net/unix."""
    try:
        lines = Path("/proc/net/unix").read_bytes().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        name = line.split(None, 7)[7:]
        if not name or not name[0].startswith(b"/"):
            continue
        try:
            other = os.lstat(name[0])
        except (OSError, ValueError):
            continue
        if os.path.samestat(other, found):
            return True
    return False

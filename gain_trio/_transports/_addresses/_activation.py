"""Sockets that the process was started with: ``fd://3``, and systemd's socket activation (sd_listen_fds(3)).

A service manager opens the sockets, starts the program when a client connects, and passes them as descriptors from 3
on.  It describes them in three environment variables:

    LISTEN_PID        the process that gets them; another process that inherits the variables ignores them
    LISTEN_FDS        the number of descriptors
    LISTEN_FDNAMES    their names (FileDescriptorName=), separated by colons; "unknown" for a missing name

As sd_listen_fds(unset_environment=1) does, the first use of an ``fd://systemd`` address removes the variables from the
environment, so that they mislead no child process, and makes the descriptors close-on-exec.  This module remembers the
descriptors for later addresses, ``fd://systemd/web`` now and ``fd://systemd/api`` then, and returns each socket once: the
second time its number may be another file's.

A program may use a number such as ``fd://3`` again after it has closed that socket, because the number is another file's
by then.  Before that this module refuses it: the first of two owners to close would close the other's descriptor.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import weakref
from typing import Final, final

from ._address import FdAddress

FIRST: Final = 3
"""The first descriptor that systemd passes: SD_LISTEN_FDS_START."""
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NUMBER = re.compile("[0-9]{1,10}")
_SHOWN: Final = 200
"""The most characters of a variable that an error message repeats."""
_CURE: Final = "start the program by a .socket unit, or try it with systemd-socket-activate"


@final
class ActivationSockets:
    """The descriptors that were passed to this process, and their owners."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._owners: dict[int, weakref.ref[socket.socket]] = {}

    def take(self, address: FdAddress) -> list[int]:
        """The descriptors that an address names.  A caller that makes sockets of them calls :meth:`own`.

        Raises:
          OSError: the address names no descriptor, or one that has an owner.
        """
        if address.descriptor is not None:
            _check_open(address.descriptor)
            if self._is_owned(address.descriptor):
                reason = f"descriptor {address.descriptor} was opened before by another fd:// address, and can be once"
                raise OSError(errno.EBUSY, reason)
            return [address.descriptor]
        self._read_environment()
        if not self._names:
            raise OSError(errno.ENOENT, f"systemd has passed no sockets: LISTEN_PID is not set; {_CURE}")
        meant = [number for number, name in self._names.items() if address.name in {None, name}]
        if not meant:
            known = ", ".join(sorted(set(self._names.values())))
            reason = f"no socket of this name was passed; there are: {known} (FileDescriptorName=, systemd.socket(5))"
            raise OSError(errno.ENOENT, reason)
        free = [number for number in meant if number not in self._owners]
        if not free:
            raise OSError(errno.EBUSY, "the sockets were opened before by another fd:// address, and can be once")
        return free

    def own(self, sockets: list[socket.socket]) -> None:
        """Record that these sockets own their descriptors until they are closed."""
        self._owners.update((sock.fileno(), weakref.ref(sock)) for sock in sockets)

    def _is_owned(self, descriptor: int) -> bool:
        """Whether a socket that is still open owns the descriptor."""
        owner = self._owners[descriptor]() if descriptor in self._owners else None
        return owner is not None and owner.fileno() == descriptor

    def _read_environment(self) -> None:
        meant = os.environ.get("LISTEN_PID")
        if meant is None:
            return
        pid = _number(meant)
        if pid is None:
            raise OSError(errno.EINVAL, f"LISTEN_PID is not a process: {meant[:_SHOWN]!r}")
        if pid != os.getpid():
            reason = f"the sockets were passed to process {meant} (LISTEN_PID), and this is {os.getpid()}"
            raise OSError(errno.ENOENT, f"{reason}; a script that starts the program must do so with exec")
        said = os.environ.get("LISTEN_FDS", "")
        count = _number(said)
        if count is None:
            raise OSError(errno.EINVAL, f"LISTEN_PID is set, and LISTEN_FDS is not a number: {said[:_SHOWN]!r}")
        descriptors = range(FIRST, FIRST + count)
        for descriptor in descriptors:  # before a list of this length is made: the variable may have any number
            _check_open(descriptor)
        names = os.environ.get("LISTEN_FDNAMES", ":".join(["unknown"] * count))
        listed = names.split(":") if names or count else []
        if len(listed) != count:
            reason = f"LISTEN_FDNAMES has {len(listed)} names for {count} descriptors (LISTEN_FDS): {names[:_SHOWN]!r}"
            raise OSError(errno.EINVAL, reason)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._names = dict(zip(descriptors, listed, strict=True))
        self._owners = {number: owner for number, owner in self._owners.items() if self._is_owned(number)}
        for variable in VARIABLES:
            os.environ.pop(variable, None)


passed: Final = ActivationSockets()
"""The descriptors that were passed to this process."""


def _number(text: str) -> int | None:
    """The text as a number, or None if it has another character than a digit, or more digits than any of these numbers."""
    return int(text) if _NUMBER.fullmatch(text) else None


def _check_open(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"this process has no descriptor {descriptor}: {error.strerror}") from error


def take_sockets(address: FdAddress) -> list[socket.socket]:
    """The sockets that an address names.  The caller calls :func:`keep` or :func:`give_back` for them then.

    Raises:
      OSError: a descriptor is missing, is not a socket, or has an owner.
    """
    sockets: list[socket.socket] = []
    try:
        for descriptor in passed.take(address):
            try:
                sockets.append(socket.socket(fileno=descriptor))
            except OSError as error:
                if error.errno != errno.ENOTSOCK:
                    raise
                raise OSError(error.errno, f"descriptor {descriptor} is not a socket") from error
            os.set_inheritable(descriptor, False)
    except BaseException:
        give_back(sockets)
        raise
    return sockets


def keep(sockets: list[socket.socket]) -> None:
    """Make the caller the owner of the sockets."""
    passed.own(sockets)


def give_back(sockets: list[socket.socket]) -> None:
    """Detach the sockets without closing their descriptors, which stay available to later addresses."""
    for sock in sockets:
        sock.detach()

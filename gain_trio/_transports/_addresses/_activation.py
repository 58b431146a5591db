"""Sockets that the process was started with: ``fd://3``, and systemd's socket activation (sd_listen_fds(3)).

A service manager opens the sockets, starts the program when somebody connects, and passes them as descriptors from 3
on.  It says so in three variables of the environment:

    LISTEN_PID        the process that is meant; whoever else inherits the variables is not
    LISTEN_FDS        how many there are
    LISTEN_FDNAMES    their names (FileDescriptorName=), with colons between; "unknown" where it is missing

As sd_listen_fds(unset_environment=1) does, the first use of an ``fd://systemd`` address takes the variables out of the
environment, so that no program started from here is misled, and makes the descriptors close-on-exec.  What was passed
is remembered for the addresses that come later, ``fd://systemd/web`` now and ``fd://systemd/api`` then, and each
socket is given out once: the second time its number may be another file's.

A number that the program gives itself, ``fd://3``, may come again when the socket that it stood for has been closed: it is
another file's by then.  Before that it is refused.  Of two owners the first to close would close the other's.
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
"""SD_LISTEN_FDS_START."""
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NUMBER = re.compile("[0-9]{1,10}")
_SHOWN: Final = 200
"""Characters of a variable that an error message repeats."""
_CURE: Final = "start the program by a .socket unit, or try it with systemd-socket-activate"


@final
class Passed:
    """What was passed to this process, and who has it."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._owners: dict[int, weakref.ref[socket.socket]] = {}

    def take(self, address: FdAddress) -> list[int]:
        """The descriptors that an address stands for.  Who makes something of them says so by :meth:`own`.

        Raises:
          OSError: there are none, or they have an owner.
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
        """Their descriptors are these sockets', until they are closed."""
        self._owners.update((sock.fileno(), weakref.ref(sock)) for sock in sockets)

    def _is_owned(self, descriptor: int) -> bool:
        """Whether what it was given to has not been closed."""
        owner = self._owners[descriptor]() if descriptor in self._owners else None
        return owner is not None and owner.fileno() == descriptor

    def _read_environment(self) -> None:
        meant = os.environ.get("LISTEN_PID")
        if meant is None:
            return
        pid = _number(meant)
        if pid is None:
            raise OSError(errno.EINVAL, f"LISTEN_PID is no process: {meant[:_SHOWN]!r}")
        if pid != os.getpid():
            reason = f"the sockets were passed to process {meant} (LISTEN_PID), and this is {os.getpid()}"
            raise OSError(errno.ENOENT, f"{reason}; a script that starts the program must do so with exec")
        said = os.environ.get("LISTEN_FDS", "")
        count = _number(said)
        if count is None:
            raise OSError(errno.EINVAL, f"LISTEN_PID is set, and LISTEN_FDS is no number: {said[:_SHOWN]!r}")
        descriptors = range(FIRST, FIRST + count)
        for descriptor in descriptors:  # before anything of this length is made: the count may be anything
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


passed: Final = Passed()
"""This process's."""


def _number(text: str) -> int | None:
    """The number that the text is, or None: it has anything but digits in it, or more than any number of these can have."""
    return int(text) if _NUMBER.fullmatch(text) else None


def _check_open(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"this process has no descriptor {descriptor}: {error.strerror}") from error


def take_sockets(address: FdAddress) -> list[socket.socket]:
    """The sockets that an address stands for.  What becomes of them say :func:`keep` and :func:`give_back`.

    Raises:
      OSError: there is none, or it is no socket, or has an owner.
    """
    sockets: list[socket.socket] = []
    try:
        for descriptor in passed.take(address):
            try:
                sockets.append(socket.socket(fileno=descriptor))
            except OSError as error:
                if error.errno != errno.ENOTSOCK:
                    raise
                raise OSError(error.errno, f"descriptor {descriptor} is no socket") from error
            os.set_inheritable(descriptor, False)
    except BaseException:
        give_back(sockets)
        raise
    return sockets


def keep(sockets: list[socket.socket]) -> None:
    """They are the caller's from now on."""
    passed.own(sockets)


def give_back(sockets: list[socket.socket]) -> None:
    """Let go of sockets without closing them: they go on being what the process was started with."""
    for sock in sockets:
        sock.detach()

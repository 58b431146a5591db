"""The user that a server becomes when its sockets are open: what it needed root for is done then.

The order is that of every daemon: bind, then the supplementary groups, the group, and the user last, because each step takes
the privilege that the last one gives up.  setresuid(2) and setresgid(2) change the saved ids, too, so there is no way back.
glibc changes them for all threads of the process (nptl(7)).  Worker processes are started afterwards, as that user.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import final

import attrs

from gain_trio._transports import SocketOptions, parse_address

from ._server_config import ServerConfig


@final
@attrs.frozen
class Identity:
    """A user with the groups that its processes have."""

    text: str
    user: int
    group: int
    groups: tuple[int, ...]

    @property
    def is_own(self) -> bool:
        """Whether this process has it already."""
        return os.getresuid() == (self.user,) * 3 and os.getresgid() == (self.group,) * 3

    def take(self) -> None:
        """Become this user, for ever.

        Raises:
          PermissionError: this process may not; says what it takes.
        """
        if self.is_own:
            return
        try:
            os.setgroups(self.groups)
            os.setresgid(self.group, self.group, self.group)
            os.setresuid(self.user, self.user, self.user)
        except PermissionError as error:
            reason = f"cannot become the user {self.text}: {error.strerror}; it takes root (CAP_SETUID and CAP_SETGID)"
            raise PermissionError(error.errno, reason) from error


def identity_of(user: int | str) -> Identity:
    """The user that the option ``user`` names.

    Raises:
      ValueError: there is no such user or group, or this system has none.
    """
    if not hasattr(os, "setresuid"):
        raise ValueError(f"user= asks for setresuid(2), which {sys.platform} does not have; leave it out")
    import grp  # noqa: PLC0415 - not every system has users
    import pwd  # noqa: PLC0415 - the same

    name, _colon, group_name = str(user).partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        entry = None
    if entry is None and not (name.isdecimal() and group_name):
        cure = "; a number that is no user needs a group, too: '1000:1000'" if name.isdecimal() else ""
        raise ValueError(f"user={user!r}: there is no user {name!r}{cure}")
    try:
        group = int(group_name) if group_name.isdecimal() else grp.getgrnam(group_name).gr_gid if group_name else None
    except KeyError:
        raise ValueError(f"user={user!r}: there is no group {group_name!r}") from None
    if entry is None:
        assert group is not None
        return Identity(str(user), int(name), group, (group,))
    group = entry.pw_gid if group is None else group
    return Identity(str(user), entry.pw_uid, group, tuple(os.getgrouplist(entry.pw_name, group)))


def socket_options_of(config: ServerConfig, addresses: Sequence[str], identity: Identity | None) -> SocketOptions:
    """What a server's sockets are opened with: a Unix socket's file is the user's, unless it is to be another one's."""
    options = config.socket_options()
    kinds = {text.partition(":")[0] for text in map(str, addresses)}
    if identity is None or identity.is_own or "unix" not in kinds or any("unix://@" in text for text in addresses):
        return options
    for address in addresses:
        parse_address(address, schemes=("tcp", "unix", "fd"))  # raises for one that is none
    return attrs.evolve(
        options,
        owner=identity.user if options.owner is None else options.owner,
        group=identity.group if options.group is None else options.group,
    )

"""The user that a server becomes when its sockets are open: what it needed root for is done then.

The order is that of every daemon: bind, then the supplementary groups, the group, and the user last, because each step takes
the privilege that the last one gives up.  setresuid(2) and setresgid(2) change the saved ids, too, and with root's ids go
its capabilities: there is no way back.  Both are not so for a process that had capabilities without being root, or that has
them fixed (SECBIT_NO_SETUID_FIXUP, capabilities(7)): it could become root again, so it is refused.
glibc changes the ids for all threads of the process (nptl(7)).  Worker processes are started afterwards, as that user.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final, final

import attrs

from gain_trio._transports import SocketOptions

from ._server_config import ServerConfig

_NO_ID: Final = 2**32 - 1
"""What setresuid(2) takes for no change; numbers of users and groups are less."""


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
          PermissionError: this process may not, which says what it takes; or it could become another user again.
          OSError: the kernel does not know the user or the group here, in a user namespace.
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
        except OSError as error:
            reason = (
                f"cannot become the user {self.text}: {error.strerror}; a user namespace (user_namespaces(7)) has only the "
                "users and groups that it was given"
            )
            raise OSError(error.errno, reason) from error
        if self.user and self._can_return():
            raise PermissionError(
                errno.EPERM,
                f"this process is the user {self.text} now and could become another one again, because it keeps its "
                "capabilities: start it as root, without ambient capabilities and without the secure bit no_setuid_fixup "
                "(capabilities(7)), or as this user, without the option user",
            )

    def _can_return(self) -> bool:
        """Whether this process, which is the user now, still has the capability that it has needed."""
        try:
            os.setgroups(self.groups)  # the same: it changes nothing
        except PermissionError:
            return False
        return True


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
    for number in (name, group_name):
        if number.isdecimal() and int(number) >= _NO_ID:
            raise ValueError(f"user={user!r}: the numbers of users and groups are at most {_NO_ID - 1}")
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


def socket_options_of(config: ServerConfig, identity: Identity | None) -> SocketOptions:
    """What a server's sockets are opened with: a Unix socket's file is the user's, unless it is to be another one's."""
    options = config.socket_options()
    if identity is None or identity.is_own:
        return options
    return attrs.evolve(options, owner_of_files=(identity.user, identity.group))

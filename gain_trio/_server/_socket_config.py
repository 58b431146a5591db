"""The options of a server that are about its sockets, a part of :class:`ServerConfig`."""

from __future__ import annotations

import attrs

from gain_trio._kernel import documented_fields
from gain_trio._transports import SocketOptions

from ._config_checks import check_flag, parse_id, parse_octal
from ._flags import Flag


@documented_fields
@attrs.frozen(kw_only=True)
class SocketConfig:
    """What listening sockets are opened with, and what connections inherit from them."""

    backlog: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="limits",
            parse=int,
            metavar="N",
            help="connections that may wait to be accepted",
            usual="all the system allows",
        ).beside(),
    )
    """Connections that may wait to be accepted, on each listener; None for as many as the system allows."""
    reuse_port: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(group="sockets", help="let other servers share the port (SO_REUSEPORT)").beside(),
    )
    """Set ``SO_REUSEPORT``, so that other servers can share the port.  Socket sharding sets it anyhow."""
    receive_buffer: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            parse=int,
            metavar="BYTES",
            help="SO_RCVBUF of TCP connections",
            usual="adjusted by the kernel",
        ).beside(),
    )
    """``SO_RCVBUF`` of TCP connections, in bytes, which stops Linux from adjusting it; it doubles the value (socket(7))."""
    send_buffer: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            parse=int,
            metavar="BYTES",
            help="SO_SNDBUF of TCP connections",
            usual="adjusted by the kernel",
        ).beside(),
    )
    """``SO_SNDBUF``, likewise."""
    keep_alive: float | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            parse=float,
            metavar="S",
            help="seconds of silence after which TCP probes the peer",
            usual="never",
        ).beside(),
    )
    """Seconds without a segment from the peer after which TCP sends a probe (tcp(7)); 1 to 32767, rounded up to whole
    seconds.  None for no probes."""
    keep_alive_interval: float | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets", parse=float, metavar="S", help="seconds between two probes", usual="those of --keep-alive"
        ).beside(),
    )
    """Seconds between two probes that the peer does not answer, likewise; None for those of ``keep_alive``."""
    keep_alive_count: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets", parse=int, metavar="N", help="unanswered probes that end a connection", usual="9 on Linux"
        ).beside(),
    )
    """Probes without an answer after which the kernel ends the connection, 1 to 127; None for the system's (9 on Linux)."""
    tcp_user_timeout: float | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            parse=float,
            metavar="S",
            help="seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT)",
            usual="about 15 minutes on Linux",
        ).beside(),
    )
    """Seconds that sent bytes may stay unacknowledged before the kernel ends the connection (``TCP_USER_TIMEOUT``, tcp(7)).
    With ``keep_alive`` it decides in place of ``keep_alive_count``.  None for the system's, on Linux about 15 minutes."""
    mode: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            name="socket_mode",
            parse=parse_octal,
            metavar="OCTAL",
            help="the permissions of a Unix socket's file, 660 for example",
            usual="by the umask",
        ).beside(),
    )
    """The permissions of a Unix socket's file, ``0o660`` for example, see :func:`open_listeners`."""
    owner: int | str | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            name="socket_owner",
            parse=parse_id,
            metavar="USER",
            help="the owner of that file",
            usual="that of --user, or of the process",
        ).beside(),
    )
    """The owner of that file, by number or name."""
    group: int | str | None = attrs.field(
        default=None,
        metadata=Flag(
            group="sockets",
            name="socket_group",
            parse=parse_id,
            metavar="GROUP",
            help="its group",
            usual="that of --user, or of the process",
        ).beside(),
    )
    """Its group, likewise."""
    pass_fds: bool = attrs.field(default=False, validator=check_flag)
    """Connections of Unix sockets can pass descriptors, see :func:`open_listeners`."""

    def socket_options(self) -> SocketOptions:
        """What its listening sockets are opened with."""
        return SocketOptions(
            backlog=self.backlog,
            reuse_port=self.reuse_port,
            receive_buffer=self.receive_buffer,
            send_buffer=self.send_buffer,
            keep_alive=self.keep_alive,
            keep_alive_interval=self.keep_alive_interval,
            keep_alive_count=self.keep_alive_count,
            tcp_user_timeout=self.tcp_user_timeout,
            mode=self.mode,
            owner=self.owner,
            group=self.group,
            pass_fds=self.pass_fds,
        )

"""Opening listeners and connections by address."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import trio

from ._addresses import (
    SocketOptions,
    TcpAddress,
    UnixAddress,
    check_unix,
    connect_unix,
    open_sockets,
    parse_address,
    reachable_address,
)
from ._backends import implementation, make_listeners
from ._connecting import checked_source_address, connect_tcp
from ._connections import Connection, Listener, Marks, ProxyHeader, marks_or_usual, parse_proxy_header
from ._tls import client_context, client_handshake


async def open_listeners(
    address: str,
    *,
    backlog: int | None = None,
    reuse_port: bool = False,
    marks: Marks | None = None,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    pass_fds: bool = False,
) -> list[Listener]:
    """Listen on ``tcp://host:port``: one listener for each address that the host has, as Trio does.

    A host that is an IP address has one; a name may have several (``localhost``: IPv4 and IPv6); an empty host stands for
    all addresses of this machine.  With port 0 the kernel chooses one, for each listener its own; read it from
    :attr:`Listener.local_address`.  ``SO_REUSEADDR`` (on Windows ``SO_EXCLUSIVEADDRUSE``) and ``TCP_NODELAY`` are set, the
    latter for the connections, which inherit it.

    On ``unix:///path`` and, on Linux, ``unix://@abstract-name`` there is one listener.  The file of a socket that has
    no listener any more is replaced; one of a live server, and any file but a socket, raises ``EADDRINUSE``.
    Closing the listener removes its file.  Two that start at once do not take each other's socket for left over.

    ``fd://3`` is a listening socket that the process was started with, ``fd://systemd`` stands for all that systemd has
    passed (socket activation, sd_listen_fds(3)), ``fd://systemd/NAME`` for those of this ``FileDescriptorName=``.  They
    are the listeners' from then on, so they can be opened once.  The first use of ``fd://systemd`` takes
    ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` out of the environment.

    Args:
      address: as above; IPv6 addresses stand in brackets.
      backlog: connections that may wait to be accepted; None for as many as the kernel allows (net.core.somaxconn).
      reuse_port: set ``SO_REUSEPORT``, so that several listeners share the port.  Windows has no such thing.
      marks: of the connections.
      mode: of the file of a Unix socket, ``0o660`` for example: users who may write to it may connect.  None is 0o777 less
        the umask.  At no moment may other users connect.
      owner, group: of that file, as numbers or names; None leaves the process's own.
      pass_fds: the connections of a Unix socket can pass descriptors: :meth:`Connection.send_fds` and ``receive_fds``.
        They go over the socket itself then, also in a run on the ring.  Without it the kernel refuses descriptors of a
        peer (its sendmsg(2) fails with ``EPERM``; ``SO_PASSRIGHTS``, Linux 6.16).  Older kernels drop the descriptors
        when the bytes are received, and that may wait for as long as the peer has arranged (``SO_LINGER``): let only
        trusted peers connect there, see ``mode``.

    Raises:
      ValueError: the address is not valid, or not supported by the system, or an option is not for this kind of address.
      OSError: the address is not available, for example because it is in use (``EADDRINUSE``); the message names it.
      socket.gaierror: the host has no address (a kind of OSError).
      RuntimeError: not called from a task of a Trio run.
    """
    make = implementation("gain_trio.open_listeners()", pass_fds=pass_fds)
    checked = marks_or_usual(marks)
    options = SocketOptions(
        backlog=backlog, reuse_port=reuse_port, mode=mode, owner=owner, group=group, pass_fds=pass_fds
    )
    [sockets] = await open_sockets([address], options)
    return make_listeners(make, sockets, checked)


async def connect(
    address: str | bytes | tuple[Any, ...],
    *,
    marks: Marks | None = None,
    pass_fds: bool = False,
    ssl_context: ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    https_compatible: bool = False,
    source_address: tuple[str, int] | None = None,
    proxy_header: ProxyHeader | None = None,
) -> Connection:
    """Connect to ``tcp://host:port``, ``unix:///path`` or ``unix://@abstract-name``, and return the connection.

    A host with several addresses is tried by Trio's happy eyeballs (RFC 8305).  ``TCP_NODELAY`` is set.  A Unix
    server with a full backlog is waited for.

    With ``ssl_context`` it is a TLS connection, whose handshake is done when this returns.  But in TLS 1.3 a server that
    does not accept the client's certificate reports that later, to the first receive.

    Args:
      address: as above; IPv6 addresses stand in brackets.  Or one of :attr:`Server.addresses`, as from
        :meth:`socket.socket.getsockname`; where a server listens on all addresses of the machine, it is reached by the
        loopback address.
      marks: of the connection.
      pass_fds: of a Unix connection: it can pass descriptors, see :func:`open_listeners`.
      ssl_context: None for no TLS, True for :func:`ssl.create_default_context`, or a context of your own.
      server_hostname: the name that the server's certificate has to prove; by default the host of the address, and
        ``localhost`` where that has none, as with Unix sockets.
      https_compatible: neither expect nor send TLS's close_notify, as is usual in HTTPS, where messages know their length.
        Otherwise a stream that ends without it raises :exc:`trio.BrokenResourceError`: an attacker may have cut it off.
      source_address: of a TCP connection: the address and port of this end, as for :func:`socket.create_connection`; port 0
        lets the kernel choose.  None leaves both to the kernel.  With another port than 0 the addresses of the host are
        tried one after the other, because two attempts cannot have the same port.
      proxy_header: sent before anything else, also before a TLS handshake: a server that trusts this one (``proxy_protocol``
        of :func:`serve`) takes the addresses in there for the client's.  ``ProxyHeader.of(client.remote_address,
        client.local_address)`` has those of a connection, and :attr:`Connection.proxy_header` is what another proxy said.

    Raises:
      ValueError: the address is not valid, or not supported by the system; the context is a server's; an argument is given
        that is for TLS only, for TCP only or for Unix sockets only; the header cannot be encoded.
      TypeError: ``ssl_context``, ``source_address`` or ``proxy_header`` is none of the above.
      OSError: no connection came about; the cause has all attempts.
      ssl.SSLCertVerificationError: the server did not prove that it is ``server_hostname`` (a kind of OSError, too).
      ssl.SSLError: the handshake failed otherwise (a kind of OSError, too).
      RuntimeError: not called from a task of a Trio run.

    Cancelled, it leaves nothing behind.
    """
    parsed = parse_address(reachable_address(address, "tcp"), schemes=("tcp", "unix"))
    context = client_context(ssl_context)
    if context is None and (server_hostname is not None or https_compatible):
        raise ValueError(
            "server_hostname and https_compatible are for TLS: give an ssl_context, too (True for the default)"
        )
    if context is not None and pass_fds:
        raise ValueError("pass_fds=True is not for TLS: descriptors cannot be encrypted")
    header = _encoded(proxy_header)
    make = implementation("gain_trio.connect()", pass_fds=pass_fds)
    marks = marks_or_usual(marks)
    _check_flags(https_compatible=https_compatible, pass_fds=pass_fds)
    if isinstance(parsed, UnixAddress):
        check_unix()
        if source_address is not None:
            raise ValueError(f"source_address is for TCP, and {parsed} is a Unix socket: leave it out")
        hostname = server_hostname or "localhost"
        sock = await connect_unix(parsed, pass_fds=pass_fds)
    else:
        assert isinstance(parsed, TcpAddress)
        if pass_fds:
            raise ValueError("pass_fds=True is for Unix sockets: descriptors do not go through TCP")
        hostname = server_hostname or parsed.host.partition("%")[0] or "localhost"
        sock = await connect_tcp(parsed, checked_source_address(source_address))
    try:
        sock.setblocking(False)
        connection = make.connection(sock, marks)
    except BaseException:
        sock.close()
        raise
    if header:
        # Over a socket it is sent at once, and the peer may have reset the connection: the next call reports that, as on
        # the ring.
        with contextlib.suppress(trio.BrokenResourceError):
            connection._send_nowait(header)  # to a new connection, so nothing is in front of it
    if context is None:
        return connection
    return await client_handshake(connection, context, marks, str(parsed), hostname, https_compatible=https_compatible)


def _check_flags(**flags: object) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is True or False, not {flag!r}")


def _encoded(header: object) -> bytes:
    if header is None:
        return b""
    if not isinstance(header, ProxyHeader):
        raise TypeError(f"proxy_header is a gain_trio.ProxyHeader or None, not {header!r}; ProxyHeader.of() makes one")
    encoded = header.encode()
    parse_proxy_header(encoded, max_length=len(encoded))  # raises what a reader would refuse it for
    return encoded

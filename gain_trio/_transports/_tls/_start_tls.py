"""TLS that begins in the middle of a connection: STARTTLS of SMTP, IMAP, POP3, XMPP and LDAP, SSLRequest of PostgreSQL.

*Another object.*  The connection without TLS gives its socket away (:meth:`Connection.detach`), and a new one of the same
kind takes it, below TLS.  So no call of the old object, in whichever task, can get between TLS and its bytes: the old object
is closed, and says where its socket is.  Its limits go along, and closing it closes the new one, so that a ``with``
statement around it does what it says.

*Injection.*  Until TLS begins, an attacker on the way can put bytes of their own into the stream.  The attack is to put them
behind the client's STARTTLS: a server that has them in a buffer, and reads them from there after the handshake, takes them
for the client's (CVE-2011-0411; on the other side CVE-2021-23222).  Here nothing that came before the handshake is left in
a buffer.  It is passed to TLS, which is what a ClientHello that came early wants, and what anything else fails at.  The look
at the first bytes is there for a message that says so, instead of one about a wrong version number.

What the kernel has and this process has not received is looked at, too (``MSG_PEEK``): on the ring bytes are received
before a program asks for them, over a socket they are not, and the answer shall be the same.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from typing import Final

import trio

from gain_trio._transports._addresses import reset_on_close
from gain_trio._transports._backends import DescriptorConnection, implementation
from gain_trio._transports._connections import Connection

from ._tls_connection import TlsConnection
from ._tls_engine import Engine
from ._tls_handshake import (
    check_handshake_timeout,
    check_server_context,
    client_context,
    do_handshake,
    failure_text,
)

_LOOK: Final = 3
_FIRST_BYTES: Final = re.compile(rb"(?:\x16(?:\x03(?:[\x00-\x04])?)?)?")
"""How a client's first message begins: a record of the kind handshake, and a version (RFC 8446, 5.1)."""


async def start_tls(
    connection: Connection,
    ssl_context: ssl.SSLContext | bool,
    *,
    server_side: bool,
    server_hostname: str | None,
    received: bytes,
    handshake_timeout: float,
    https_compatible: bool,
) -> Connection:
    """See :meth:`Connection.start_tls`."""
    if isinstance(connection, TlsConnection):
        raise RuntimeError("this connection is one with TLS already: start_tls() is for one without")
    if isinstance(connection, DescriptorConnection):
        raise RuntimeError(
            "this connection passes descriptors, which cannot be encrypted: open it without pass_fds=True"
        )
    engine = Engine(
        _checked_context(ssl_context, server_side, server_hostname),
        server_side=server_side,
        server_hostname=server_hostname,
    )
    received = bytes(memoryview(received))
    if received and not server_side:
        raise ValueError(
            "received= is for the server's side: a client takes nothing behind a server's agreement, and should break off"
        )
    check_handshake_timeout(handshake_timeout)
    implementation("start_tls()")  # raises where there is no run
    below = await _taken_over(connection, received, engine, server_side=server_side)
    with contextlib.ExitStack() as stack:
        stack.callback(below._close_now)
        connection._continues_as(below)  # a close meanwhile, by whichever task, closes what there is
        if connection._drains:
            below._begin_drain()
        await _handshake(engine, below, handshake_timeout, server_hostname)
        upgraded = TlsConnection(engine, below, connection._marks, https_compatible=https_compatible)
        upgraded.context = connection.context
        connection._continues_as(upgraded)
        if below._drains:
            upgraded._begin_drain()
        stack.pop_all()
    return upgraded


def _checked_context(context: object, server_side: bool, hostname: str | None) -> ssl.SSLContext:
    """The context for this side.

    Raises:
      ValueError, TypeError: it is not one.
    """
    if server_side:
        if hostname is not None:
            raise ValueError("server_hostname is for the client's side, which has a name to check: leave it out")
        return check_server_context(context)
    checked = client_context(context)
    if checked is None:
        raise TypeError(f"ssl_context must be True or an ssl.SSLContext, not {context!r}")
    if hostname is None and checked.check_hostname:
        raise ValueError("start_tls() needs server_hostname=, the name that the server's certificate has to prove")
    return checked


@trio.lowlevel.enable_ki_protection  # the descriptor has no owner for a moment
async def _taken_over(connection: Connection, received: bytes, engine: Engine, *, server_side: bool) -> Connection:
    """A new connection over the same socket, and everything that came is in the engine.

    Raises:
      trio.BrokenResourceError: the peer has sent what may not be there.
    """
    timeouts = connection.idle_timeout, connection.close_timeout
    sock, queued = await connection.detach()
    try:
        _check_early(received + queued, sock, server_side=server_side)
        sock.setblocking(False)
        below = implementation("start_tls()").connection(sock, connection._marks)
    except BaseException:
        reset_on_close(sock)
        sock.close()
        raise
    below.idle_timeout, below.close_timeout = timeouts
    below.read_deadline, below.write_deadline = connection.read_deadline, connection.write_deadline
    below._drains_with(connection.draining)
    if connection.proxy_header is not None:
        below._told_by_a_proxy(connection.proxy_header)
    if received or queued:
        engine.feed(received + queued)
    return below


def _check_early(early: bytes, sock: socket.socket, *, server_side: bool) -> None:
    """Refuse what a peer has sent before TLS begins, unless that is the beginning of TLS."""
    if len(early) < _LOOK:
        with contextlib.suppress(BlockingIOError):
            early += sock.recv(_LOOK, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    if not early or (server_side and _FIRST_BYTES.fullmatch(early[:_LOOK])):
        return
    who = "a client that has asked for TLS" if server_side else "a server"
    raise trio.BrokenResourceError(
        f"the peer has sent bytes before TLS began, and they are refused: {who} may not, and an attacker may have added "
        "them (STARTTLS injection)"
    )


async def _handshake(
    engine: Engine,
    below: Connection,
    timeout: float,  # noqa: ASYNC109 - the error names it
    hostname: str | None,
) -> None:
    """Perform the handshake.

    Raises:
      trio.BrokenResourceError, trio.TooSlowError: it failed, or took too long.
    """
    with trio.move_on_after(timeout) as scope:
        try:
            await do_handshake(engine, below)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            cause = error if isinstance(error, ssl.SSLError) else error.__cause__
            text = failure_text(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                text = f"the peer's certificate does not prove that it is {hostname}: {cause.verify_message}"
            raise trio.BrokenResourceError(f"the TLS handshake failed: {text}") from cause
    if scope.cancelled_caught:
        raise trio.TooSlowError(f"the TLS handshake was not done within {timeout:g} seconds")

"""TLS handshakes of a server and of a client, and the validation of their arguments."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import final

import trio

from gain_trio._transports._addresses import NO_SIGNAL
from gain_trio._transports._connections import Connection, Marks, checked_seconds

from ._tls_connection import TlsConnection
from ._tls_engine import Engine, is_cut_off
from ._tls_traffic import CHUNK, explained

__all__ = [
    "HandshakeError",
    "check_handshake_timeout",
    "check_server_context",
    "client_context",
    "client_handshake",
    "do_handshake",
    "failure_text",
    "server_handshake",
]


@final
class HandshakeError(Exception):
    """A client's handshake with a server of this process has failed; the message says why, in a line."""


def check_server_context(context: object) -> ssl.SSLContext:
    """Return ``context`` if a server can use it.

    Raises:
      TypeError: ``context`` is not a context.
      ValueError: ``context`` is one for clients.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "ssl_context is one for clients; a server needs ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), "
            "with load_cert_chain()"
        )
    return context


def check_handshake_timeout(seconds: float) -> float:
    """Return ``seconds`` if they are a valid time limit for a handshake."""
    return checked_seconds("handshake_timeout", seconds, positive=True)


def client_context(context: object) -> ssl.SSLContext | None:
    """The context that connect()'s ``ssl_context`` means; None for no TLS.

    Raises:
      TypeError: ``context`` is neither a context nor True nor None.
      ValueError: ``context`` is one for servers.
    """
    if context is None:
        return None
    if context is True:
        return ssl.create_default_context()
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be True, an ssl.SSLContext or None, not {context!r}")
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl_context is one for servers; a client needs ssl.create_default_context()")
    return context


async def server_handshake(
    below: Connection,
    context: ssl.SSLContext,
    marks: Marks,
    timeout: float,  # noqa: ASYNC109 - the error names it
) -> Connection:
    """Perform a server's handshake on a connection.

    Raises:
      HandshakeError: the handshake failed, or took longer than ``timeout`` seconds.  The caller closes the connection.
    """
    engine = Engine(context, server_side=True)
    with trio.move_on_after(timeout) as scope:
        try:
            await do_handshake(engine, below)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise HandshakeError(failure_text(error)) from error
        except trio.TooSlowError as error:
            raise HandshakeError("its deadline expired") from error
    if scope.cancelled_caught:
        raise HandshakeError(f"it was not done within {timeout} seconds")
    return TlsConnection(engine, below, marks)


async def client_handshake(
    below: Connection, context: ssl.SSLContext, marks: Marks, peer: str, hostname: str, *, https_compatible: bool
) -> Connection:
    """Perform a client's handshake with ``peer`` on a connection.

    Raises:
      ssl.SSLCertVerificationError: the peer's certificate does not prove that it is ``hostname``.
      OSError: the handshake failed otherwise.

    The function closes the connection below before it raises.
    """
    try:
        engine = Engine(context, server_side=False, server_hostname=hostname)
        try:
            await do_handshake(engine, below)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise _connect_error(error, peer, hostname) from error
        return TlsConnection(engine, below, marks, https_compatible=https_compatible)
    except BaseException:
        below._close_now()
        raise


async def do_handshake(engine: Engine, below: Connection) -> None:
    """Perform the handshake, and raise what :mod:`ssl` and the connection below raise."""
    while True:
        try:
            is_done = engine.do_handshake()
        except ssl.SSLError:
            _send_alert(engine.take_outgoing(), below)
            raise
        if engine.has_outgoing:
            await below.send(engine.take_outgoing())
        if is_done:
            return
        engine.feed(await below.receive(CHUNK))


def _send_alert(alert: bytes, below: Connection) -> None:
    """Send the peer the alert of a failed handshake, if the kernel accepts it at once, before the connection is closed.

    An alert queued in the connection below would make its close a reset, so this function sends it past that queue.
    """
    if not alert or below.outbound_buffered:
        return
    # The handshake has failed whether or not the peer gets the alert.
    with contextlib.suppress(OSError, trio.ClosedResourceError), below._borrowed_socket() as sock:
        below._has_sent(sock.send(alert, getattr(socket, "MSG_DONTWAIT", 0) | NO_SIGNAL))


def failure_text(error: trio.BrokenResourceError | ssl.SSLError) -> str:
    """Why a handshake failed, in words."""
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLError):
        return "the peer ended the stream" if is_cut_off(cause) else explained(cause)
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause or error)


def _connect_error(error: trio.BrokenResourceError | ssl.SSLError, peer: str, hostname: str) -> OSError:
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        refused = ssl.SSLCertVerificationError(
            cause.errno, f"{peer} has a certificate that does not prove that it is {hostname}: {cause.verify_message}"
        )
        refused.verify_code = cause.verify_code
        refused.verify_message = cause.verify_message
        return refused
    reason = f"the TLS handshake with {peer} failed: {failure_text(error)}"
    if isinstance(cause, ssl.SSLError):
        return type(cause)(cause.errno, reason)
    return OSError(cause.errno if isinstance(cause, OSError) else None, reason)

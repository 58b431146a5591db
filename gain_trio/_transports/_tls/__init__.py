"""TLS over any connection."""

from ._start_tls import start_tls
from ._tls_connection import TlsConnection
from ._tls_handshake import (
    HandshakeError,
    check_handshake_timeout,
    check_server_context,
    client_context,
    client_handshake,
    server_handshake,
)

__all__ = [
    "HandshakeError",
    "TlsConnection",
    "check_handshake_timeout",
    "check_server_context",
    "client_context",
    "client_handshake",
    "server_handshake",
    "start_tls",
]

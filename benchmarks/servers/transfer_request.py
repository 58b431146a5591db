"""What the servers of large transfers share: the request, where to listen, and what they send.

They are started with ADDRESS and FILE: the number of a TCP port of 127.0.0.1, or the path of a Unix socket, and the file
that is sent.  With TRANSFER_CERTIFICATE in the environment, the path of a certificate with its key, they speak TLS.  A
request is ``u``, ``d`` or ``f`` and a number of bytes in eight bytes, highest first; see c/transfer_load.c.
"""

import os
import socket
import ssl
import struct

from listener import BACKLOG, listening_socket

HEADER = struct.Struct("!cQ")
PIECE = b"x" * (256 * 1024)
"""What is sent from memory, over and over: as large as the usual marks of the libraries that are compared."""
DONE = b"."


def open_listener(address: str) -> socket.socket:
    """A listening socket, non-blocking."""
    if "/" not in address:
        return listening_socket(int(address))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def server_context() -> ssl.SSLContext | None:
    """None: no TLS."""
    certificate = os.environ.get("TRANSFER_CERTIFICATE")
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def pieces(count: int) -> list[int]:
    """Return the lengths of the pieces that add up to ``count`` bytes."""
    whole, rest = divmod(count, len(PIECE))
    return [len(PIECE)] * whole + ([rest] if rest else [])

"""The listening socket all servers here share: 127.0.0.1, a deep backlog, TCP_NODELAY."""

import socket

BACKLOG = 4096
CHUNK = 65536  # the most to receive at a time


def listening_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Handed down to accepted connections.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener

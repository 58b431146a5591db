"""Connections and listeners on the ring, and over sockets."""

from ._descriptor_connection import DescriptorConnection
from ._implementation import implementation, make_listeners, wait_released
from ._socket_base import as_size, closed_error, current_thread, kept
from ._socket_listener import SocketListener

__all__ = [
    "DescriptorConnection",
    "SocketListener",
    "as_size",
    "closed_error",
    "current_thread",
    "implementation",
    "kept",
    "make_listeners",
    "wait_released",
]

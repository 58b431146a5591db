"""Floor 4: connections, listeners and datagram endpoints."""

from ._address import Address, FdAddress, TcpAddress, UdpAddress, UnixAddress, parse_address
from ._connection import Connection, Marks
from ._endpoint import DatagramEndpoint, DatagramStatistics
from ._framing import IncompleteMessage, MessageTooLong
from ._listener import Listener
from ._open import connect, open_listeners
from ._open_endpoint import open_datagram_endpoint

__all__ = [
    "Address",
    "Connection",
    "DatagramEndpoint",
    "DatagramStatistics",
    "FdAddress",
    "IncompleteMessage",
    "Listener",
    "Marks",
    "MessageTooLong",
    "TcpAddress",
    "UdpAddress",
    "UnixAddress",
    "connect",
    "open_datagram_endpoint",
    "open_listeners",
    "parse_address",
]

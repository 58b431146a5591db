"""Floor 4: connections, listeners and datagram endpoints."""

from ._address import Address, FdAddress, TcpAddress, UdpAddress, UnixAddress, address_text, parse_address
from ._connection import Connection, Marks
from ._endpoint import DatagramEndpoint, DatagramStatistics
from ._framing import IncompleteMessage, MessageTooLong
from ._listener import Listener
from ._open import connect, open_listeners
from ._open_endpoint import open_datagram_endpoint
from ._proxy_protocol import ProxyHeader, ProxyProtocolError
from ._shown import shown, shown_lines, shown_traceback
from ._unix import PeerCredentials
from ._wrapping import wrap_connection, wrap_listener

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
    "PeerCredentials",
    "ProxyHeader",
    "ProxyProtocolError",
    "TcpAddress",
    "UdpAddress",
    "UnixAddress",
    "address_text",
    "connect",
    "open_datagram_endpoint",
    "open_listeners",
    "parse_address",
    "shown",
    "shown_lines",
    "shown_traceback",
]

"""Floor 4: connections and listeners."""

from ._address import TcpAddress, parse_address
from ._connection import Connection, Marks
from ._listener import Listener
from ._open import connect, open_listeners

__all__ = ["Connection", "Listener", "Marks", "TcpAddress", "connect", "open_listeners", "parse_address"]

"""Servers made of callbacks: Gain's EventHandler over the streams of this package.

=================  ==========================================================================================
``_handler``       EventHandler, and what is found out about its callbacks
``_conn``          Conn: what the callbacks get, whatever it goes over
``_stream_conn``   one over a connection; ``_inbox``: reading from memory that other threads may read, too
``_datagrams``     one of a datagram, and what handles datagrams
``_driver``        the task of a connection; ``_activity``: what is in progress, and its end at a shutdown
``_server``        EventServer, serve, listen_and_serve
``_config``        Config, and what it is to the servers below
``_errors``        what the calls raise
=================  ==========================================================================================
"""

from ._config import Config
from ._conn import Conn
from ._errors import (
    AlreadyRunning,
    BufferEmpty,
    ConnectionAlreadyClosed,
    ConnectionClosed,
    InvalidDuration,
    InvalidState,
    NotSupported,
    ShortBuffer,
    SlowReader,
    UnsupportedProtocol,
)
from ._handler import EventHandler
from ._server import EventServer, listen_and_serve, serve

__all__ = [
    "AlreadyRunning",
    "BufferEmpty",
    "Config",
    "Conn",
    "ConnectionAlreadyClosed",
    "ConnectionClosed",
    "EventHandler",
    "EventServer",
    "InvalidDuration",
    "InvalidState",
    "NotSupported",
    "ShortBuffer",
    "SlowReader",
    "UnsupportedProtocol",
    "listen_and_serve",
    "serve",
]

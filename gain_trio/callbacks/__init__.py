"""Servers made of callbacks: Gain's EventHandler over the streams of this package.

==================== ========================================================================================
``_conn``            Conn: what the callbacks get, whatever it goes over
``_stream_conn``     one over a connection; ``_inbox``: reading from memory that other threads may read, too
``_datagram_driver`` one of a datagram, and what handles datagrams
``_stream_driver``   the task of a connection; ``_activity``: what is in progress, and its end at a shutdown
``_callbacks``       what is found out about a handler's callbacks once
``_event_server``    EventHandler and EventServer; ``_event_serving``: serve, listen_and_serve
``_event_config``    Config, and what it is to the servers below
``_event_errors``    what the calls raise
==================== ========================================================================================
"""

from ._conn import Conn
from ._event_config import Config
from ._event_errors import (
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
from ._event_server import EventHandler, EventServer
from ._event_serving import listen_and_serve, serve

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

"""The contract of connections and listeners, and what all of their implementations share."""

from ._callback_connection import END, STALLED, WRITTEN, CallbackConnection
from ._connection import Connection
from ._deadlines import DeadlineKeeper, Entry, Timing, current_keeper
from ._file_sending import FileTransfer
from ._framing import IncompleteMessage, MessageTooLong
from ._has_fileno import HasFileno
from ._idle_wait import sleep_until_idle
from ._listener import CONNECTION_ERRNOS, RESOURCE_ERRNOS, Listener, close_all
from ._marks import Marks, checked_close_timeout, checked_deadline, checked_idle_timeout
from ._messages import FIRST_SECONDS
from ._news import News
from ._proxy_protocol import MAX_LENGTH, NeedMore, ProxyHeader, ProxyProtocolError, parse_proxy_header
from ._queues import (
    NOTHING,
    SMALL,
    Inbound,
    Message,
    Outbound,
    head_of,
    joined,
    message_of,
    receive_into,
    whole_of,
    without_head,
)
from ._seconds import checked_seconds

__all__ = [
    "CONNECTION_ERRNOS",
    "END",
    "FIRST_SECONDS",
    "MAX_LENGTH",
    "NOTHING",
    "RESOURCE_ERRNOS",
    "SMALL",
    "STALLED",
    "WRITTEN",
    "CallbackConnection",
    "Connection",
    "DeadlineKeeper",
    "Entry",
    "FileTransfer",
    "HasFileno",
    "Inbound",
    "IncompleteMessage",
    "Listener",
    "Marks",
    "Message",
    "MessageTooLong",
    "NeedMore",
    "News",
    "Outbound",
    "ProxyHeader",
    "ProxyProtocolError",
    "Timing",
    "checked_close_timeout",
    "checked_deadline",
    "checked_idle_timeout",
    "checked_seconds",
    "close_all",
    "current_keeper",
    "head_of",
    "joined",
    "message_of",
    "parse_proxy_header",
    "receive_into",
    "sleep_until_idle",
    "whole_of",
    "without_head",
]

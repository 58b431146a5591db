"""The contract of connections and listeners, and what all of their implementations share."""

from ._change_wait import CHANGED, ENDED, FULL, MOST_SEEN, WATCH_RESETS, WATCH_SENT
from ._connection import Connection
from ._deadlines import ConnectionDeadlines, DeadlineEntry, DeadlineKeeper, current_keeper
from ._file_sending import FileTransfer
from ._files import FileSource
from ._framing import IncompleteMessage, MessageTooLong
from ._has_fileno import HasFileno
from ._listener import CONNECTION_ERRNOS, RESOURCE_ERRNOS, Listener, close_all
from ._marks import Marks, checked_close_timeout, checked_deadline, checked_idle_timeout, marks_or_usual
from ._messages import FIRST_SECONDS
from ._proxy_header import ProxyHeader
from ._proxy_protocol import MAX_LENGTH, NeedMore, ProxyProtocolError, parse_proxy_header
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
from ._read_only_socket import ReadOnlySocket
from ._seconds import checked_seconds

__all__ = [
    "CHANGED",
    "CONNECTION_ERRNOS",
    "ENDED",
    "FIRST_SECONDS",
    "FULL",
    "MAX_LENGTH",
    "MOST_SEEN",
    "NOTHING",
    "RESOURCE_ERRNOS",
    "SMALL",
    "WATCH_RESETS",
    "WATCH_SENT",
    "Connection",
    "ConnectionDeadlines",
    "DeadlineEntry",
    "DeadlineKeeper",
    "FileSource",
    "FileTransfer",
    "HasFileno",
    "Inbound",
    "IncompleteMessage",
    "Listener",
    "Marks",
    "Message",
    "MessageTooLong",
    "NeedMore",
    "Outbound",
    "ProxyHeader",
    "ProxyProtocolError",
    "ReadOnlySocket",
    "checked_close_timeout",
    "checked_deadline",
    "checked_idle_timeout",
    "checked_seconds",
    "close_all",
    "current_keeper",
    "head_of",
    "joined",
    "marks_or_usual",
    "message_of",
    "parse_proxy_header",
    "receive_into",
    "whole_of",
    "without_head",
]

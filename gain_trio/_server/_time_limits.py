"""The time limits of servers, in seconds, each with its reason.

Here are the limits that no option sets and the defaults of those that an option does.  The limits of one protocol are with
that protocol (``_http``, ``_metrics``), and the lengths of internal ticks with their tasks (``_heartbeat``, ``_worker``).

*How a server ends.*  The first signal, or ``drain(timeout)``, gives connections their own time.  After that each layer gives
the layer below it a bounded time, and each limit leaves room for the ones inside of it::

    CUT_SECONDS              a cancelled server, from the second signal to the end of its process
    └─ WORKER_GRACE          a worker process that was cancelled, before it is killed
       └─ LIFESPAN_GRACE     the exit of a lifespan
       └─ LAST_WORDS         the last message of a worker
    └─ LAST_CALLBACK         an async on_write or on_close when its server is cancelled
"""

from __future__ import annotations

from typing import Final

# --- defaults of options ---

GRACEFUL_TIMEOUT: Final = 30.0
"""``graceful_timeout``: an HTTP request in progress has 30 seconds (``_http``), and service managers wait 90 (systemd)."""
SHUTDOWN_SECONDS: Final = 5.0
"""``graceful_timeout`` of a server of callbacks: it has no open requests to wait for, only callbacks that run."""
WORKER_TIMEOUT: Final = 30.0
"""``worker_timeout``: longer than a handler should ever hold its event loop up, and shorter than an operator's patience."""
HANDSHAKE_TIMEOUT: Final = 30.0
"""``handshake_timeout``: a few round trips of a slow mobile network, and of a client that looks a certificate up."""
PROXY_TIMEOUT: Final = 3.0
"""``proxy_timeout``: the specification's least, which covers a segment that was lost and sent again."""

# --- the end of a server ---

LAST_CALLBACK: Final = 5.0
"""For an ``async def on_write`` or ``on_close`` when the server is cancelled: a write to a database fits."""
WORKER_GRACE: Final = 5.0
"""For a worker process to end, beyond the time of its connections, before the server kills it."""
ORPHAN_GRACE: Final = 5.0
"""For a worker process to end when its server is gone: the same, from the worker's side."""
UNWANTED_GRACE: Final = 1.0
"""For a process that has not begun to serve, and is not needed any more: it has no connections."""
LAST_WORDS: Final = 1.0
"""For the last messages of an ending process: a worker's to its server, and the last line of the log.  The reader may be
stuck, or a child of the process may hold the channel open."""
LIFESPAN_GRACE: Final = WORKER_GRACE - LAST_WORDS
"""For the exit of a lifespan whose server was cancelled, or has used up the time of its drain: a pool of connections to a
database closes in that time, and a worker process can still report how it went."""
CUT_SECONDS: Final = max(LAST_CALLBACK, WORKER_GRACE) + 2.0
"""For a server that a signal cancelled, before its process ends without it: the limits inside of it, and the time to log."""
HURRIED_SECONDS: Final = 1.0
"""The same after one more signal: the operator does not want to wait."""

# --- the beginning of a worker process ---

START_TIMEOUT: Final = 120.0
"""For a process to begin, without a ``worker_timeout``: its program may have much to load, and the machine be busy."""
SHORTEST_START: Final = 20.0
"""The least that a process has to begin, whatever ``worker_timeout`` is; otherwise it has four times that option."""
AT_ONCE: Final = 1.0
"""A process that dies within this time, without a connection, has failed to begin."""
SOON: Final = 10.0
"""A death after this time of service has nothing to do with the death before it."""
FIRST_PAUSE: Final = 0.1
"""Before the second replacement in a row; each further pause is twice as long, up to the next limit."""
LONGEST_PAUSE: Final = 5.0
"""Between two replacements: a program that is broken costs little, and a mended one serves soon."""

RECYCLE_INTERVAL: Final = 0.25
"""Between two looks at whether worker processes have served enough: a look reads a file of /proc for each, at most."""

# --- trouble that may pass ---

LATE: Final = 2.0
"""A worker process that sends nothing for this long, or for a third of ``worker_timeout``, gets no more connections."""
RESOURCE_PAUSE: Final = 0.1
"""Without accepting, when the process or the machine is out of descriptors or memory: Trio's policy."""
GATHERING: Final = 2.0
"""For all processes to report the program's own metrics at a scrape; Prometheus waits 10 seconds for the whole answer."""
LOOKING: Final = 0.5
"""For all processes to report what they serve, to who looks at the server: a screen is refreshed every second."""
HAND_OFF_PAUSE: Final = 0.1
"""Without passing descriptors on, when too many are on their way (``ETOOMANYREFS``), or a worker has no room."""
LOG_INTERVAL: Final = 60.0
"""Between two lines of the log about trouble that lasts."""

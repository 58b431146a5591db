"""A consumer: the task whose nursery the handlers of its connections live in."""

from __future__ import annotations

import abc
import inspect
import itertools
import logging
import math
import types
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias, final, get_args

import attrs
import trio

from gain_trio._transports import DEFAULT_CLOSE_TIMEOUT, Connection, HandshakeError, ProxyProtocolError

from ._admission import AdmissionStep, RefusedConnectionError
from ._connection_limit import ConnectionLimit
from ._failures import judged, parted
from ._handler_tasks import HandlerTasks, RequestInProgress
from ._log import ConnectionLog, peer_text
from ._statistics import CloseCause, RequestStatistics

Handler: TypeAlias = Callable[[Connection], Awaitable[object]]
"""What serves one connection: an async function."""
Prepare: TypeAlias = Callable[[Connection], Awaitable[Connection]]
"""What makes of an accepted connection the one that the handler gets, in the connection's own task."""


class AttendingHandler(abc.ABC):
    """A handler with a task of its own for the drain of its server: its connections may be waiting for something else."""

    @abc.abstractmethod
    async def __call__(self, connection: Connection) -> None:
        """Serve one connection."""

    @abc.abstractmethod
    async def attend(self, draining: trio.Event) -> None:
        """Run as long as the server does: a task, in each process that serves."""


class LivingHandler(abc.ABC):
    """A handler with a lifespan of its own, in each process that serves; it is in that of ``serve(lifespan=...)``.

    It may count requests, and may know when its process has served enough.
    """

    @abc.abstractmethod
    async def __call__(self, connection: Connection) -> None:
        """Serve one connection."""

    @abc.abstractmethod
    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Return the context manager that the server is within."""

    async def until_retired(self) -> None:
        """Return when this process has served enough: a server then drains, and a worker process is replaced."""
        await trio.sleep_forever()

    def request_statistics(self) -> RequestStatistics | None:
        """Return a snapshot of the requests of this process; None of a handler that does not count them."""
        return None

    def request_in_progress(self, _task: trio.lowlevel.Task) -> RequestInProgress | None:
        """Return the request that the task of a connection serves; None if there is none, or they are not noted."""
        return None


logger = logging.getLogger("gain_trio")

_WORDS: Final[dict[type[BaseException], str]] = {trio.BrokenResourceError: "broke", trio.TooSlowError: "was too slow"}
"""What has become of a connection that ended by this."""


@final
@attrs.define
class ConsumerSettings:
    """What holds for all connections of a server in this process, whichever consumer has them."""

    handler: Handler
    strict: bool = False
    idle_timeout: float = math.inf
    close_timeout: float = DEFAULT_CLOSE_TIMEOUT
    prepare: Sequence[Prepare] = ()
    """Steps before the handler."""
    limit: ConnectionLimit | None = None
    """Where each connection's place is given back."""
    admissions: Sequence[AdmissionStep] = ()
    """Steps, too, each of which is to know when a connection is over."""
    draining: trio.Event = attrs.field(factory=trio.Event)
    ended: Callable[[], object] = lambda: None
    """Called when a connection has ended while the server drains."""
    changed: Callable[[bool], object] | None = None
    """Called when a connection has begun (False), or has ended (True)."""
    tasks: HandlerTasks | None = None
    """Where the handlers that run are noted, for a server that can be looked at."""
    serve: Handler = attrs.field(init=False)
    """The handler as it is called: the method of an object that can be called, for each connection costs less than that."""
    name: str = attrs.field(init=False)
    """The handler's."""
    numbers: itertools.count[int] = attrs.field(init=False, factory=lambda: itertools.count(1))
    """What connections are called in the log."""

    def __attrs_post_init__(self) -> None:
        method = inspect.getattr_static(type(self.handler), "__call__", None)  # a static method takes no handler
        self.serve = types.MethodType(method, self.handler) if inspect.isfunction(method) else self.handler
        self.name = getattr(self.handler, "__qualname__", None) or repr(self.handler)


@final
class Consumer:
    """Runs handlers.

    What a handler raises ends its connection and nothing else: it is logged with its traceback and counted.  What is the
    peer's fault gets a line at level info, and counts of its own (``_failures.py``).  With ``strict`` all of it propagates,
    and so do in any case a cancellation and all but an :exc:`Exception` (``KeyboardInterrupt``, ``SystemExit``).

    Before the handler the steps of ``prepare`` have their turn, in the connection's task.  A connection that one of them
    refuses gets a line and is counted, and never propagates: it is the peer's doing, or the operator's.
    """

    def __init__(self, index: int, settings: ConsumerSettings) -> None:
        self.index = index
        """Its place among the consumers."""
        self._settings = settings
        self._preparing = 0  # connections in a step before their handler
        self._nursery: trio.Nursery | None = None  # None when it takes no new tasks: before run(), and when that ends
        self._open: dict[Connection, Connection] = {}  # as it was accepted, below TLS: as its handler has it
        self.connections = 0
        """How many it has been handed."""
        self.closed: dict[CloseCause, int] = dict.fromkeys(get_args(CloseCause), 0)
        """How many of them are over, by cause."""
        self._bytes_received = self._bytes_sent = 0  # of those that are over

    def __repr__(self) -> str:
        return f"<gain_trio consumer {self.index}: {self.active} of {self.connections} connections are open>"

    @property
    def active(self) -> int:
        """How many of its connections are open."""
        return len(self._open)

    @property
    def handlers_running(self) -> int:
        """How many of them have got as far as their handler: a peer that does not even begin TLS loses nothing."""
        return len(self._open) - self._preparing

    @property
    def bytes_received(self) -> int:
        """The bytes that all its connections have received so far."""
        # The list is made in one step: another thread may call this while connections open and close in this one.
        accepted = list(self._open)
        with_tls = [connection._successor for connection in accepted if connection._successor is not None]
        return self._bytes_received + sum(connection.bytes_received for connection in accepted + with_tls)

    @property
    def bytes_sent(self) -> int:
        """The bytes that all its connections have sent so far."""
        accepted = list(self._open)
        with_tls = [connection._successor for connection in accepted if connection._successor is not None]
        return self._bytes_sent + sum(connection.bytes_sent for connection in accepted + with_tls)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the nursery, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # it may be closed before an acceptor that has a connection learns of the end

    @property
    def has_silent(self) -> bool:
        """Whether the peer of a connection has sent nothing for the handler yet: it may be in its TLS handshake still."""
        return self._preparing > 0 or any(connection._has_received_nothing for connection in self._open.values())

    def drain(self) -> None:
        """The server drains: end the waits of handlers between two messages.  Those that begin later see it themselves."""
        for connection in list(self._open.values()):
            connection._latest()._begin_drain()

    def hand_off(self, connection: Connection) -> None:
        """Take a connection over, and the place that was taken for it, and start its handler.

        When it raises, the connection is the caller's still.  A connection that comes when the server is being cancelled
        is reset, and counts as cancelled.
        """
        number = next(self._settings.numbers)
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, connection, number, name=self._settings.name)
        self.connections += 1
        self._open[connection] = connection
        if self._settings.changed is not None:
            self._settings.changed(False)
        if self._nursery is None:
            connection.abort()
            self._ended(connection, number, "cancelled")

    async def _serve(self, accepted: Connection, number: int) -> None:
        settings = self._settings
        cause: CloseCause = "cancelled"
        connection, is_closed = accepted, False
        try:
            self._begin(accepted, number)
            if settings.prepare:
                prepared = await self._prepared(accepted, number)
                if isinstance(prepared, str):
                    cause = prepared
                    return
                connection = self._open[accepted] = prepared
            self._begin_to_serve(accepted, connection, number)
            await accepted._handled(settings.serve(connection), _SERVE)
            if not connection._close_soon():
                await connection.aclose()
            cause, is_closed = "finished", True
        except BaseException as error:
            failure, rest = parted(error)
            if failure is not None:
                cause = self._failed(connection, number, failure)
            if settings.strict or failure is None:
                raise
            if rest is not None:
                raise rest from None
        finally:
            try:
                if connection._latest()._was_idle:
                    cause = "idle"
                if not is_closed:
                    connection._close_now()
            finally:
                self._ended(accepted, number, cause)

    def _ended(self, accepted: Connection, number: int, cause: CloseCause) -> None:
        """It is closed: keep the books."""
        del self._open[accepted]
        self.closed[cause] += 1
        self._bytes_received += accepted.bytes_received
        self._bytes_sent += accepted.bytes_sent
        if accepted._successor is not None:  # start_tls()
            self._bytes_received += accepted._successor.bytes_received
            self._bytes_sent += accepted._successor.bytes_sent
        if logger.isEnabledFor(logging.DEBUG):
            ConnectionLog(number, self.index).closed(accepted, cause)
        settings = self._settings
        if settings.tasks is not None:
            settings.tasks.ended(accepted)
        if settings.changed is not None:
            settings.changed(True)
        if settings.limit is not None:
            settings.limit.give_back()
        for step in settings.admissions:
            step.release(accepted)
        if settings.draining.is_set():
            settings.ended()

    def _begin(self, connection: Connection, number: int) -> None:
        """It is open: it gets what the server says of the time and the end of connections."""
        settings = self._settings
        if logger.isEnabledFor(logging.DEBUG):
            ConnectionLog(number, self.index).opened(connection)
        connection._drains_with(settings.draining)
        if settings.idle_timeout != math.inf:
            connection.idle_timeout = settings.idle_timeout
        if settings.close_timeout != DEFAULT_CLOSE_TIMEOUT:
            connection.close_timeout = settings.close_timeout

    def _begin_to_serve(self, accepted: Connection, connection: Connection, number: int) -> None:
        """Its handler is next."""
        settings = self._settings
        if settings.tasks is not None:
            settings.tasks.began(accepted, connection, number)
        if settings.draining.is_set():
            connection._begin_drain()

    async def _prepared(self, connection: Connection, number: int) -> Connection | CloseCause:
        """The connection as its handler gets it, or why it gets none: that is the peer's doing, or the operator's."""
        settings = self._settings
        log = ConnectionLog(number, self.index)
        try:
            prepared: Connection = connection
            self._preparing += 1
            try:
                for prepare in settings.prepare:
                    prepared = await prepare(prepared)
            finally:
                self._preparing -= 1
        except HandshakeError as error:
            text, peer = "TLS handshake with %s failed: %s", peer_text(connection)
            log.over(logging.INFO, connection, "failed_handshake", text, peer, error)
            return "failed_handshake"
        except ProxyProtocolError as error:
            log.over(logging.WARNING, connection, "refused", "connection %s is refused: %s", connection, error)
            connection.abort()
            return "refused"
        except RefusedConnectionError as error:
            log.over(logging.INFO, connection, "refused", "connection %s is refused: %s", connection, error)
            connection.abort()
            return "refused"
        except trio.BrokenResourceError as error:
            log.over(logging.INFO, connection, "refused", "connection %s is refused: %s", connection, error)
            return "refused"
        return prepared

    def _failed(self, connection: Connection, number: int, error: BaseException) -> CloseCause:
        name, verdict = self._settings.name, judged(error)
        log = ConnectionLog(number, self.index)
        if verdict.cause == "error":
            text = "handler %s failed with %s; its connection %s is closed"
            kind = type(verdict.error).__qualname__
            log.over(logging.ERROR, connection, "error", text, name, kind, connection, exc_info=error)
        else:
            text = f"connection %s of handler %s {_WORDS.get(type(verdict.error), 'is closed')}: %s"
            log.over(logging.INFO, connection, verdict.cause, text, connection, name, verdict.text)
        return verdict.cause


_SERVE: Final = Consumer._serve.__code__

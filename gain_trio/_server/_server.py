"""A running server, as the program sees it."""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import trio

from gain_trio._io_manager import UringStatistics
from gain_trio._transports import Connection, Listener, endpoint_text, shown

from ._acceptor import Acceptor
from ._checks import check_timeout
from ._consumer import Consumer
from ._dispatcher import Dispatcher
from ._drain_limit import DrainLimit
from ._handler_tasks import slow_handlers
from ._process_usage import cpu_seconds, resident_memory
from ._program_metrics import GatheredMetrics, registered_metrics
from ._signals import no_workers_to_replace
from ._snapshot import ProcessSnapshot, ServerSnapshot, WorkSnapshot
from ._statistics import RequestStatistics, ServerStatistics
from ._time_limits import GATHERING
from ._tls_step import TlsStep

logger = logging.getLogger("gain_trio")


class Server:
    """A server that runs.  ``nursery.start(gain_trio.serve, ...)`` returns it; cancelling that nursery stops it."""

    metrics_addresses: tuple[Any, ...] = ()
    """Where the metrics are served to Prometheus (``metrics=``), as from :meth:`socket.socket.getsockname`."""
    _is_of_processes = False
    """Its connections, and the handler that serves them, are in worker processes."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        consumers: Sequence[Consumer],
        draining: trio.Event,
        scope: trio.CancelScope,
        rings: Callable[[], tuple[UringStatistics, ...]],
    ) -> None:
        self._consumers = consumers
        self._acceptors: list[Acceptor] = []
        self._dispatcher: Dispatcher | None = None
        self._scope = scope
        self._drain_limit = DrainLimit()
        self._rings = rings
        self._ended = trio.Event()
        self._tls: TlsStep | None = None
        self._requests: Callable[[], RequestStatistics | None] = lambda: None
        self._asks_to_leave: Callable[[], Awaitable[None]] | None = None
        """In a worker process: has the server's process replace this one."""
        self._context = contextvars.copy_context()
        """The context that handlers run in, with the lifespan's variables, whichever task hands their connections over."""
        self.addresses: tuple[Any, ...] = tuple(dict.fromkeys(listener.local_address for listener in listeners))
        """Where it listens, as from :meth:`socket.socket.getsockname`: one address a listener, or a group of them that
        share a port."""
        self.draining = draining
        """Set when :meth:`drain` was called.  It is the same as :attr:`Connection.draining` of all its connections."""

    def __repr__(self) -> str:
        where = ", ".join(map(endpoint_text, self.addresses)) or "what another process accepts"
        return f"<gain_trio.Server on {where}{', draining' if self.draining.is_set() else ''}>"

    @property
    def active_connections(self) -> int:
        """The number of open connections."""
        return sum(consumer.active for consumer in self._consumers)

    @property
    def cut_off(self) -> int:
        """The number of connections whose handlers the server has cancelled because the time of its drain was up."""
        return self._drain_limit.cut_off

    def stop_accepting(self) -> None:
        """Close the listeners: new connections are refused from now on.  A second call does nothing.

        Connections go on, those that were accepted and not yet handed to a handler too; the kernel resets those that
        waited in its backlog.  The server goes on until it is cancelled, or drained.
        """
        for acceptor in self._acceptors:
            acceptor.stop()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the time that the connections have, not this call
        """End gracefully: close the listeners, set :attr:`Connection.draining`, and wait for the handlers.

        First it does what :meth:`stop_accepting` does.  Then it sets :attr:`Connection.draining` for all connections, and
        their handlers have ``timeout`` seconds to return; 0 gives them none, ``math.inf`` no limit.  It cancels the handlers
        that still run then: :attr:`cut_off` has their number, and so has a line of the log.  When all have ended, ``serve``
        and this return.

        Called again, it can only shorten the time that is left.  When it is cancelled, the server goes on draining.  A
        handler that waits for it waits for itself, until the time is up.

        Raises:
          TypeError: ``timeout`` is not a number.
          ValueError: it is negative, or nan.
        """
        check_timeout("timeout", timeout)
        self._begin_to_drain(timeout)
        await self._ended.wait()

    def _begin_to_drain(self, timeout: float) -> None:
        """What :meth:`drain` does, but for waiting."""
        self.stop_accepting()
        if not self.draining.is_set():
            logger.info("%s drains: %d connections have %g seconds", shown(self), self.active_connections, timeout)
            self.draining.set()
            for consumer in self._consumers:
                consumer.drain()
        self._drain_limit.shorten(timeout)
        self._end_if_drained()

    def _status(self) -> str:
        """A line for people."""
        where = ", ".join(map(endpoint_text, self.addresses))
        doing = "draining" if self.draining.is_set() else f"serving on {where}"
        return f"{doing}: {self.active_connections} connections"

    def _is_ready(self) -> bool:
        """Whether it accepts connections, and will do so as far as is known now."""
        return not self.draining.is_set() and not any(acceptor.is_stopped for acceptor in self._acceptors)

    def _process_ids(self) -> list[int]:
        """The processes of the server, its own first."""
        return [os.getpid()]

    def _process_counts(self) -> tuple[int, int]:
        """Worker processes that serve, and how many have been replaced after they had died."""
        return 0, 0

    def _late_processes(self) -> int:
        """Worker processes that do not answer."""
        return 0

    async def _program_metrics(self) -> GatheredMetrics:
        """What the program has registered with prometheus_client."""
        with trio.move_on_after(GATHERING):
            metrics, is_complete = await registered_metrics()
            return GatheredMetrics(metrics, incomplete=int(not is_complete))
        return GatheredMetrics(incomplete=1)

    async def _snapshot(self) -> ServerSnapshot:
        """What it looks like now, for those who look at it through its control socket."""
        work = self._work_snapshot()
        state: Literal["serving", "draining"] = "serving" if self._is_ready() else "draining"
        pid = os.getpid()
        process = ProcessSnapshot(pid, state, None, work, cpu_seconds(pid), resident_memory(pid))
        return ServerSnapshot(state, self.addresses, (process,), work.statistics)

    def _work_snapshot(self, processes: int = 1) -> WorkSnapshot:
        """What this process serves, as one of several that are looked at."""
        settings = self._consumers[0]._settings  # which are those of all
        slow, examined = slow_handlers(settings.tasks, processes)
        return WorkSnapshot(shown(settings.name), self.statistics(), slow=slow, examined=examined)

    def _end_failure(self) -> Exception | None:
        """The reason why a server that was asked to end failed to end well, for a caller that was cancelled meanwhile."""
        return None

    async def _renew(self) -> None:
        """The effect of SIGHUP: a new TLS context, and with worker processes new processes."""
        if self._tls is not None:
            self._tls.renew(self)
        else:
            no_workers_to_replace("SIGHUP", self)

    async def _retire(self, timeout: float) -> None:  # noqa: ASYNC109 - the time that the connections have
        """The handler has served enough: end gracefully, or have this process replaced."""
        logger.info("process %d has served enough", os.getpid())
        if self._asks_to_leave is not None:
            await self._asks_to_leave()
        else:
            self._begin_to_drain(timeout)

    async def _end_in_time(self) -> None:
        """Cut off the handlers that still run when the time of a drain is up; a task of the server."""
        await self._drain_limit.enforce(self, self._handlers_running, self._scope.cancel)

    def _handlers_running(self) -> int:
        return sum(consumer.handlers_running for consumer in self._consumers)

    def _end_if_drained(self) -> None:
        """Called whenever a connection or an acceptor has ended."""
        if self.draining.is_set() and not self.active_connections and all(a.is_over for a in self._acceptors):
            self._scope.cancel()

    def _is_over(self) -> None:
        """Called when everything of the server has ended."""
        if self.draining.is_set():
            logger.info("%s is drained", shown(self))
        self._ended.set()

    def _hand_off(self, connection: Connection) -> None:
        """Serve a connection that was accepted elsewhere, as if it had come by a listener of this server's.

        Raises what the balancer raises, after closing the connection.
        """
        assert self._dispatcher is not None
        self._dispatcher.hand_off(connection)

    def statistics(self) -> ServerStatistics:
        """A snapshot of the counters."""
        consumers = self._consumers
        closed = {cause: sum(consumer.closed[cause] for consumer in consumers) for cause in consumers[0].closed}
        return ServerStatistics(
            accepted=sum(consumer.connections for consumer in consumers),
            active=self.active_connections,
            finished=closed["finished"],
            handler_errors=closed["error"],
            broken=closed["broken"],
            too_slow=closed["too_slow"],
            idle=closed["idle"],
            cancelled=closed["cancelled"],
            refused=closed["refused"],
            failed_handshakes=closed["failed_handshake"],
            bytes_received=sum(consumer.bytes_received for consumer in consumers),
            bytes_sent=sum(consumer.bytes_sent for consumer in consumers),
            connections_by_consumer=tuple(consumer.connections for consumer in consumers),
            active_by_consumer=tuple(consumer.active for consumer in consumers),
            rings=self._rings(),
            requests=self._requests(),
            cut_off=self.cut_off,
        )

"""A worker process, from when ``_boot.py`` has loaded :func:`main` to its exit status.

::

    work()                                       cancelled by the end of the control channel, or by a second SIGTERM
    ├─ server nursery                            serve_listeners(), as a server in one process has it
    └─ helpers                                   listen to the server, take what is handed off, report, forward the log

The server's process decides what happens: a SIGTERM sent to a worker makes it ask to be replaced, and it drains when the
server sends a message for that, which is when its successor serves.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, cast, final

import attrs
import trio

from gain_trio._io_manager import backend_info, run_worker
from gain_trio._server._checks import check_handler
from gain_trio._server._consumer import Handler
from gain_trio._server._listening import serve_listeners
from gain_trio._server._log_throttle import log_throttle, since_last
from gain_trio._server._program_metrics import reported_metrics
from gain_trio._server._server_config import ServerConfig
from gain_trio._server._time_limits import HAND_OFF_PAUSE, LAST_WORDS
from gain_trio._transports import (
    FIRST_SECONDS,
    UNKNOWN,
    Marks,
    endpoint_text,
    implementation,
    peer_of,
    reset_on_close,
    shown,
)

from . import _hand_off
from ._boot import described, report_failure
from ._control import ControlChannel
from ._control_messages import (
    ConnectionsEnded,
    Drain,
    Failed,
    HandOffReceived,
    Heartbeat,
    Leaving,
    MetricsReport,
    Ready,
    ReportMetrics,
    ReportSnapshot,
    SnapshotReport,
    StatisticsReport,
    StopAccepting,
)
from ._heartbeat import interval
from ._log_forwarding import LogForwarder
from ._placement import take_place
from ._watchdog import Watchdog
from ._worker_launcher import RunSettings, WorkerSettings

REPORT_INTERVAL: Final = 0.05
"""Seconds between two reports of the statistics, at least."""
LONGEST_INTERVAL: Final = 1.0
"""Seconds between two looks at whether something has changed, while connections are open: bytes move without a sign."""
ENDED_INTERVAL: Final = 0.002
"""Seconds between two counts of connections that have ended, at least; the first of several goes at once."""
FIRST_WORDS_INTERVAL: Final = 0.01
"""Seconds between two looks at connections that have brought nothing yet, when the process is to drain."""
FAILED: Final = 1
"""Exit status of a worker that ends by an exception, which it has reported to the server."""

logger = logging.getLogger("gain_trio")


def main(setup: bytes, control: socket.socket) -> None:
    """Serve, and exit.

    Args:
      setup: the handler, pickled by itself; the configuration; the settings of the run and of this process.
      control: this end of the control channel.
    """
    forwarder = LogForwarder()
    try:
        handler_pickled, config, run_like, settings = cast(
            "tuple[bytes, ServerConfig, RunSettings, WorkerSettings]",
            pickle.loads(setup),  # noqa: S301 - from the process that made this one
        )
        Watchdog(control, settings.parent).start()
        handler = cast("Handler", pickle.loads(handler_pickled))  # noqa: S301 - the same; this imports its module
        check_handler(handler)  # the module may have changed since the server was made
        take_place(settings.cpu, config.priority)
        sockets = WorkerSockets.take(settings)
        forwarder.install(settings.log_levels)
    except Exception as error:  # noqa: BLE001 - whatever the program raises
        report_failure(control, error)
        sys.exit(FAILED)
    config = attrs.evolve(
        config, max_connections=settings.max_connections, at_max_connections=settings.at_max_connections
    )
    worker = Worker(handler, config, sockets, forwarder, has_metrics=settings.has_metrics, processes=settings.processes)
    try:
        run_worker(
            worker.run,
            control,
            backend=run_like.backend,
            ring=run_like.ring,
            resume_in_place=run_like.resume_in_place,
            accelerate=run_like.accelerate,
        )
    except Exception as error:  # noqa: BLE001 - the same
        if control.fileno() >= 0:  # the run did not begin: without a ring, for example
            report_failure(control, error)
        sys.exit(FAILED)
    finally:
        forwarder.give_up()


@final
@attrs.frozen
class WorkerSockets:
    """What was passed to the process."""

    groups: tuple[tuple[socket.socket, ...], ...]
    hand_off: socket.socket

    @classmethod
    def take(cls, settings: WorkerSettings) -> WorkerSockets:
        """Own the descriptors, which no program started from here is to have."""
        for descriptor in (settings.hand_off, *(number for group in settings.groups for number in group)):
            os.set_inheritable(descriptor, False)
        groups = tuple(tuple(socket.socket(fileno=number) for number in group) for group in settings.groups)
        return cls(groups, socket.socket(fileno=settings.hand_off))


@final
class Wanted:
    """Something that the server asks for, again and again; a task answers once to requests that have come together."""

    def __init__(self) -> None:
        self.number = 0
        """The number of the last request."""
        self._asked = trio.Event()

    def ask(self, number: int) -> None:
        """A request has come."""
        self.number = number
        self._asked.set()

    async def wait(self) -> int:
        """Wait for a request, and return its number."""
        await self._asked.wait()
        self._asked = trio.Event()
        return self.number


@final
class Worker:
    """The tasks of a worker process."""

    def __init__(
        self,
        handler: Handler,
        config: ServerConfig,
        sockets: WorkerSockets,
        forwarder: LogForwarder,
        *,
        has_metrics: bool,
        processes: int = 1,
    ) -> None:
        self._handler = handler
        self._config = config
        self._sockets = sockets
        self._forwarder = forwarder
        self._has_metrics = has_metrics
        self._processes = processes  # of the server
        self._metrics_wanted = Wanted()
        self._snapshot_wanted = Wanted()
        self._changed = trio.Event()  # a connection began or ended
        self._ended = trio.Event()  # a connection ended
        self._has_served = False
        self._has_asked = False  # to be replaced
        self._taking = trio.Lock()
        self._serving = trio.CancelScope()
        self._lost = [0] * config.workers  # connections that nothing could be made of, by consumer

    async def run(self, sock: socket.socket) -> None:
        """Serve until drained, or until the control channel ends."""
        self._control = ControlChannel(sock)
        self._make = implementation("gain_trio.serve()", pass_fds=self._config.pass_fds)
        self._marks = self._config.marks or Marks()
        with self._sockets.hand_off:
            try:
                await self._run()
            except BaseException as error:
                with trio.move_on_after(LAST_WORDS) as scope:
                    scope.shield = True
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await self._control.send(Failed(*described(error)))
                raise
            finally:
                self._control.close()

    async def _run(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as helpers:
                helpers.start_soon(self._forwarder.run, self._control, name="gain_trio worker log")
                try:
                    with self._serving:
                        async with trio.open_nursery() as serving:
                            # Before it serves, which a lifespan may hold up: the server can end it meanwhile.
                            helpers.start_soon(self._listen, helpers, name="gain_trio worker control")
                            helpers.start_soon(self._attend, signals, name="gain_trio worker signals")
                            self._server = await serving.start(
                                serve_listeners, self._handler, self._sockets.groups, self._config
                            )
                            self._server._asks_to_leave = self._ask_to_leave
                            self._consumers = self._server._consumers
                            self._consumers[0]._settings.changed = self._note_change  # the settings are those of all
                            # Handlers of what it takes run in the context of the lifespan.
                            start = functools.partial(self._server._context.run, helpers.start_soon)
                            start(self._take, name="gain_trio worker hand-off")
                            helpers.start_soon(self._report, name="gain_trio worker statistics")
                            if self._has_metrics:
                                helpers.start_soon(self._report_metrics, name="gain_trio worker metrics")
                            if self._config.control is not None:
                                helpers.start_soon(self._report_snapshots, name="gain_trio worker snapshots")
                            if self._config.architecture == "reactor":  # the server's balancer wants to know
                                helpers.start_soon(self._count_ended, name="gain_trio worker counts")
                            # Before it is ready: the server is not up before it knows the rings of all processes.
                            await self._control.send(StatisticsReport(self._server.statistics()))
                            info = backend_info()
                            reason = "" if info.backend == "io_uring" else info.reason
                            await self._control.send(Ready(info.backend, reason))
                            helpers.start_soon(self._beat, name="gain_trio worker beats")
                finally:
                    helpers.cancel_scope.cancel()
                    await self._say_last_words()

    async def _say_last_words(self) -> None:
        with trio.move_on_after(LAST_WORDS) as scope:
            scope.shield = True
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if hasattr(self, "_server"):
                    await self._control.send(StatisticsReport(self._server.statistics()))
                await self._forwarder.send_all(self._control)
                if self._has_metrics and hasattr(
                    self, "_server"
                ):  # last: collectors are the program's, and may be slow
                    await self._control.send(MetricsReport(self._metrics_wanted.number, await reported_metrics()))

    def _note_change(self, ended: bool) -> None:
        if not self._has_served:
            self._has_served = True
            _hand_off.say_served(self._sockets.hand_off)
        self._changed.set()
        if ended:
            self._ended.set()

    # --- what the server says ---

    async def _listen(self, helpers: trio.Nursery) -> None:
        while (message := await self._control.receive()) is not None:
            if isinstance(message, Drain):
                self._server._drain_limit.begin()  # the wait for first words is in its time
                helpers.start_soon(self._drain, message.timeout, name="gain_trio worker drain")
            elif isinstance(message, StopAccepting):
                self._server.stop_accepting()
            elif isinstance(message, ReportMetrics):
                self._metrics_wanted.ask(message.number)
            elif isinstance(message, ReportSnapshot):
                self._snapshot_wanted.ask(message.number)
            else:
                raise TypeError(f"a worker process has received {message!r}, a message for servers")
        self._serving.cancel()

    async def _drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the time that the connections have
        """Accept no new connections, wait for the first bytes of those that have just come, and drain then.

        Handlers look at the event of the drain in many ways.  Most end a connection that has brought nothing yet, and its
        client, which has just connected, would have to take that for a failure.
        """
        deadline = trio.current_time() + timeout
        await self._take_all()
        self._server.stop_accepting()
        with trio.move_on_after(min(timeout, FIRST_SECONDS)):
            while self._awaits_first_words():  # noqa: ASYNC110 - a byte that arrives sets no event
                await trio.sleep(FIRST_WORDS_INTERVAL)
        await self._server.drain(max(deadline - trio.current_time(), 0.0))

    def _awaits_first_words(self) -> bool:
        if self._server.draining.is_set():  # a second message to drain came, with less time
            return False
        # An acceptor that is not over hands off what it has.
        has_more = not all(acceptor.is_over for acceptor in self._server._acceptors)
        return has_more or any(consumer.has_silent for consumer in self._consumers)

    async def _attend(self, signals: AsyncIterator[int]) -> None:
        is_first = True
        async for _number in signals:
            if is_first and hasattr(self, "_server"):
                is_first = False
                logger.info("worker process %d was sent a SIGTERM, and asks to be replaced", os.getpid())
                await self._ask_to_leave()
            else:
                self._serving.cancel()

    async def _ask_to_leave(self) -> None:
        if not self._has_asked:
            self._has_asked = True
            await self._control.send(Leaving())

    # --- connections that were accepted elsewhere ---

    async def _take(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._sockets.hand_off)
            if not await self._take_all():
                # The server keeps the others, and sends them once more; connections wait there as they wait in the backlog.
                count = log_throttle("take").count()
                if count is not None:
                    logger.error(
                        "worker process %d cannot take connections: it has too many open files; trying again in %s seconds"
                        "%s",
                        os.getpid(),
                        HAND_OFF_PAUSE,
                        shown(since_last(count)),
                    )
                await trio.sleep(HAND_OFF_PAUSE)

    async def _take_all(self) -> bool:
        """Take what has arrived; False if there was no room for some."""
        async with self._taking:
            while (arrival := _hand_off.receive_ready(self._sockets.hand_off)) is not None:
                connections = [socket.socket(fileno=descriptor) for descriptor in arrival.descriptors]
                try:
                    # From here on they are this process's.  Before, none of their bytes may be read.
                    await self._control.send(HandOffReceived(arrival.sequence, len(connections)))
                    for number in arrival.consumers[: len(connections)]:
                        self._begin(connections.pop(0), number)
                finally:
                    for connection in connections:
                        connection.close()
                if len(arrival.descriptors) < len(arrival.consumers):
                    return False
        return True

    def _begin(self, sock: socket.socket, number: int) -> None:
        consumer = self._consumers[number]
        try:
            sock.setblocking(False)
            connection = self._make.connection(sock, self._marks)
        except OSError as error:  # the ring's table of connections is full
            count = log_throttle("begin").count()
            if count is not None:
                peer = peer_of(sock)
                logger.error(
                    "the connection from %s is reset: this process has no room for it: %s%s",
                    shown(UNKNOWN if peer is None else endpoint_text(peer)),
                    shown(error),
                    shown(since_last(count)),
                )
            with sock:
                reset_on_close(sock)
            self._lost[number] += 1
            self._ended.set()
        else:
            consumer.hand_off(connection)

    # --- reports to the server ---

    async def _beat(self) -> None:
        """Show that the event loop runs.  At most one heartbeat waits for a server that does not read."""
        seconds = interval(self._config.worker_timeout)
        while True:
            await trio.sleep(seconds)
            await self._control.send(Heartbeat())

    async def _count_ended(self) -> None:
        sent: tuple[int, ...] = ()
        while True:
            await self._ended.wait()
            self._ended = trio.Event()
            counts = tuple(
                consumer.connections - consumer.active + lost
                for consumer, lost in zip(self._consumers, self._lost, strict=True)
            )
            if counts != sent:
                await self._control.send(ConnectionsEnded(counts))
                sent = counts
                await trio.sleep(ENDED_INTERVAL)

    async def _report_metrics(self) -> None:
        """Report the program's metrics when the server asks; once for requests that have come together."""
        while True:
            number = await self._metrics_wanted.wait()  # before they are read: what is counted later is not in them
            await self._control.send(MetricsReport(number, await reported_metrics()))

    async def _report_snapshots(self) -> None:
        """Report what this process serves when the server asks."""
        while True:
            number = await self._snapshot_wanted.wait()
            await self._control.send(SnapshotReport(number, self._server._work_snapshot(self._processes)))

    async def _report(self) -> None:
        sent = attrs.evolve(self._server.statistics(), rings=())  # a ring counts the sending of a report, too
        interval = LONGEST_INTERVAL
        while True:
            with trio.move_on_after(interval if self._server.active_connections else math.inf):
                await self._changed.wait()
            self._changed = trio.Event()
            statistics = self._server.statistics()
            now = attrs.evolve(statistics, rings=())
            if now == sent:
                interval = min(2 * interval, LONGEST_INTERVAL)
                continue
            await self._control.send(StatisticsReport(statistics))
            sent, interval = now, REPORT_INTERVAL
            await trio.sleep(REPORT_INTERVAL)

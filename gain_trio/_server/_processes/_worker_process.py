"""One worker process, as the server sees it: from the decision to start it to its exit status.

===========  ==================================================================================================
STARTING     the process is being started, imports its handler, opens its ring
READY        it serves, and may be given connections
LEAVING      it drains: it gets no more connections, and ends when its last connection has, or when time is up
ENDED        the process is gone; its exit status has been fetched
===========  ==================================================================================================

STARTING -> READY -> LEAVING -> ENDED, and from each of them to ENDED.  Whatever ends the task that :meth:`run` is in, the
process is gone when the task is: the server ends its control channel, gives it a bounded time, and kills it.

A process that is READY or LEAVING sends heartbeats (``_heartbeat``).  One that is late gets no more connections, and those
on their way to it that it has not confirmed go to others; when it answers, it gets connections again.  One that sends
nothing for ``worker_timeout`` is killed.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, final

import trio

from gain_trio._server._program_metrics import ProgramMetrics
from gain_trio._server._snapshot import WorkSnapshot
from gain_trio._server._statistics import ServerStatistics
from gain_trio._server._time_limits import LAST_WORDS, UNWANTED_GRACE, WORKER_GRACE
from gain_trio._transports import shown

from . import _hand_off
from ._accepted_socket import AcceptedSocket
from ._control import ControlChannel
from ._control_messages import (
    ConnectionsEnded,
    Drain,
    Failed,
    HandOffReceived,
    Heartbeat,
    Leaving,
    LogRecords,
    Message,
    MetricsReport,
    Ready,
    ReportMetrics,
    ReportSnapshot,
    SnapshotReport,
    StatisticsReport,
    StopAccepting,
)
from ._heartbeat import HeartbeatMonitor
from ._log_forwarding import log_for
from ._pending_hand_offs import Pair, PendingHandOffs
from ._remote_consumer import RemoteConsumer
from ._worker_launcher import Groups, WorkerLauncher, WorkerSettings
from ._worker_reports import WorkerReports

logger = logging.getLogger("gain_trio")


class WorkerState(enum.Enum):
    """See the top of this module."""

    STARTING = enum.auto()
    READY = enum.auto()
    LEAVING = enum.auto()
    ENDED = enum.auto()


class WorkerOwner(Protocol):
    """The calls by which a worker process reports to its owner."""

    def changed(self) -> None:
        """Its state, or the number of connections it has, is another."""

    def asked_to_leave(self, worker: WorkerProcess, /) -> None:
        """It was sent a SIGTERM."""

    def given_back(self, connections: Sequence[AcceptedSocket], /) -> None:
        """These were on their way to it and have not been taken."""


@final
class WorkerProcess:
    """See the top of this module.

    Args:
      launch: how to start it.
      settings: makes its :class:`WorkerSettings` of the descriptors that it is to have: of its hand-off socket, and of its
        listening sockets by shard.
      groups: the listening sockets, by shard.  Those that are closed when it is started are left out.
      indices: of its consumers, among those of all processes.
      timeout: the server's ``worker_timeout``.
      killed: called when the server has to kill the process, with whether that is because it does not answer.
    """

    def __init__(
        self,
        launch: WorkerLauncher,
        settings: Callable[[int, Groups], WorkerSettings],
        groups: Sequence[Sequence[socket.socket]],
        indices: Sequence[int],
        owner: WorkerOwner,
        *,
        timeout: float | None = None,
        killed: Callable[[bool], object] = lambda _hung: None,
    ) -> None:
        self._launch = launch
        self._settings = settings
        self._groups = groups
        self._owner = owner
        self._killed = killed
        self._heartbeats = HeartbeatMonitor(timeout)
        self.consumers = tuple(RemoteConsumer(index, number, self) for number, index in enumerate(indices))
        self.state = WorkerState.STARTING
        self.statistics: ServerStatistics | None = None
        """Its last report."""
        self.metrics: WorkerReports[ProgramMetrics] = WorkerReports(ReportMetrics)
        """The program's own metrics in it."""
        self.snapshots: WorkerReports[WorkSnapshot] = WorkerReports(ReportSnapshot)
        """What it serves, for those who look at the server."""
        self.failure: Failed | None = None
        self.has_reported_failure = False
        """Whether :attr:`failure` is what the process said itself."""
        self.backend = ""
        self.reason = ""
        """Why it is not on a ring."""
        self.ready_at: float | None = None
        """When it began to serve, on Trio's clock."""
        self.was_asked_to_leave = False
        """Whether it was sent a SIGTERM."""
        self.was_told_to_drain = False
        """Whether its end is as it was to be: see :meth:`drain`."""
        self._process: trio.Process | None = None
        self._pid: int | None = None
        self._was_killed = False
        self._control: ControlChannel | None = None
        self._scope = trio.CancelScope()
        self._pending = PendingHandOffs()
        self._ready = trio.Event()
        self._listeners_to_close = trio.Event()
        self._end_wanted = trio.Event()
        self._end_scope = trio.CancelScope()
        """Whose deadline is that of the drain."""
        self._is_overdue = False
        self._grace: float | None = None  # other than WORKER_GRACE
        self._has_served = False
        self._drain_timeout: float | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None before the process has started."""
        return self._pid

    @property
    def has_room(self) -> bool:
        """Whether it may be given a connection."""
        return self.answers and not self._pending.is_full

    @property
    def answers(self) -> bool:
        """Whether it serves, and its event loop goes round."""
        return self.state is WorkerState.READY and not self._heartbeats.is_late

    @property
    def has_served(self) -> bool:
        """Whether it had a connection; known when it has ended."""
        return self._has_served or any(consumer.connections for consumer in self.consumers)

    @property
    def was_started(self) -> bool:
        """Whether there was a process at all."""
        return self._process is not None

    @property
    def was_lost(self) -> bool:
        """Whether it has ended in a way that it has not explained: another program has killed it, or it has crashed."""
        status = None if self._process is None else self._process.returncode
        return status not in {None, 0} and not self._was_killed and not self.has_reported_failure

    @property
    def end(self) -> str:
        """How it ended, for people."""
        status = None if self._process is None else self._process.returncode
        if status is None:
            return "was never started" if self._process is None else "has not ended"
        if status < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-status).name}"
            return f"was killed by signal {-status}"
        return f"exited with status {status}"

    # --- what the server asks of it ---

    def hand_off(self, connection: AcceptedSocket, consumer: RemoteConsumer) -> None:
        """See :meth:`RemoteConsumer.hand_off`."""
        self._pending.post(connection, consumer)
        if self._pending.is_full:
            self._owner.changed()

    def stop_accepting(self) -> None:
        """Have it close its listeners: at once, or when it is ready."""
        self._listeners_to_close.set()

    def drain(self, timeout: float) -> None:
        """Have it end when its connections have, within ``timeout`` seconds.  One that is not ready yet ends at once.

        Called again, it can only shorten the time that is left.
        """
        self.was_told_to_drain |= self.state is not WorkerState.ENDED
        if self.state is WorkerState.STARTING:
            self.cancel()
        elif self.state is not WorkerState.ENDED:
            if self.state is WorkerState.READY:
                self._become(WorkerState.LEAVING)
            # The message is sent after the connections that were accepted for it.
            self._drain_timeout = timeout
            self._pending.wake()
            self._end_scope.deadline = min(self._end_scope.deadline, trio.current_time() + timeout)
            self._end_wanted.set()

    def cancel(self) -> None:
        """Have it end at once."""
        if self.state is WorkerState.STARTING and self._process is not None:
            self._process.terminate()  # it does not listen before it serves
            self._grace = UNWANTED_GRACE
        self._scope.cancel()

    async def _send(self, message: Message) -> None:
        assert self._control is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it is gone, which others see, too
            await self._control.send(message)

    async def _close_listeners(self) -> None:
        """Pass the order on when there is one, and when the process can understand it."""
        await self._ready.wait()
        await self._listeners_to_close.wait()
        await self._send(StopAccepting())

    async def _enforce_end(self) -> None:
        """Kill a process that has not ended when the time of its drain is up: at once, if it does not answer."""
        await self._end_wanted.wait()
        with self._end_scope:
            await trio.sleep_forever()
        self._is_overdue = True  # from now on it is killed when it is late
        if not self._heartbeats.is_late:
            await trio.sleep(WORKER_GRACE)
        self._kill("has not ended in time", hung=self._heartbeats.is_late)

    async def _watch(self) -> None:
        """Notice that the process does not answer any more."""
        await self._ready.wait()
        heartbeats = self._heartbeats
        while True:
            await trio.sleep(heartbeats.interval)
            was_late = heartbeats.is_late
            heartbeats.tick()
            if heartbeats.is_late and not was_late:
                self._fall_behind()
            if heartbeats.is_hung:
                self._kill(f"has not answered for {heartbeats.timeout:g} seconds (worker_timeout)", hung=True)
                return
            if self._is_overdue and heartbeats.is_late:
                self._kill("has not ended in time", hung=True)
                return

    def _fall_behind(self) -> None:
        if self.state is WorkerState.READY:
            logger.warning("worker process %s does not answer: it gets no new connections until it does", self.pid)
            self._owner.changed()

    def take_back(self) -> None:
        """Give the owner the connections that this process has not taken, if it is late with them."""
        if self.state is not WorkerState.READY or not self._heartbeats.is_late or not self._pending.count:
            return
        self._give_back(self._pending.take_back())

    def _note_heard(self) -> None:
        was_late = self._heartbeats.is_late
        self._heartbeats.reset()
        if was_late and self.state is WorkerState.READY:
            logger.warning("worker process %s answers again", self.pid)
            self._owner.changed()

    def _kill(self, why: str, *, hung: bool) -> None:
        process = self._process
        if process is None or process.returncode is not None or self._was_killed:
            return
        self._was_killed = True
        logger.error("worker process %s %s, and is killed", self.pid, shown(why))
        process.kill()
        self._killed(hung)

    def _become(self, state: WorkerState) -> None:
        self.state = state
        self._owner.changed()

    def _give_back(self, pairs: Sequence[Pair]) -> None:
        if pairs:
            self._owner.given_back(self._pending.release(pairs))

    # --- its life ---

    async def run(self) -> None:
        """Start it, attend to it, and see it gone."""
        try:
            with self._scope, contextlib.ExitStack() as stack:
                try:
                    hand_off = await self._start(stack)
                except OSError as error:  # for want of descriptors, of processes, or of memory
                    self.failure = Failed(f"it cannot be started: {error.strerror or error}", "")
                else:
                    try:
                        await self._attend(hand_off)
                    finally:
                        self._has_served = _hand_off.has_served(hand_off)
        finally:
            with trio.CancelScope(shield=True):
                await self._see_it_gone()

    async def _start(self, stack: contextlib.ExitStack) -> socket.socket:
        """Start the process; the server's end of the hand-off."""
        with contextlib.ExitStack() as passed:
            own, other = map(passed.enter_context, socket.socketpair())
            self._control = ControlChannel(
                own
            )  # first: for want of room there may be none, and then no process is to be there
            own_hand_off, other_hand_off = map(stack.enter_context, _hand_off.open_pair())
            self._pending.retrieval = other_hand_off
            # Copies: the others may be closed while a thread starts the process, and their numbers be those of other files.
            groups = tuple(
                tuple(passed.enter_context(sock.dup()).fileno() for sock in group if sock.fileno() >= 0)
                for group in self._groups
            )
            settings = self._settings(other_hand_off.fileno(), groups)
            descriptors = [other_hand_off.fileno(), *(number for group in groups for number in group)]
            self._process = await self._launch.start(other, descriptors)
            self._pid = self._process.pid
        with suppress(trio.BrokenResourceError):  # it has ended already
            await self._control.send_frame(self._launch.first_message(settings))
        return own_hand_off

    async def _attend(self, hand_off: socket.socket) -> None:
        try:
            # All tasks begin here, and wait for their orders: a nursery that may be ending takes no new ones.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_connections, hand_off)
                nursery.start_soon(self._close_listeners)
                nursery.start_soon(self.metrics.send_requests, self._send)
                nursery.start_soon(self.snapshots.send_requests, self._send)
                nursery.start_soon(self._enforce_end)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._await_exit)
                await self._listen()
                # It has closed its end, or it is gone.
                nursery.cancel_scope.cancel()
        finally:
            if self.state is WorkerState.READY:  # it ends, and gets nothing any more
                self._become(WorkerState.LEAVING)
        assert self._process is not None
        with trio.move_on_after(WORKER_GRACE):
            await self._process.wait()
        self._grace = 0.0  # which it has had

    async def _await_exit(self) -> None:
        assert self._process is not None
        await self._process.wait()
        await trio.sleep(LAST_WORDS)  # for what it has said before its end, which ends _listen()
        self.cancel()

    async def _see_it_gone(self) -> None:
        try:
            if self._process is not None:
                await self._await_end(self._process)
        finally:
            if self._control is not None:
                self._control.close()
            left = self._pending.take_all()
            self.metrics.end()
            self.snapshots.end()
            try:
                self._become(WorkerState.ENDED)
            finally:
                self._give_back(left)

    async def _await_end(self, process: trio.Process) -> None:
        async with trio.open_nursery() as listening:
            listening.start_soon(self._listen)  # statistics, log records, and what it has taken
            # What comes of it may raise errors of the program's (its balancer's).  The process has to end all the same.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._say_goodbye)
                    with trio.move_on_after(self._patience()):
                        await process.wait()
                    self._kill("has not ended in time", hung=False)
                    await process.wait()
                    nursery.cancel_scope.cancel()
            listening.cancel_scope.deadline = trio.current_time() + LAST_WORDS

    def _patience(self) -> float:
        """Seconds that the process has for its end."""
        if self._heartbeats.is_late or self._was_killed:
            return 0.0
        return WORKER_GRACE if self._grace is None else self._grace

    async def _say_goodbye(self) -> None:
        assert self._control is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._control.send_eof()

    # --- what it says ---

    async def _listen(self) -> None:
        assert self._control is not None
        while True:
            try:
                message = await self._control.receive()
            except ValueError as error:
                self._give_up_on_it(error)
                return
            if message is None:
                return
            self._note_heard()
            self._heed(message)

    def _give_up_on_it(self, reason: object) -> None:
        """End a process whose messages are invalid: other code writes to its descriptor, or its memory is corrupt."""
        self.failure = Failed(f"it cannot be understood: {reason}", "")
        self.cancel()

    def _heed(self, message: Message) -> None:
        match message:
            case HandOffReceived(sequence, count):
                self._note_taken(sequence, count)
            case ConnectionsEnded(counts) if len(counts) == len(self.consumers):
                for consumer, count in zip(self.consumers, counts, strict=True):
                    consumer.ended = count
                self._owner.changed()
            case Heartbeat():
                pass
            case StatisticsReport() | MetricsReport() | SnapshotReport():
                self._note_report(message)
            case LogRecords():
                log_for(message)
            case Ready(backend, reason):
                self.reason = reason
                self._note_ready(backend)
            case Leaving():
                self.was_asked_to_leave = True
                self._owner.asked_to_leave(self)
            case Failed():
                self.failure = message
                self.has_reported_failure = True
            case _:
                self._give_up_on_it(f"a worker process does not say {message!r}")

    def _note_report(self, report: StatisticsReport | MetricsReport | SnapshotReport) -> None:
        if isinstance(report, MetricsReport):
            self.metrics.note(report.number, report.metrics)
        elif isinstance(report, SnapshotReport):
            self.statistics = report.snapshot.statistics
            self.snapshots.note(report.number, report.snapshot)
        else:
            self.statistics = report.statistics

    def _note_ready(self, backend: str) -> None:
        self.backend = backend
        self.ready_at = trio.current_time()
        self._ready.set()  # it may have copies of listeners that were closed here meanwhile
        if self.state is WorkerState.STARTING:
            self._become(WorkerState.READY)

    # --- connections on their way to it ---

    def _note_taken(self, sequence: int, count: int) -> None:
        refused = self._pending.confirm(sequence, count)
        if refused and self.state is WorkerState.READY:
            self._pending.send_again(refused)
        else:
            self._give_back(refused)
        self._owner.changed()

    async def _send_connections(self, hand_off: socket.socket) -> None:
        while True:
            await self._pending.wait()
            try:
                await self._pending.send(hand_off)
            except OSError as error:  # it is gone, and what is on its way goes to others
                logger.debug("worker process %s takes no more connections: %s", self.pid, shown(error))
                return
            if self._drain_timeout is not None:
                timeout, self._drain_timeout = self._drain_timeout, None
                await self._send(Drain(timeout))

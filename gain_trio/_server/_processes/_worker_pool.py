"""The worker processes of a server: their supervisors, the acceptors of this process, and connections on their way."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import attrs
import trio

from gain_trio._server._acceptor import Acceptor
from gain_trio._server._admission import full_reason
from gain_trio._server._balancer import RoundRobin, balancer_of
from gain_trio._server._dispatcher import Dispatcher
from gain_trio._server._failures import is_cancellation
from gain_trio._server._log_throttle import log_throttle, since_last
from gain_trio._server._server_config import ServerConfig
from gain_trio._server._statistics import ServerStatistics
from gain_trio._server._time_limits import RESOURCE_PAUSE
from gain_trio._transports import shown

from ._accept_gate import AcceptGate
from ._accepted_socket import AcceptedSocket, listener_for_others
from ._metrics_gathering import MetricsGathering
from ._recycling import Recycler
from ._remote_consumer import RemoteConsumer
from ._snapshot_gathering import SnapshotGathering
from ._supervisor import WorkerSupervisor, start_timeout
from ._worker_failed import WorkerFailed
from ._worker_launcher import WorkerLauncher, WorkerSettings, log_levels
from ._worker_process import WorkerProcess

MOST_WAITING: Final = 1024
"""Connections that wait for a worker because the one they were on their way to has died, and there is no other."""

logger = logging.getLogger("gain_trio")


def copies_of(sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """A duplicate of each.

    Raises:
      OSError: there are no descriptors for all of them; none is left open.
    """
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(sock.dup()) for sock in sockets]
        stack.pop_all()
    return copies


@final
class WorkerPool:
    """Supervises, dispatches, counts.

    *Reactor*: this process accepts, the balancer picks a consumer among those of all processes that serve and are not
    behind, and the connection's descriptor goes there.  *Socket sharding*: each process accepts from listeners of its own.
    This process keeps them all open.  So what waits in the backlog of one whose process is gone is not reset: it is for the
    successor.  Until that serves, this process accepts in its name and hands off to the others, as a reactor does
    (unless connections are limited: those connections are the successor's).

    Args:
      groups: the listening sockets: one group, or for socket sharding one for each shard of each process.
      cpus: one for each process, or none.
    """

    def __init__(
        self,
        launch: WorkerLauncher,
        config: ServerConfig,
        groups: Sequence[Sequence[socket.socket]],
        count: int,
        cpus: Sequence[int],
    ) -> None:
        self._launch = launch
        self._config = config
        self._is_sharded = config.architecture == "socket_sharding"
        self._groups = groups
        self._cpus = cpus
        self._balancer = RoundRobin() if self._is_sharded else balancer_of(config.balancer)
        self._candidates: list[RemoteConsumer] = []
        self._dispatcher: Dispatcher | None = None
        self._waiting: deque[AcceptedSocket] = deque()
        self._gate = AcceptGate(self._has_room)
        self._acceptors: list[Acceptor] = []
        self._scope = trio.CancelScope()
        self._slots_changed = trio.Event()
        self._rolling = trio.Lock()
        self._rolls_again = False
        self._failure: WorkerFailed | None = None
        self._bad_end: WorkerFailed | None = None  # of a process that was to end with the server
        self.accepts = True
        """Whether new connections are accepted, here or in the processes."""
        self._is_up = False
        self._without_ring = 0  # processes, when that was last looked at
        self._refused = 0  # connections, because there were max_connections
        self._drain_seconds = math.inf
        self._cut_off_before = 0  # connections, by processes that were replaced before the server drained
        self._cut = 0  # processes that had to be killed when the server drained
        self.supervisors = [
            WorkerSupervisor(
                index,
                self._make,
                strict=config.strict,
                graceful_timeout=config.graceful_timeout,
                changed=self.changed,
                fail=self._fail,
                ended_badly=self._note_bad_end,
                start_timeout=start_timeout(config.worker_timeout),
                is_up=lambda: self._is_up,
                has_lasted=lambda: any(supervisor.has_lasted for supervisor in self.supervisors),
            )
            for index in range(count)
        ]
        self._recycler = Recycler(config, self.supervisors, self._rolling)
        self._has_metrics = config.metrics is not None
        self.metrics = MetricsGathering(self.supervisors)
        """The program's own metrics in all processes."""
        self.snapshots = SnapshotGathering(self.supervisors)
        """What all processes serve."""
        self.draining = trio.Event()
        self.ended = trio.Event()

    # --- the tasks ---

    async def run(self, started: Callable[[], object]) -> None:
        """Have the processes serve, and call ``started`` when all do, until cancelled or drained.

        Raises:
          WorkerFailed: they cannot, or have not ended well.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for supervisor in self.supervisors:
                        nursery.start_soon(supervisor.supervise, name=f"gain_trio supervisor {supervisor.index}")
                    await self._until_all_serve()
                    if self._is_sharded:
                        if self._config.max_connections is None:
                            for supervisor in self.supervisors:
                                nursery.start_soon(
                                    self._stand_in, supervisor, name=f"gain_trio stand-in {supervisor.index}"
                                )
                    else:
                        for sock in self._groups[0]:
                            self._start_acceptor(nursery, sock)
                    if self._config.recycles:
                        nursery.start_soon(self._recycler.run, name="gain_trio recycler")
                    self._is_up = True
                    self._tell_of_rings()
                    started()
                    await self._until_drained()
        except BaseException as error:
            if self._bad_end is None or not is_cancellation(error):
                raise
        finally:
            self._drop(list(self._waiting), "the server has ended")
            self._waiting.clear()
            self.ended.set()
        failure = self._failure or self.end_failure()
        if failure is not None:
            raise failure

    @property
    def cut_off(self) -> int:
        """The connections that the processes have cut off since the server began to drain; complete when they have ended."""
        return self.statistics().cut_off - self._cut_off_before if self.draining.is_set() else 0

    def end_failure(self) -> WorkerFailed | None:
        """The reason why a drained server had to kill worker processes; None if it has not."""
        if not self._cut:
            return self._bad_end
        return WorkerFailed(
            "the server has cut connections off at its end",
            f"{self._cut} of its worker processes did not end within {self._drain_seconds:g} seconds, and had to be killed",
        )

    def _tell_of_rings(self) -> None:
        """One warning for all processes that were to have a ring and have none."""
        if not self._is_up or self._rolling.locked() or self._launch.run.backend != "auto":
            return
        without = [
            supervisor.current.reason
            for supervisor in self.supervisors
            if supervisor.current is not None and supervisor.current.reason
        ]
        if len(without) > self._without_ring:
            logger.warning(
                "%d of %d worker processes have no ring, and run on Trio's own I/O manager: %s",
                len(without),
                len(self.supervisors),
                shown(without[-1], 1000),
            )
        self._without_ring = len(without)

    def _start_acceptor(self, nursery: trio.Nursery, sock: socket.socket) -> Acceptor:
        gate: Any = self._gate  # has the methods of ConnectionLimit
        dispatcher: Any = self  # has those of Dispatcher, for sockets that are not yet a Connection
        acceptor = Acceptor(listener_for_others(sock), dispatcher, gate, self.changed)
        self._acceptors.append(acceptor)
        nursery.start_soon(acceptor.run, name=f"gain_trio acceptor {sock.getsockname()}")
        return acceptor

    async def _stand_in(self, supervisor: WorkerSupervisor) -> None:
        """Accept for a process that is gone or late, as long as others serve and it has no successor."""
        sockets = [sock for group in self._groups_of(supervisor.index) for sock in group]
        while True:
            await self._until(lambda: not supervisor.answers and bool(self._answering()) and self.accepts)
            try:
                copies = copies_of(sockets)
            except OSError as error:  # for want of descriptors: what waits in the backlog waits some more
                count = log_throttle(f"stand in for {supervisor.index}").count()
                if count is not None:
                    logger.error(
                        "cannot accept for worker process %d, which is gone or late: %s; trying again in %s seconds%s",
                        supervisor.index,
                        error.strerror,
                        RESOURCE_PAUSE,
                        shown(since_last(count)),
                    )
                await trio.sleep(RESOURCE_PAUSE)
                continue
            acceptors: list[Acceptor] = []
            try:
                async with trio.open_nursery() as nursery:
                    for copy in copies:
                        acceptors.append(self._start_acceptor(nursery, copy))
                    await self._until(lambda: supervisor.answers or not self._answering() or not self.accepts)
                    nursery.cancel_scope.cancel()
            finally:
                for acceptor in acceptors:
                    acceptor.stop()  # which closes its copy of the socket
                    self._acceptors.remove(acceptor)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._slots_changed.is_set():
                self._slots_changed = trio.Event()
            await self._slots_changed.wait()

    async def _until_all_serve(self) -> None:
        await self._until(lambda: all(supervisor.serves for supervisor in self.supervisors) or self.draining.is_set())

    async def _until_drained(self) -> None:
        await self._until(
            lambda: self.draining.is_set() and all(supervisor.is_empty for supervisor in self.supervisors)
        )
        self._scope.cancel()

    def _note_bad_end(self, failure: WorkerFailed, was_cancelled: bool) -> None:
        if self.draining.is_set() or was_cancelled:
            self._bad_end = self._bad_end or failure

    def _fail(self, failure: WorkerFailed) -> None:
        if self._failure is None:
            self._failure = failure
        self._scope.cancel()

    # --- what the server asks of its processes ---

    def stop_accepting(self) -> None:
        """Close the listeners here, and have the processes close theirs."""
        self.accepts = False
        for acceptor in self._acceptors:
            acceptor.stop()
        for group in self._groups:
            for sock in group:
                sock.close()
        for supervisor in self.supervisors:
            for worker in supervisor.workers:
                worker.stop_accepting()
        self.changed()

    def drain(self, timeout: float) -> None:
        """Have all processes drain, and end when they have."""
        self.stop_accepting()
        if not self.draining.is_set():
            self._cut_off_before = self.statistics().cut_off
            self.draining.set()
        self._drain_seconds = min(self._drain_seconds, timeout)
        for supervisor in self.supervisors:
            supervisor.close(timeout)
        self.changed()

    async def roll(self) -> None:
        """Replace the processes one by one: the successor serves before the old one stops.

        Asked for once more while it is done, it is done once more; asked for again and again, too.
        """
        if self._rolls_again:
            return
        self._rolls_again = True
        async with self._rolling:
            self._rolls_again = False
            await self._replace_all()
        self._tell_of_rings()

    async def _replace_all(self) -> None:
        for supervisor in self.supervisors:
            if self.draining.is_set():
                return
            try:
                await supervisor.replace()
            except WorkerFailed as error:
                logger.error(
                    "the other worker processes are not replaced, because the first one could not be: %s",
                    shown(error.reason),
                )
                return

    def statistics(self) -> ServerStatistics:
        """Over all processes, those that are gone included; consumers stand in the order of the supervisors."""
        nothing = attrs.evolve(
            ServerStatistics.total([]),
            connections_by_consumer=(0,) * self._config.workers,
            active_by_consumer=(0,) * self._config.workers,
        )
        total = ServerStatistics.total(supervisor.statistics() or nothing for supervisor in self.supervisors)
        return attrs.evolve(
            total,
            accepted=total.accepted + self._refused,
            refused=total.refused + self._refused,
            recycled_workers=self._recycler.recycled,
            hung_workers=sum(supervisor.hung for supervisor in self.supervisors),
            failed_starts=sum(supervisor.failed_starts for supervisor in self.supervisors),
        )

    # --- processes ---

    def _groups_of(self, index: int) -> Sequence[Sequence[socket.socket]]:
        if not self._is_sharded:
            return [[]]
        first = index * self._config.workers
        return self._groups[first : first + self._config.workers]

    def _make(self, supervisor: WorkerSupervisor) -> WorkerProcess:
        first = supervisor.index * self._config.workers
        settings = functools.partial(
            WorkerSettings,
            index=supervisor.index,
            processes=len(self.supervisors),
            parent=os.getpid(),
            cpu=self._cpus[supervisor.index] if self._cpus else None,
            max_connections=self._share(supervisor.index),
            at_max_connections=self._config.at_max_connections if self._share(supervisor.index) else "wait",
            log_levels=log_levels(),
            has_metrics=self._has_metrics,
        )
        return WorkerProcess(
            self._launch,
            lambda hand_off, groups: settings(hand_off=hand_off, groups=groups),
            self._groups_of(supervisor.index),
            range(first, first + self._config.workers),
            self,
            timeout=self._config.worker_timeout,
            killed=functools.partial(self._note_kill, supervisor),
        )

    def _note_kill(self, supervisor: WorkerSupervisor, hung: bool) -> None:
        supervisor.hung += hung
        self._cut += self.draining.is_set()

    def _share(self, index: int) -> int | None:
        limit = self._config.max_connections
        if limit is None or not self._is_sharded:
            return None  # without a limit, or counted here
        return limit // len(self.supervisors) + (index < limit % len(self.supervisors))

    def asked_to_leave(self, worker: WorkerProcess) -> None:
        """See :meth:`WorkerOwner.asked_to_leave`."""
        for supervisor in self.supervisors:
            supervisor.asked_to_leave(worker)

    # --- connections on their way ---

    def changed(self) -> None:
        """See :meth:`WorkerOwner.changed`."""
        candidates = [consumer for worker in self._answering() if worker.has_room for consumer in worker.consumers]
        if candidates != self._candidates:
            self._candidates = candidates
            duck: Any = candidates
            self._dispatcher = Dispatcher(duck, self._balancer) if candidates else None
        while self._waiting and self._dispatcher is not None:
            self.hand_off(self._waiting.popleft())
        if self._dispatcher is not None:
            for supervisor in self.supervisors:
                if supervisor.current is not None:
                    supervisor.current.take_back()
        if self._has_room():
            self._gate.wake()
        for supervisor in self.supervisors:
            supervisor.note()
        self._tell_of_rings()
        self._slots_changed.set()

    def _answering(self) -> list[WorkerProcess]:
        return [
            supervisor.current
            for supervisor in self.supervisors
            if supervisor.current is not None and supervisor.current.answers
        ]

    def _has_room(self) -> bool:
        if self._dispatcher is None:
            return False
        return self._config.at_max_connections == "refuse" or not self._is_full()

    def _is_full(self) -> bool:
        """Whether there are ``max_connections``, as far as they are counted here."""
        limit = None if self._is_sharded else self._config.max_connections
        return limit is not None and self._open_connections() >= limit

    def _open_connections(self) -> int:
        workers = [worker for supervisor in self.supervisors for worker in supervisor.workers]
        return len(self._waiting) + sum(consumer.active for worker in workers for consumer in worker.consumers)

    def hand_off(self, connection: AcceptedSocket) -> None:
        """Give a connection to the consumer that the balancer picks, or reset it if there are enough.

        Raises what the balancer raises, after closing it.
        """
        assert self._dispatcher is not None
        if self._config.at_max_connections == "refuse" and self._is_full():
            self._refuse(connection)
            return
        duck: Any = connection
        self._dispatcher.hand_off(duck)

    def _refuse(self, connection: AcceptedSocket) -> None:
        self._refused += 1
        connection.reset()
        count = log_throttle("max_connections").count()
        if count is not None:
            reason = full_reason(self._config.max_connections or 0)
            logger.warning("new connections are refused: %s%s", shown(reason), shown(since_last(count)))

    def given_back(self, connections: Sequence[AcceptedSocket]) -> None:
        """See :meth:`WorkerOwner.given_back`.

        Raises what the balancer raises, after closing all that are left.
        """
        for number, connection in enumerate(connections):
            if self.draining.is_set() or self._scope.cancel_called:
                self._drop(connections[number:], "the server ends")
                return
            if self._dispatcher is not None:
                try:
                    self.hand_off(connection)
                except BaseException:
                    self._drop(connections[number + 1 :], "the balancer has failed")
                    raise
            elif len(self._waiting) < MOST_WAITING:
                self._waiting.append(connection)
            else:
                self._drop(connections[number:], f"{MOST_WAITING} others wait for a worker process")
                return

    def _drop(self, connections: Sequence[AcceptedSocket], reason: str) -> None:
        if connections:
            logger.warning(
                "%d connections that no worker process had taken yet are reset: %s", len(connections), shown(reason)
            )
        for connection in connections:
            connection.reset()

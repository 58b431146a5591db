"""The nursery tree of a server in one process, on listening sockets that are open already.

Whatever cancels the scope it runs in ends everything below it::

    serve_listeners(handler, groups, ...)      cancel this scope, and everything below is gone
    └─ lifespan, if there is one               entered before the first accept, left after the last connection
       └─ server nursery
          ├─ the end of a drain                cuts off what is late
          ├─ acceptors (one a listener)        listener.accept -> balancer.pick(peer) -> consumer
          └─ consumers × workers               each owns the nursery its connections' handler tasks live in
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Sequence
from typing import final

import trio

from gain_trio._io_manager import current_ring_statistics
from gain_trio._transports import (
    Listener,
    Marks,
    close_all,
    close_sockets,
    implementation,
    make_listeners,
    wait_released,
)

from ._acceptor import Acceptor
from ._admission import AdmissionStep, admission_by_address, admission_in_all
from ._balancer import RoundRobin, balancer_of
from ._connection_limit import ConnectionLimit
from ._consumer import AttendingHandler, Consumer, ConsumerSettings, Handler, LivingHandler, Prepare
from ._dispatcher import Dispatcher
from ._handler_tasks import HandlerTasks
from ._proxy import ProxyStep
from ._server import Server
from ._server_config import ServerConfig
from ._server_lifespan import both, run_within
from ._tls_step import TlsStep


async def serve_listeners(
    handler: Handler,
    groups: Sequence[Sequence[socket.socket]],
    config: ServerConfig,
    *,
    listeners: Sequence[Listener] = (),
    before_accepting: Callable[[], object] = lambda: None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on listening sockets that are open already, in this process; they are closed at the end, whatever it is.

    ``groups`` is what :func:`open_sockets` gives: with socket sharding one group of sockets for each worker, otherwise one
    group for all of them, which may be empty where connections come by :meth:`Server._hand_off`.  The first group also has
    ``listeners``, which are there already.  ``before_accepting`` is called when the TLS context has been made.

    Raises what the server raises, and what :func:`run_within` does.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(close_sockets, groups)
        marks = config.marks or Marks()
        source = config.ssl_context
        tls = None if source is None else TlsStep(source, marks, config.handshake_timeout)
        before_accepting()
        waits = config.max_connections is not None and config.at_max_connections == "wait"
        limit = ConnectionLimit(config.max_connections) if config.max_connections is not None and waits else None
        make = implementation("gain_trio.serve()", pass_fds=config.pass_fds)
        by_group = [make_listeners(make, group, marks, exact=limit is not None) for group in groups]
        by_group[0] += listeners
        stack.callback(close_all, [listener for group in by_group for listener in group])
        idle_timeout = config.idle_timeout
        if idle_timeout == math.inf:  # then a handler of this package's own may have a limit
            idle_timeout = getattr(handler, "default_idle_timeout", math.inf)
        steps, admissions = _steps(config, tls)
        settings = ConsumerSettings(
            handler,
            strict=config.strict,
            idle_timeout=idle_timeout,
            close_timeout=config.close_timeout,
            prepare=steps,
            admissions=admissions,
            limit=limit,
            tasks=_handler_tasks(handler, config),
        )
        serving = _Serving(by_group, config, settings, tls, task_status)
        try:
            own = handler.lifespan if isinstance(handler, LivingHandler) else None
            lifespan = both(config.lifespan, own)
            if lifespan is None:
                await serving.run()
            else:
                await run_within(lifespan, serving.run, serving.end_of_drain)
        finally:
            if serving.server is not None:
                serving.server._is_over()


def _handler_tasks(handler: Handler, config: ServerConfig) -> HandlerTasks | None:
    """Where handlers are noted, if the server can be looked at."""
    if config.control is None:
        return None
    return HandlerTasks(handler.request_in_progress) if isinstance(handler, LivingHandler) else HandlerTasks()


def _steps(config: ServerConfig, tls: TlsStep | None) -> tuple[list[Prepare], list[AdmissionStep]]:
    """What is done with a connection before its handler gets it, and those of the steps that count connections."""
    steps: list[Prepare] = []
    admissions: list[AdmissionStep] = []
    if config.max_connections is not None and config.at_max_connections == "refuse":
        admissions.append(admission_in_all(config.max_connections))
        steps.append(admissions[-1].prepare)
    if config.proxy_protocol is not False:
        steps.append(ProxyStep(config.proxy_protocol, config.proxy_timeout).prepare)
    if config.max_connections_per_address is not None:  # behind the proxy's header, which has the address
        admissions.append(admission_by_address(config.max_connections_per_address))
        steps.append(admissions[-1].prepare)
    if tls is not None:
        steps.append(tls.prepare)
    return steps, admissions


@final
class _Serving:
    """The server, from its first accept until nothing of it is left."""

    def __init__(
        self,
        by_group: Sequence[Sequence[Listener]],
        config: ServerConfig,
        settings: ConsumerSettings,
        tls: TlsStep | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        self.server: Server | None = None
        """None before it has begun."""
        self._by_group = by_group
        self._config = config
        self._settings = settings
        self._tls = tls
        self._task_status = task_status

    def end_of_drain(self) -> float:
        """The time on Trio's clock until which the server may take to drain; ``-math.inf`` if it does not drain."""
        if self.server is None or not self._settings.draining.is_set():
            return -math.inf
        return self.server._drain_limit.deadline

    async def run(self) -> None:
        """Serve until cancelled or drained."""
        settings = self._settings
        consumers = [Consumer(index, settings) for index in range(self._config.workers)]
        listeners = [listener for group in self._by_group for listener in group]
        try:
            async with trio.open_nursery() as nursery:
                rings = current_ring_statistics()
                server = self.server = Server(listeners, consumers, settings.draining, nursery.cancel_scope, rings)
                server._tls = self._tls
                nursery.start_soon(server._end_in_time, name="gain_trio end of drain")
                settings.ended = server._end_if_drained
                for consumer in consumers:
                    await nursery.start(consumer.run, name=f"gain_trio consumer {consumer.index}")
                if isinstance(settings.handler, AttendingHandler):
                    name = f"gain_trio attendant of {settings.name}"
                    nursery.start_soon(settings.handler.attend, settings.draining, name=name)
                if isinstance(settings.handler, LivingHandler):
                    server._requests = settings.handler.request_statistics
                    nursery.start_soon(self._retire, settings.handler, server, name=f"gain_trio end of {settings.name}")
                self._accept(server, consumers, nursery)
                self._task_status.started(server)
        finally:
            close_all(listeners)
            await wait_released(listeners)

    async def _retire(self, handler: LivingHandler, server: Server) -> None:
        """End the server when its handler has served enough."""
        await handler.until_retired()
        await server._retire(self._config.graceful_timeout)

    def _accept(self, server: Server, consumers: Sequence[Consumer], nursery: trio.Nursery) -> None:
        """Start the acceptors."""
        if self._config.architecture == "socket_sharding":
            dispatchers = [Dispatcher([consumer], RoundRobin()) for consumer in consumers]
        else:
            dispatchers = [Dispatcher(consumers, balancer_of(self._config.balancer))]
        server._dispatcher = dispatchers[0]
        for group, dispatcher in zip(self._by_group, dispatchers, strict=True):
            for listener in group:
                acceptor = Acceptor(listener, dispatcher, self._settings.limit, server._end_if_drained)
                server._acceptors.append(acceptor)
                nursery.start_soon(acceptor.run, name=_acceptor_name(listener, dispatcher))


def _acceptor_name(listener: Listener, dispatcher: Dispatcher) -> str:
    shard = f" shard {dispatcher.only.index}" if dispatcher.only is not None else ""
    return f"gain_trio acceptor {listener.local_address}{shard}"

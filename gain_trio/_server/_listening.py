"""The nursery tree of a server in one process, on listening sockets that are open already.

Whatever cancels the scope it runs in ends everything below it::

    serve_listeners(handler, groups, ...)   cancel this scope, and everything below is gone
    └─ server nursery
       ├─ acceptors (one a listener)        listener.accept -> balancer.pick(peer) -> consumer
       └─ consumers × workers               each owns the nursery its connections' handler tasks live in
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import ssl
from collections.abc import Sequence

import trio

from gain_trio._io_manager import current_ring_statistics
from gain_trio._transports import (
    Listener,
    Marks,
    check_server_context,
    close_all,
    close_sockets,
    implementation,
    make_listeners,
    server_handshake,
    until_let_go,
)

from ._acceptor import Acceptor
from ._balancer import RoundRobin, balancer_of
from ._connection_limit import ConnectionLimit
from ._consumer import AttendingHandler, Consumer, ConsumerSettings, Handler, Prepare
from ._dispatcher import Dispatcher
from ._proxy import ProxyStep
from ._server import Server
from ._server_config import ServerConfig


async def serve_listeners(
    handler: Handler,
    groups: Sequence[Sequence[socket.socket]],
    config: ServerConfig,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on listening sockets that are open already, in this process; they are closed at the end, whatever it is.

    ``groups`` is what :func:`open_sockets` gives: with socket sharding one group of sockets for each worker, otherwise one
    group for all of them, which may be empty where connections come by :meth:`Server._hand_off`.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(close_sockets, groups)
        marks = config.marks or Marks()
        prepare = _steps(config, marks)
        limit = None if config.max_connections is None else ConnectionLimit(config.max_connections)
        make = implementation("gain_trio.serve()", pass_fds=config.pass_fds)
        by_group = [make_listeners(make, group, marks, exact=limit is not None) for group in groups]
        listeners = [listener for group in by_group for listener in group]
        stack.callback(close_all, listeners)
        idle_timeout = config.idle_timeout
        if idle_timeout == math.inf:  # then a handler of this package's own may have a limit
            idle_timeout = getattr(handler, "default_idle_timeout", math.inf)
        settings = ConsumerSettings(
            handler,
            strict=config.strict,
            idle_timeout=idle_timeout,
            close_timeout=config.close_timeout,
            prepare=prepare,
            limit=limit,
        )
        await _run(by_group, config, settings, task_status)


def _steps(config: ServerConfig, marks: Marks) -> list[Prepare]:
    """What is done with a connection before its handler gets it."""
    steps: list[Prepare] = []
    if config.proxy_protocol is not False:
        steps.append(ProxyStep(config.proxy_protocol, config.proxy_timeout).prepare)
    if config.ssl_context is None:
        return steps
    source = config.ssl_context
    context = check_server_context(source if isinstance(source, ssl.SSLContext) else source())
    steps.append(functools.partial(server_handshake, context=context, marks=marks, timeout=config.handshake_timeout))
    return steps


async def _run(
    by_group: Sequence[Sequence[Listener]],
    config: ServerConfig,
    settings: ConsumerSettings,
    task_status: trio.TaskStatus[Server],
) -> None:
    consumers = [Consumer(index, settings) for index in range(config.workers)]
    listeners = [listener for group in by_group for listener in group]
    server: Server | None = None
    try:
        async with trio.open_nursery() as nursery:
            server = Server(listeners, consumers, settings.draining, nursery.cancel_scope, current_ring_statistics())
            settings.ended = server._end_if_drained
            for consumer in consumers:
                await nursery.start(consumer.run, name=f"gain_trio consumer {consumer.index}")
            if isinstance(settings.handler, AttendingHandler):
                nursery.start_soon(
                    settings.handler.attend, settings.draining, name=f"gain_trio attendant of {settings.name}"
                )
            if config.architecture == "socket_sharding":
                dispatchers = [Dispatcher([consumer], RoundRobin()) for consumer in consumers]
            else:
                dispatchers = [Dispatcher(consumers, balancer_of(config.balancer))]
            server._dispatcher = dispatchers[0]
            for group, dispatcher in zip(by_group, dispatchers, strict=True):
                for listener in group:
                    acceptor = Acceptor(listener, dispatcher, settings.limit, server._end_if_drained)
                    server._acceptors.append(acceptor)
                    nursery.start_soon(acceptor.run, name=_acceptor_name(listener, dispatcher))
            task_status.started(server)
    finally:
        close_all(listeners)
        await until_let_go(listeners)
        if server is not None:
            server._is_over()


def _acceptor_name(listener: Listener, dispatcher: Dispatcher) -> str:
    shard = f" shard {dispatcher.only.index}" if dispatcher.only is not None else ""
    return f"gain_trio acceptor {listener.local_address}{shard}"

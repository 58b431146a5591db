"""serve(): the nursery tree of a server.

Whatever cancels the scope it runs in ends everything below it::

    serve(handler, address, ...)            cancel this scope, and everything below is gone
    └─ server nursery
       ├─ acceptor (one a listener)         listener.accept -> balancer.pick -> consumer
       └─ consumers × workers               each owns the nursery its connections' handler tasks live in
"""

from __future__ import annotations

import math

import trio

from gain_trio._io_manager import current_manager
from gain_trio._transports import Marks, open_listeners
from gain_trio._transports._connection import checked_idle_timeout
from gain_trio._transports._listener import close_all

from ._acceptor import Acceptor
from ._balancer import RoundRobin
from ._consumer import Consumer, Handler
from ._server import Server


async def serve(
    handler: Handler,
    address: str,
    *,
    workers: int = 1,
    backlog: int | None = None,
    reuse_port: bool = False,
    marks: Marks | None = None,
    idle_timeout: float = math.inf,
    strict: bool = False,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``handler`` on ``address`` until cancelled.

    For every connection ``await handler(connection)`` runs in a task of its own.  When it returns, the connection is
    flushed and closed.  When it raises an :exc:`Exception`, the connection is closed, the error is logged to the logger
    ``gain_trio`` with its traceback and counted, and the server goes on; :exc:`trio.BrokenResourceError` and
    :exc:`trio.TooSlowError` mean that the peer is gone or too slow, and get one line at level info.  When it is cancelled,
    its connection is closed like by a cancelled :meth:`Connection.aclose`: a handler that streams in pieces and must not be
    taken for finished calls :meth:`Connection.abort` when it is interrupted.

    Started by ``server = await nursery.start(gain_trio.serve, handler, address)`` it returns a :class:`Server`, which knows
    the addresses and the counters.  Cancelling the scope it runs in stops it at once: listeners, handlers and connections
    are gone when it has ended.

    Args:
      handler: an async function of one :class:`Connection`.
      address: ``tcp://host:port``, see :func:`open_listeners`.
      workers: how many consumers share the connections, in turn.  They are tasks of this run, each with a nursery.
      backlog, reuse_port, marks: see :func:`open_listeners`.
      idle_timeout: seconds that a connection may move no byte in either direction, see :attr:`Connection.idle_timeout`.
      strict: let a handler's exception end the server and propagate.

    Raises:
      ValueError, OSError, RuntimeError: see :func:`open_listeners`.
      TypeError: ``handler`` cannot be called.
    """
    current_manager("gain_trio.serve()")
    if not callable(handler):
        raise TypeError(f"the handler must be an async function of one connection, not {handler!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    idle_timeout = checked_idle_timeout(idle_timeout)
    consumers = [Consumer(handler, strict=strict, idle_timeout=idle_timeout) for _ in range(workers)]
    listeners = await open_listeners(address, backlog=backlog, reuse_port=reuse_port, marks=marks)
    balancer = RoundRobin()
    try:
        async with trio.open_nursery() as nursery:
            for number, consumer in enumerate(consumers):
                await nursery.start(consumer.run, name=f"gain_trio consumer {number}")
            for listener in listeners:
                acceptor = Acceptor(listener, consumers, balancer)
                nursery.start_soon(acceptor.run, name=f"gain_trio acceptor {listener.local_address}")
            task_status.started(Server(listeners, consumers))
    finally:
        close_all(listeners)

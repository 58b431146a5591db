"""serve(): the nursery tree of a server.

Whatever cancels the scope it runs in ends everything below it::

    serve(handler, address, ...)            cancel this scope, and everything below is gone
    └─ server nursery
       ├─ acceptor (one a listener)         listener.accept -> balancer.pick -> consumer
       └─ consumers × workers               each owns the nursery its connections' handler tasks live in
"""

from __future__ import annotations

import functools
import math
import ssl
from collections.abc import Iterable

import trio

from gain_trio._io_manager import current_manager
from gain_trio._transports import Marks, open_listeners
from gain_trio._transports._connection import checked_idle_timeout
from gain_trio._transports._listener import close_all
from gain_trio._transports._tls import check_handshake_timeout, check_server_context, marks_below, server_handshake

from ._acceptor import Acceptor
from ._balancer import RoundRobin
from ._consumer import Consumer, Handler, Prepare
from ._proxy import DEFAULT_TIMEOUT, ProxyStep
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
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    pass_fds: bool = False,
    proxy_protocol: Iterable[str] | bool = False,
    proxy_timeout: float = DEFAULT_TIMEOUT,
    strict: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    handshake_timeout: float = 30.0,
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
      address: ``tcp://host:port``, ``unix:///path`` or ``fd://systemd``; see :func:`open_listeners`.
      workers: how many consumers share the connections, in turn.  They are tasks of this run, each with a nursery.
      backlog, reuse_port, marks, mode, owner, group, pass_fds: see :func:`open_listeners`.
      idle_timeout: seconds that a connection may move no byte in either direction, see :attr:`Connection.idle_timeout`.
      proxy_protocol: the addresses and networks of proxies that send a PROXY protocol header (version 1 or 2) in front
        of a client's bytes, ``("127.0.0.1", "10.0.0.0/8")`` for example.  From them it is required, and all other
        connections are refused; a peer on a Unix socket counts as 127.0.0.1 and ::1.  ``remote_address`` and
        ``local_address`` of the connection are the client's then, :attr:`Connection.proxy_header` has the rest.  True
        takes a header from anybody: a client that can reach the port itself can then claim to be anybody.
      proxy_timeout: seconds that the header may take.
      strict: let a handler's exception end the server and propagate.
      ssl_context: serve TLS with it: a server's context, ``ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)`` with
        ``load_cert_chain()``.  Handshakes are done in the connections' own tasks, before the handler is called; one that
        fails gets a line at level info and is counted, and its handler is not called.
      handshake_timeout: seconds that a handshake may take; only with ``ssl_context``.

    Raises:
      ValueError: ``ssl_context`` is a client's, and see :func:`open_listeners`.
      OSError, RuntimeError: see :func:`open_listeners`.
      TypeError: ``handler`` cannot be called, ``proxy_protocol`` is no collection, or ``ssl_context`` is no context.
    """
    current_manager("gain_trio.serve()")
    if not callable(handler):
        raise TypeError(f"the handler must be an async function of one connection, not {handler!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    idle_timeout = checked_idle_timeout(idle_timeout)
    prepare: list[Prepare] = []
    if proxy_protocol is not False:
        prepare.append(ProxyStep(proxy_protocol, proxy_timeout).prepare)
    if ssl_context is not None:
        context = check_server_context(ssl_context)
        tls_marks = marks or Marks()
        marks = marks_below(tls_marks)
        check_handshake_timeout(handshake_timeout)
        prepare.append(functools.partial(server_handshake, context=context, marks=tls_marks, timeout=handshake_timeout))
    consumers = [Consumer(handler, strict=strict, idle_timeout=idle_timeout, prepare=prepare) for _ in range(workers)]
    listeners = await open_listeners(
        address,
        backlog=backlog,
        reuse_port=reuse_port,
        marks=marks,
        mode=mode,
        owner=owner,
        group=group,
        pass_fds=pass_fds,
    )
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

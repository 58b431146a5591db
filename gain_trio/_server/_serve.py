"""serve(): the nursery tree of a server.

Whatever cancels the scope it runs in ends everything below it::

    serve(handler, address, ...)               cancel this scope, and everything below is gone
    └─ lifespan, if there is one               entered before the first accept, left after the last connection
       └─ server nursery
          ├─ the end of a drain                cuts off what is late
          ├─ acceptors (one a listener)        listener.accept -> balancer.pick(peer) -> consumer
          └─ consumers × workers               each owns the nursery its connections' handler tasks live in

There is one acceptor, one consumer and one way from the one to the other; an architecture is how they are put together:

    reactor            a listener for each address; its acceptor's dispatcher has all consumers and the balancer
    socket_sharding    a listener for each address and consumer; its acceptor's dispatcher has this consumer alone

After the hand-off nothing stands between a handler and its connection in either.

*Three ends.*  A cancellation is immediate: everything below is cancelled, and connections are closed like by a cancelled
``aclose``.  A drain closes the listeners, sets an event, and leaves the rest to the handlers and to a task in the
server nursery that cuts off what is late (``_drain_limit``), so that it does not depend on the task that asked for it.  An
error ends the server like every nursery.  In each case this returns when nothing is left: handlers, descriptors, and what
was in flight on the ring.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio

from gain_trio._io_manager import current_manager
from gain_trio._transports import open_sockets

from ._checks import check_handler
from ._consumer import Handler
from ._listening import serve_listeners
from ._opened import OpenedListener
from ._privileges import identity_of, socket_options_of
from ._server import Server
from ._server_config import ServerConfig
from ._server_options import merged
from ._signals_and_metrics import serve_with_signals_and_metrics

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._server_options import ServerOptions


async def serve(
    handler: Handler,
    address: str | Sequence[str],
    *,
    config: ServerConfig | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Unpack[ServerOptions],
) -> None:
    """Serve ``handler`` on ``address`` until cancelled or drained.

    For every connection ``await handler(connection)`` runs in a task of its own.  When it returns, the connection is
    flushed and closed.  When it raises an :exc:`Exception`, the connection is closed, the error is logged to the logger
    ``gain_trio`` with its traceback and counted, and the server goes on.  A fault of the peer gets one line at level info:
    :exc:`trio.BrokenResourceError` and :exc:`trio.TooSlowError` mean that it is gone or too slow,
    :exc:`IncompleteMessage` and :exc:`MessageTooLong` that it hung up in the middle of a message or sent one that is too
    long.  A group of one exception counts as that exception.  Each line names the peer.  When the handler is cancelled,
    its connection is closed like by a cancelled :meth:`Connection.aclose`: a handler that streams in pieces and must not
    look finished calls :meth:`Connection.abort` when it is interrupted.

    Started by ``server = await nursery.start(gain_trio.serve, handler, address)`` it returns a :class:`Server`, which has
    the addresses and the counters.  Cancelling the scope it runs in stops it at once: listeners, handlers and connections
    are gone when it has ended.  :meth:`Server.drain` lets connections finish; this returns normally then.

    Args:
      handler: an async function of one :class:`Connection`.
      address: ``tcp://host:port``, ``unix:///path`` or ``fd://systemd``, see :func:`open_listeners`; or several of them.
      config: a :class:`ServerConfig`, whose values hold but for those given here.
      options: the fields of :class:`ServerConfig`, each described there.  With several addresses an option holds for those
        that it is for.

    About ``proxy_protocol``: the addresses and networks of proxies that send a PROXY protocol header (version 1 or 2) in
    front of a client's bytes, ``("127.0.0.1", "10.0.0.0/8")`` for example.  From them it is required, and all other
    connections are refused; a peer on a Unix socket counts as 127.0.0.1 and ::1.  ``remote_address`` and
    ``local_address`` of the connection are the client's then, :attr:`Connection.proxy_header` has the rest.  True
    takes a header from every peer: a client that can reach the port itself can then claim any address.

    About ``ssl_context``: a server's context, ``ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)`` with
    ``load_cert_chain()``, or a function that makes it.  Handshakes are done in the connections' own tasks, before the
    handler is called; one that fails gets a line at level info and is counted, and its handler is not called.

    About a ``balancer`` of your own: an exception that it raises ends the server, and so does an answer that is not a
    consumer (:exc:`ValueError`).

    About ``lifespan``: a function without arguments that returns an async context manager, as one under
    :func:`contextlib.asynccontextmanager` does.  The server enters it when it listens and before it accepts a connection, so
    a client that comes meanwhile waits; it leaves it when the last connection has ended.  Handlers find the value behind
    its ``yield`` with :func:`lifespan_value`, and see the context variables that it has set.  It may hold a nursery of its
    own across the ``yield``: an error of a task in that ends the server.  What the lifespan raises propagates, and the
    server logs what it raises after its ``yield``.

    With ``processes`` each worker process has a lifespan of its own, which is unpickled there.  One that fails before its
    ``yield`` is a process that cannot begin to serve; one that fails after it is logged.  When the process was ending with
    its server, this raises :exc:`WorkerFailed` then.

    A cancellation reaches a lifespan before its ``yield`` as it reaches all code.  Afterwards it ends the handlers only, and
    the lifespan is left when they have ended, shielded, for 4 seconds; in a drain it has the rest of the drain's time, if
    that is longer, and a cancellation meanwhile leaves it 4 seconds.  Then it is cancelled, and this raises
    :exc:`trio.TooSlowError`.

    About ``processes``: each is started anew (it imports the handler's module; a program that has the handler in itself
    starts the server under ``if __name__ == "__main__":``) and has a Trio run of its own, on what the server's run is on.
    The handler and the options are pickled, so an ``ssl_context`` is a function at the top of a module.  A ``balancer``
    stays in the server's process, which accepts and passes the descriptors on (``architecture="reactor"``); it chooses among
    the consumers of the processes that serve and keep up.  With socket sharding the processes accept.

    One that dies is replaced; its connections are lost, and no others.  One that is sent a SIGTERM drains and is replaced.
    One whose event loop stands still gets no new connections after 2 seconds, and is killed and replaced after
    ``worker_timeout``.  When a process cannot begin to serve, this raises at first; once the server has been up it goes on
    with the other processes, logs why, and tries for ever, every 5 seconds at most.
    Log records of worker processes are logged by the server's.  When the server is cancelled, or killed, the processes end,
    within some seconds even if a handler holds one up.  ``max_connections`` holds for all of them together.  With socket
    sharding each has its share of it, and a successor has so too, beside the process that drains.

    About ``signals``: SIGTERM and SIGINT call :meth:`Server.drain` with ``graceful_timeout``, a second one cancels the
    server, and this returns normally either way; :attr:`Server.cut_off` says whether the drain had time enough.  What has
    not ended 7 seconds after the second one, or one second after a third, is a busy thread, most likely, which nothing can
    cancel: the log names it, and the process ends with status 1, without ``finally`` and ``atexit``.  A handler that holds
    the event loop up counts as one, and has 3 seconds after the third.  SIGHUP replaces the worker processes one by one:
    each successor serves before the old one drains, so no connection is refused.  Without ``processes`` it calls an
    ``ssl_context`` that is a function again, and the handshakes to come use what that returns; if it raises, the server logs
    why, and keeps the context that it has.

    About recycling: a process that has had ``max_connections_per_worker`` connections, has served for
    ``max_worker_lifetime`` or has more than ``max_worker_memory`` in memory is replaced as by SIGHUP: one at a time, and its
    successor serves before it drains.  The server looks a few times a second, so a process may go a little beyond.  If the
    successor cannot begin, the old process goes on, and the server tries again after 5 seconds.

    About ``user``: the server opens its sockets, and without ``processes`` makes its TLS context, and then becomes this user
    for ever, with the user's groups (setgroups(2), setresgid(2), setresuid(2)).  Worker processes start as this user: they
    have to be able to read the program and, with TLS, the certificate's key.  The file of a Unix socket is this user's
    unless ``owner`` or ``group`` says otherwise.  Certificates that SIGHUP loads again are read as this user.

    About ``sd_notify``: for systemd's ``Type=notify`` and ``notify-reload`` it reports ``READY=1`` and ``MAINPID`` when it
    is up, ``RELOADING=1`` and ``MONOTONIC_USEC`` when SIGHUP renews it and ``READY=1`` afterwards, ``STOPPING=1`` when it
    begins to drain or to end, ``STATUS`` with each of them, and with ``WatchdogSec=`` a ``WATCHDOG=1`` twice in that time:
    the service manager then kills a server whose event loop is held up.  The variables of the environment are removed, so
    that worker processes and the programs that they start cannot report.  Without ``NOTIFY_SOCKET`` it does nothing.

    About ``metrics``: the address of an HTTP endpoint for Prometheus, ``GET /metrics``.  It serves the server's statistics,
    and what the program has registered with prometheus_client, over all processes, and takes the extra
    ``gain-trio[metrics]``.  :attr:`Server.metrics_addresses` has the port if it was 0.

    About ``control``: the path of a Unix socket for ``gain-trio top``, and for other programs that speak its protocol, which
    docs/watching.md describes.  The file is the server's user's alone, and the server answers no other user but root.

    Raises:
      ValueError, TypeError: an option makes no sense (:class:`ServerConfig`), or is for none of the addresses, or an address
        is not valid, or ``handler`` is not an async function or takes other arguments; with ``processes``, something cannot
        be pickled; ``user`` is none of this system.
      PermissionError: this process cannot become ``user``.
      OSError, RuntimeError: see :func:`open_listeners`; RuntimeError also of ``signals`` outside of the main thread, and of
        ``sd_notify`` while another server of this process reports.
      WorkerFailed: worker processes cannot begin to serve, or with ``strict`` a handler has failed in one; or a process
        did not end in time with its server and had to be killed, was killed by another program when it was to end, or its
        lifespan has failed.
      trio.TooSlowError: leaving the ``lifespan`` took too long.
      ImportError: ``metrics`` without prometheus_client.
      KeyboardInterrupt: with ``signals``, SIGTERM or SIGINT came before the server was up.
    """
    current_manager("gain_trio.serve()")
    check_handler(handler)
    config = merged(config, **options)
    addresses = _as_list(address)
    if not addresses:
        raise ValueError("serve() needs an address, and the sequence that it was given is empty")
    core = _serve_here
    if config.processes is None:
        if config.cpu_affinity or config.priority is not None:
            raise ValueError(
                "cpu_affinity and priority are for worker processes, and there are none: give processes=, too"
            )
        if config.recycles:
            raise ValueError(
                "max_connections_per_worker, max_worker_lifetime and max_worker_memory are for worker processes, and there "
                "are none: give processes=, too"
            )
    else:
        from ._processes import serve_processes as core  # noqa: PLC0415 - who needs no multiprocessing is spared it
    await serve_with_signals_and_metrics(functools.partial(core, handler, addresses, config), config, task_status)


async def _serve_here(
    handler: Handler, addresses: Sequence[Any], config: ServerConfig, task_status: trio.TaskStatus[Server]
) -> None:
    """Serve in this process."""
    if isinstance(addresses[0], OpenedListener):
        listeners = [opened.listener for opened in addresses]
        await serve_listeners(handler, [[]], config, listeners=listeners, task_status=task_status)
        return
    shards = config.workers if config.architecture == "socket_sharding" else None
    identity = None if config.user is None else identity_of(config.user)
    options = socket_options_of(config, identity)
    groups = await open_sockets(addresses, options, shards=shards, by_cpu=config.cbpf)
    before_accepting = (lambda: None) if identity is None else identity.take
    await serve_listeners(handler, groups, config, before_accepting=before_accepting, task_status=task_status)


def _as_list(address: Any) -> list[Any]:
    """The addresses as a list; parsing refuses what is not an address."""
    return list(address) if isinstance(address, Sequence) and not isinstance(address, str) else [address]

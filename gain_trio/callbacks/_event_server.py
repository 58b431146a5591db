"""EventHandler and EventServer, the two halves of one contract: the callbacks, and the server that they are called by.

Each names the other in a signature that programs see, so they share a module.

    INACTIVE ──start──> STARTING ──listens──> RUNNING ──shutdown──> STOPPING
        ^                  │                     │                     │
        └──────────────────┴─────────────────────┴─────────────────────┘ the run, or the scope, has ended

A lock guards the state, because any thread may read it; no code waits while it holds the lock.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, final

import trio

from gain_trio._io_manager import run
from gain_trio._server import (
    HIGH_PRIORITY,
    SHUTDOWN_SECONDS,
    DatagramServer,
    DatagramServerStatistics,
    DrainLimit,
    OpenedEndpoint,
    Server,
    ServerStatistics,
    SignalTarget,
    check_timeout,
    no_workers_to_replace,
    obey_signals,
    received_signals,
    serve_datagrams,
    take_process_priority,
    ungrouped,
)
from gain_trio._server import (
    serve as serve_connections,
)
from gain_trio._transports import Marks, endpoint_text, shown

from ._callbacks import Callbacks
from ._datagram_driver import DatagramDriver
from ._event_config import Config, logging_as, merged, ring_options, serve_options
from ._event_errors import AlreadyRunning, InvalidState, UnsupportedProtocol
from ._stream_driver import StreamDriver

if TYPE_CHECKING:
    from ._conn import Conn

logger = logging.getLogger("gain_trio")

STREAMS = ("tcp", "unix", "fd")
DATAGRAMS = "udp"


class ServerState(enum.Enum):
    """The state of a server; see above."""

    INACTIVE = "not started"
    STARTING = "being started"
    RUNNING = "running"
    STOPPING = "being stopped"


def check_network(address: object) -> bool:
    """Whether the address is one of datagrams.

    Raises:
      UnsupportedProtocol: it is of a network that is not served.
    """
    if not isinstance(address, str):
        return isinstance(address, OpenedEndpoint)  # of several, each is looked at by serve()
    network, separator, _rest = address.partition("://")
    if separator and network in (*STREAMS, DATAGRAMS):
        return network == DATAGRAMS
    if network in ("tcp4", "tcp6", "udp4", "udp6"):
        cure = f"write {network[:3]}://, and an address of that family: 127.0.0.1 or 0.0.0.0, [::1] or [::]"
    else:
        cure = "it begins with tcp://, udp://, unix:// or fd://"
    raise UnsupportedProtocol(f"the address {address!r} cannot be served: {cure}")


Result: TypeAlias = "Awaitable[None] | None"
"""The result of a callback: None from a def, and an awaitable from an async def."""


class EventHandler:
    """The callbacks of a server.  Override those that you want; what is not overridden costs nothing.

    Each may be a ``def`` or an ``async def``.  The callbacks of one connection never run at the same time: the next begins
    when the last has ended, also when it waits.  Those of different connections interleave where an ``async def`` waits; a
    ``def`` that takes long holds up the whole server, but see ``Config.async_handler``.

    An exception that leaves a callback closes its connection (with a reset if something is unsent), is logged with its
    traceback, and is what ``on_close`` gets; the server goes on.  One that leaves ``on_start`` ends the server.
    """

    def on_start(self, server: EventServer) -> Result:
        """The server listens: ``server.addresses`` has where.

        Where connections are served by worker processes (``processes``, ``Config.cpu_affinity``) this is called in the
        server's process, and in none of them.  Their event handlers are copies, made by pickling before: what this one
        keeps in ``self`` is not there, and their callbacks cannot shut the server down.
        """

    def on_accept(self, conn: Conn) -> Result:
        """There is a new connection.  Not called for datagrams.

        Nothing has arrived yet that could be read, but it can be written, closed, and its socket's properties set.
        """

    def on_read(self, conn: Conn, n: int) -> Result:
        """``n`` bytes have arrived; ``conn.next(n)`` takes them.

        On a connection, bytes that the callback does not read stay queued, and the next call comes when more have arrived,
        with the number of the new ones.  That is 64 KiB at most, and about as many as this callback works off in a
        millisecond, so that other connections have their turn between two calls.  When as many are unread as the connection
        holds (``Marks.receive_high``), nothing more is received until some are read, and a warning is logged.  If the peer
        resets the connection meanwhile, it is over, as ever; but the end of the stream comes behind the bytes before it, and
        is not noticed until those are read.  So set ``idle_timeout`` where a peer could send a message larger than the mark,
        which the callback never reads, and go.

        On a datagram, ``n`` is all of it, which may be 0 bytes.  A write is one datagram to its sender.
        """

    def on_write(self, conn: Conn, n: int) -> Result:
        """The kernel has accepted ``n`` bytes of those that were written.

        Called once for bytes that the kernel accepts together: for all that a callback has written, as a rule, and several
        times where the kernel accepts them in parts.  The numbers add up to all that was written, unless the connection
        breaks.
        """

    def on_close(self, conn: Conn, err: BaseException | None) -> Result:
        """The connection is over.  Called once for each that was accepted.  Not called for datagrams.

        Args:
          conn: it is closed, and has its addresses and its context still.
          err: None when the peer or this program has ended it in good order; the :exc:`OSError` that it broke with
            (``ConnectionResetError`` after a reset, ``TimeoutError`` after ``idle_timeout``); :exc:`SlowReader`;
            :exc:`trio.TooSlowError` after a deadline; :exc:`ConnectionAbortedError` when the server was stopped with bytes
            unsent; otherwise what left a callback.

        When the server is being stopped, an ``async def`` has 5 seconds, and is cancelled then.
        """


def callbacks_of(event_handler: EventHandler) -> Callbacks:
    """The callbacks that a handler has at the moment.

    Raises:
      TypeError: see :meth:`Callbacks.of`.
    """
    return Callbacks.of(event_handler, EventHandler)


@final
class EventServer:
    """A server of callbacks.  It can be started, and after its end started again; one address, or set of them, at a time.

    All but :meth:`start` and :meth:`start_as_main_process` can be called from any thread, and from callbacks.

    With ``processes``, callbacks run to their end in these when the server is shut down, and when a process is replaced:
    bytes that have arrived go to ``on_read``, and then each connection is closed as by :meth:`Conn.close`.

    Args:
      event_handler: an :class:`EventHandler`.
      config: a :class:`Config`, whose values hold but for those in ``options``.
      options: fields of :class:`Config`; everything else is passed to :func:`gain_trio.serve` (``ssl_context``,
        ``idle_timeout``, ``max_connections``, ``processes``, ...), or for ``udp://`` addresses to
        :func:`gain_trio.open_datagram_endpoint`.  ``graceful_timeout`` is for both.

    Raises:
      TypeError, ValueError: the event handler is none, or an option makes no sense.
    """

    def __init__(self, event_handler: EventHandler, config: Config | None = None, **options: Any) -> None:
        self._handler = event_handler
        self._callbacks = callbacks_of(event_handler)
        self._config, self._others = merged(config, options)
        self._patience: float = check_timeout("graceful_timeout", options.get("graceful_timeout", SHUTDOWN_SECONDS))
        self._lock = threading.Lock()
        self._state = ServerState.INACTIVE
        self._down = threading.Event()
        self._down.set()
        self._thread: int | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None  # all tasks of the server are in
        self._driver: StreamDriver | DatagramDriver | None = None
        self._server: Server | DatagramServer | None = None
        self._drain_limit = DrainLimit()  # of a server in this process; below it is the one of serve()
        self._cut_off = 0

    def __repr__(self) -> str:
        where = ", ".join(map(endpoint_text, self.addresses))
        on = f" on {where}" if where else ""
        return f"<gain_trio.callbacks.EventServer of {type(self._handler).__qualname__}{on}, {self._state.value}>"

    # --- what it is ---

    @property
    def is_running(self) -> bool:
        """Whether it listens: true in ``on_start``, and until it is shut down."""
        return self._state is ServerState.RUNNING

    @property
    def active_connections(self) -> int:
        """How many connections are open.  Datagrams make none."""
        server = self._server  # in another thread it may end between two looks
        return server.active_connections if isinstance(server, Server) else 0

    @property
    def cut_off(self) -> int:
        """How many connections did not end in time when it was last shut down, and were cut off; of ``udp://``, callbacks.

        It is 0 while it runs.
        """
        return self._cut_off

    @property
    def addresses(self) -> tuple[Any, ...]:
        """Where it listens, as from :meth:`socket.socket.getsockname`; nowhere when it does not run."""
        server = self._server
        return server.addresses if server is not None else ()

    def statistics(self) -> ServerStatistics | DatagramServerStatistics:
        """A snapshot of the counters.

        Raises:
          InvalidState: it does not run.
        """
        server = self._server
        if server is None:
            raise InvalidState(f"the server is {self._state.value}, and counts when it runs")
        return server.statistics()

    # --- as a program ---

    def start(self, address: str) -> None:
        """Serve on ``address`` in a run of its own, and return when it was shut down.

        Args:
          address: ``tcp://host:port``, ``unix:///path``, ``fd://systemd``, or ``udp://host:port``.

        Raises:
          AlreadyRunning: it was started, and has not ended.
          UnsupportedProtocol: the address is of another network.
          ValueError, OSError: see :func:`gain_trio.serve`.
          RuntimeError: this thread is in a Trio run: use :func:`serve` there.
          what leaves ``on_start``.
        """
        self._start(address, signals=False)

    def start_as_main_process(self, address: str) -> None:
        """:meth:`start`, and shut down on SIGTERM and SIGINT; then return, as after any other shutdown.

        One that comes while it is shut down cancels what is left.  What has not ended 7 seconds after that, or one second
        after a further one, such as an ``on_read`` in a thread, is named in the log, and the process ends with status 1.

        Raises:
          RuntimeError: this is not the main thread, and what :meth:`start` raises.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals go to the main thread: call start_as_main_process() there, or start() here")
        self._start(address, signals=True)

    def _start(self, address: str, *, signals: bool) -> None:
        self._begin()
        try:
            with ungrouped():
                run(self._main, address, signals, ring=ring_options(self._config))
        finally:
            self._end()

    async def _main(self, address: str, signals: bool) -> None:
        if not signals:
            await self._serve(address)
            return
        with received_signals(with_replacement=False) as received:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey_signals, received, self._signalled(), nursery, name="gain_trio signals")
                await self._serve(address)
                nursery.cancel_scope.cancel()  # there is nothing left that a signal could end

    def _signalled(self) -> SignalTarget:
        """This server as signals see it."""
        return _ShutDownBySignals(self)

    def shutdown(self) -> None:
        """:meth:`async_shutdown`, and return when that is done.  Does nothing for a server that does not run.

        Raises:
          InvalidState: called from a callback, from a thread that a callback waits for (:func:`trio.to_thread.run_sync`), or
            anywhere else in the run's own thread: it would wait for itself.  :meth:`async_shutdown` does not wait.
        """
        if self._would_wait_for_itself():
            raise InvalidState(
                "shutdown() waits for the server, and here the server would wait for it: async_shutdown()"
            )
        self.async_shutdown()
        self._down.wait()

    def async_shutdown(self) -> None:
        """Begin to close all connections and the server, and return at once.  Does nothing for a server that does not run.

        Written bytes are sent and callbacks run to their end, for which there are ``graceful_timeout`` seconds (5 if that
        is not given); then they are cancelled: :attr:`cut_off` has their number, and so has a line of the log.
        """
        with self._lock:
            if self._state is ServerState.INACTIVE:
                return
            self._state = ServerState.STOPPING
            token = self._token
        if token is not None:
            # A run that is over has ended meanwhile, which is what was asked for.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._stop)

    def _stop(self) -> None:
        """In the run: have everything end, within a time."""
        scope, driver = self._scope, self._driver
        if scope is None:
            return
        if driver is None:
            scope.cancel()
        elif isinstance(self._server, Server) and self._server._is_of_processes:
            # Callbacks run there, and are given their time there.  It returns when they have ended, and the processes.
            self._server._begin_to_drain(self._patience)
        else:
            self._drain_limit.shorten(self._patience)
            if isinstance(self._server, Server):
                self._server.stop_accepting()
            driver.activity.stop(scope.cancel)

    def _would_wait_for_itself(self) -> bool:
        if self._driver is not None and self._driver.is_in_callback_thread():
            return True
        if self._state is ServerState.INACTIVE:
            return False
        if threading.get_ident() == self._thread:
            return True
        try:
            return trio.from_thread.run_sync(self._waits_for_this_task)
        except RuntimeError:  # no task waits for this thread
            return False

    def _waits_for_this_task(self) -> bool:
        """In whichever run: whether the task is a callback's, or one that a callback waits for in turn."""
        nursery, task = self._nursery, trio.lowlevel.current_task()
        if nursery is None or nursery not in nursery.parent_task.child_nurseries:
            return False
        nurseries = nursery.parent_task.child_nurseries
        inside = nurseries[nurseries.index(nursery) :]  # those of an on_start; around it are the program's own
        is_inside = task is nursery.parent_task
        while not is_inside and task.parent_nursery is not None:
            is_inside = task.parent_nursery in inside
            task = task.parent_nursery.parent_task
        return is_inside

    # --- in a run ---

    def _begin(self) -> None:
        with self._lock:
            if self._state is not ServerState.INACTIVE:
                raise AlreadyRunning(f"the server is {self._state.value}; one server serves once at a time")
            self._state = ServerState.STARTING
            self._down.clear()
            self._thread = threading.get_ident()
            self._drain_limit = DrainLimit()
            self._cut_off = 0

    def _end(self) -> None:
        with self._lock:
            below = self._server.cut_off if isinstance(self._server, Server) else 0
            self._cut_off = self._drain_limit.cut_off + below
            self._state = ServerState.INACTIVE
            self._token = self._scope = self._nursery = self._server = self._driver = None
            self._thread = None
            self._down.set()

    async def _serve(
        self, address: str, *, task_status: trio.TaskStatus[EventServer] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until shut down or cancelled.

        Shut down before ``on_start`` has returned it has started, too, as far as the caller is concerned, and is over.
        """
        is_datagrams = check_network(address)
        has_started = False
        with logging_as(self._config), trio.CancelScope() as scope:
            with self._lock:
                self._token, self._scope = trio.lowlevel.current_trio_token(), scope
                is_stopping = self._state is ServerState.STOPPING
            if is_stopping:
                scope.cancel()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                what = "callbacks" if is_datagrams else "connections"
                enforce = functools.partial(self._drain_limit.enforce, self, self._in_progress, scope.cancel, what=what)
                nursery.start_soon(enforce, name="gain_trio end of shutdown")
                make = self._datagram_server if is_datagrams else self._stream_server
                self._server = await nursery.start(_serve_until_drained, make(), address, scope)
                with self._lock:
                    if self._state is ServerState.STARTING:
                        self._state = ServerState.RUNNING
                await self._callbacks.on_start(self)
                task_status.started(self)
                has_started = True
        if not has_started:
            task_status.started(self)
        failure = self._server._end_failure() if isinstance(self._server, Server) else None
        if failure is not None:  # and it was cancelled when it was to end already
            raise failure

    def _in_progress(self) -> int:
        return self._driver.activity.running if self._driver is not None else 0

    def _stream_server(self) -> Any:
        options = serve_options(self._config, self._others)
        if self._config.process_priority and "priority" not in options:  # there are no other processes to give it to
            take_process_priority(HIGH_PRIORITY)
        self._driver = StreamDriver(callbacks_of(self._handler), self._config, options.get("marks") or Marks())
        return functools.partial(serve_connections, self._driver, **options)

    def _datagram_server(self) -> Any:
        driver = self._driver = DatagramDriver(callbacks_of(self._handler), self._config)
        config = self._config
        if config.cbpf and driver.shards is None:
            raise ValueError("cbpf=True chooses among the sockets of architecture='socket_sharding'")
        if config.cpu_affinity:
            logger.warning("cpu_affinity=True has no effect on a server of datagrams, which is in one process")
        if config.process_priority:
            take_process_priority(HIGH_PRIORITY)
        # Which is for the end of this server, and none of theirs.
        others = {name: value for name, value in self._others.items() if name != "graceful_timeout"}
        return functools.partial(
            serve_datagrams,
            driver,
            workers=driver.at_once,
            shards=driver.shards,
            cbpf=config.cbpf,
            receive_buffer=config.socket_recv_buffer_size or None,
            send_buffer=config.socket_send_buffer_size or None,
            **others,
        )

    async def _serve_in_run(self, address: str, task_status: trio.TaskStatus[EventServer]) -> None:
        if ring_options(self._config) is not None:
            raise ValueError(
                "max_sq_entries and max_cq_events are of the ring of a run, and this run has its own: give "
                "gain_trio.run(..., ring=gain_trio.RingOptions(...)) instead"
            )
        self._begin()
        try:
            with ungrouped():
                await self._serve(address, task_status=task_status)
        finally:
            self._end()


@final
class _ShutDownBySignals:
    """What signals do to a server of callbacks."""

    def __init__(self, server: EventServer) -> None:
        self._server = server

    def begin_to_end(self, _name: str) -> bool:
        """Shut the server down; False if it is being shut down."""
        if self._server._state is ServerState.STOPPING:
            return False
        self._server.async_shutdown()
        self._server._stop()
        return True

    def cancel(self, _name: str) -> None:
        """Cancel the callbacks, too."""
        self._server._stop()  # if async_shutdown() has not yet had it called: what is killed now is to count
        if self._server._scope is not None:
            self._server._scope.cancel()

    async def renew(self, name: str) -> None:
        """Replace the worker processes, or make the TLS context again, if the server serves."""
        if not self._server.is_running:
            logger.info("%s is ignored: %s does not serve any more", shown(name), shown(self._server))
        elif isinstance(self._server._server, Server):
            await self._server._server._renew()
        else:
            no_workers_to_replace(name, self._server)


async def _serve_until_drained(
    serve: Callable[..., Awaitable[None]], address: str, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Any]
) -> None:
    """Serve, and when that has ended by itself, end what else is in the scope: an ``on_start`` that waits."""
    await serve(address, task_status=task_status)
    scope.cancel()

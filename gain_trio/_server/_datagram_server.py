"""serve_datagrams(): a server without connections.

    serve_datagrams(handler, address)       cancel this scope, and everything below is gone
    └─ server nursery
       └─ consumers × workers (× shards)    each receives a datagram, awaits the handler, and begins again

With shards each endpoint has consumers of its own, and the kernel gives a peer always the same one: so the order is kept for
each peer, and a peer whose datagrams take long holds up those of its shard alone.

The endpoint's queue stands between the network and the consumers.  It is bounded, and what does not fit is dropped and
counted: UDP has no means to slow a sender down.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, final

import attrs
import trio

from gain_trio._io_manager import current_ring_statistics
from gain_trio._transports import (
    DatagramEndpoint,
    DatagramStatistics,
    SocketOptions,
    UdpAddress,
    endpoint_text,
    errnos,
    open_datagram_endpoint,
    parse_address,
    shown,
    steer_by_cpu,
)

from ._checks import check_datagram_handler
from ._control_socket import ControlSocket
from ._failures import consists_of, first_of, only_one_of, parted
from ._handler_tasks import HandlerTasks, slow_handlers
from ._opened import OpenedEndpoint
from ._process_usage import cpu_seconds, resident_memory
from ._server_config import ServerConfig
from ._server_lifespan import Lifespan, check_lifespan, run_within
from ._snapshot import ProcessSnapshot, ServerSnapshot, WorkSnapshot
from ._statistics import DatagramServerStatistics

DatagramHandler = Callable[[bytes, Any, DatagramEndpoint], Awaitable[object]]
"""What serves one datagram: an async function of its data, where it came from, and the endpoint to answer with."""

UNREACHABLE_ERRNOS = errnos("ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EHOSTDOWN", "ECONNREFUSED", "ENOBUFS")
"""Errors caused by the network, or by the sender that chose the source address."""

UNIX_UNREACHABLE_ERRNOS = errnos(
    "ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "ECONNREFUSED", "EPROTOTYPE", "EACCES", "EPERM", "EDESTADDRREQ"
)
"""The same among Unix sockets: the sender is gone, or has a name that cannot be sent to, or none."""

logger = logging.getLogger("gain_trio")


@final
class DatagramServer:
    """A datagram server that runs.

    ``nursery.start(gain_trio.serve_datagrams, ...)`` returns it; cancelling that nursery stops it.
    """

    def __init__(
        self,
        handler: DatagramHandler,
        endpoints: Sequence[DatagramEndpoint],
        *,
        strict: bool,
        tasks: HandlerTasks | None = None,
    ) -> None:
        self.endpoints: tuple[DatagramEndpoint, ...] = tuple(endpoints)
        """Where it receives: one, or as many as there are shards.  A handler gets the one that its datagram came by."""
        self._handler = handler
        self._strict = strict
        self._tasks = tasks  # of a server that can be looked at
        self._name = getattr(handler, "__qualname__", None) or repr(handler)
        self._begun = self._handled = self._handler_errors = self._unreachable = 0

    def __repr__(self) -> str:
        return f"<gain_trio.DatagramServer on {endpoint_text(self.endpoint.local_address)}>"

    @property
    def endpoint(self) -> DatagramEndpoint:
        """The first of them."""
        return self.endpoints[0]

    @property
    def address(self) -> Any:
        """Where it receives, as from :meth:`socket.socket.getsockname`."""
        return self.endpoint.local_address

    @property
    def addresses(self) -> tuple[Any, ...]:
        """The same in a tuple, as a :class:`Server` has it."""
        return (self.endpoint.local_address,)

    def statistics(self) -> DatagramServerStatistics:
        """A snapshot of the counters."""
        handled = self._handled  # before the other: in another thread either may grow between two looks
        return DatagramServerStatistics(
            handled=handled,
            active=self._begun - handled,
            handler_errors=self._handler_errors,
            unreachable=self._unreachable,
            datagrams=_total([endpoint.statistics() for endpoint in self.endpoints]),
        )

    async def _snapshot(self) -> ServerSnapshot:
        """What it looks like now, for those who look at it through its control socket."""
        slow, examined = slow_handlers(self._tasks)
        rings = current_ring_statistics()()
        work = WorkSnapshot(shown(self._name), None, self.statistics(), rings, slow, examined)
        pid = os.getpid()
        process = ProcessSnapshot(pid, "serving", None, work, cpu_seconds(pid), resident_memory(pid))
        return ServerSnapshot("serving", self.addresses, (process,), None, work.datagrams, rings)

    async def _run(
        self, workers: int, control: ControlSocket | None, task_status: trio.TaskStatus[DatagramServer]
    ) -> None:
        """Serve all endpoints, until cancelled."""
        async with trio.open_nursery() as nursery:
            if control is not None:
                nursery.start_soon(control.run, self, name="gain_trio control")
            for number, endpoint in enumerate(self.endpoints):
                for worker in range(number * workers, (number + 1) * workers):
                    nursery.start_soon(self._consume, endpoint, name=f"gain_trio datagram consumer {worker}")
            task_status.started(self)

    async def _consume(self, endpoint: DatagramEndpoint) -> None:
        """Serve one datagram after the other, until cancelled."""
        receive, handler, tasks = endpoint.receive, self._handler, self._tasks
        while True:
            data, address = await receive()
            self._begun += 1
            if tasks is not None:
                tasks.began_datagram(address, self._begun)
            try:
                await handler(data, address, endpoint)
            except BaseException as error:
                failure, rest = parted(error)
                if failure is not None:
                    self._failed(address, failure)
                if self._strict or failure is None:
                    raise
                if rest is not None:
                    raise rest from None
            finally:
                self._handled += 1
                if tasks is not None:
                    tasks.ended(trio.lowlevel.current_task())

    def _failed(self, address: Any, error: BaseException) -> None:
        # Source addresses can be forged; a peer must not be able to fill the log with tracebacks that way.
        name, sender = self._name, "a sender without a name" if address is None else endpoint_text(address)
        if consists_of(error, functools.partial(_is_unreachable, address)):
            self._unreachable += 1
            logger.info("handler %s could not answer %s: %s", shown(name), shown(sender), shown(first_of(error)))
            return
        self._handler_errors += 1
        logger.error(
            "handler %s failed on a datagram from %s with %s",
            shown(name),
            shown(sender),
            shown(type(only_one_of(error)).__qualname__),
            exc_info=error,
        )


def _total(parts: Sequence[DatagramStatistics]) -> DatagramStatistics:
    """The sums; what one of them does not know is not known."""
    sums: dict[str, int | None] = {}
    for name in attrs.fields_dict(DatagramStatistics):
        values = [getattr(part, name) for part in parts]
        sums[name] = None if None in values else sum(values)
    return DatagramStatistics(**sums)  # type: ignore[arg-type]  # only dropped_by_kernel can be None


def _is_unreachable(address: Any, error: BaseException) -> bool:
    if not isinstance(error, OSError):
        return False
    if isinstance(address, tuple):
        no_port = error.errno == errno.EINVAL and address[1] == 0
        return no_port or error.errno in UNREACHABLE_ERRNOS
    # A file that the handler itself misses is its own affair: what send() raises names the address.
    return error.errno in UNIX_UNREACHABLE_ERRNOS and error.filename == address


async def serve_datagrams(
    handler: DatagramHandler,
    address: str,
    *,
    workers: int = 1,
    shards: int | None = None,
    cbpf: bool = False,
    strict: bool = False,
    lifespan: Lifespan | None = None,
    control: str | None = None,
    task_status: trio.TaskStatus[DatagramServer] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve ``handler`` on ``address`` until cancelled.

    For every datagram ``await handler(data, address, endpoint)`` runs, which answers with ``await endpoint.send(answer,
    address)``, or not.  By default one runs at a time, so datagrams are handled in the order of their arrival; with
    ``workers`` as many run at once, and overtake each other.  What arrives meanwhile waits in the endpoint's queue, and
    is dropped and counted when that is full.

    When a handler raises an :exc:`Exception`, it is logged to the logger ``gain_trio`` with its traceback and counted,
    and the server goes on; that an answer could not be sent, because the network does not lead to the source address,
    gets one line at level info.  A Unix sender without a name cannot be answered (``address`` is None), and one that does
    not read makes ``send`` wait: a time limit around it keeps such a sender from stopping the worker.

    Started by ``server = await nursery.start(gain_trio.serve_datagrams, handler, address)`` it returns a
    :class:`DatagramServer`, which knows the address and the counters.  Cancelling the scope it runs in stops it at once.

    Args:
      handler: an async function of the data, the source address and the endpoint.
      address: ``udp://host:port``, ``unix:///path`` or ``unix://@abstract-name``, see :func:`open_datagram_endpoint`.
      workers: how many handlers may run at once, in each shard.  They are run by as many tasks.
      shards: how many sockets share a UDP port (``SO_REUSEPORT``, socket(7)), each with a queue and workers of its own.  The
        kernel chooses by the source address, so a peer's datagrams go to the same one.  None: one socket, which has the
        port for itself.
      cbpf: of shards: the kernel chooses by the CPU that a datagram arrives on instead (``SO_ATTACH_REUSEPORT_CBPF``).
      strict: let a handler's exception end the server and propagate.
      lifespan: a function that returns an async context manager around all of it, see :func:`serve`.
      control: the path of a Unix socket for ``gain-trio top``, see :class:`ServerConfig`.
      options: see :func:`open_datagram_endpoint`.

    Raises:
      ValueError, OSError, RuntimeError: see :func:`open_datagram_endpoint`; an OSError also when the socket fails.  A
        ValueError also for shards of what is not UDP, or that are connected or join groups.
      TypeError: ``handler`` is not an async function, or takes other arguments; or there is no such option, or ``lifespan``
        returns something else.
      Everything that entering and leaving the lifespan raise.
    """
    check_datagram_handler(handler)
    if lifespan is not None:
        check_lifespan(lifespan)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    control = ServerConfig(control=control).control
    async with contextlib.AsyncExitStack() as stack:
        if shards is None:
            if cbpf:
                raise ValueError("cbpf=True chooses among shards: give shards=, too")
            endpoints = [await stack.enter_async_context(await _open(address, **options))]
        else:
            endpoints = await _open_shards(address, shards, stack, by_cpu=cbpf, **options)
        opened: ControlSocket | None = None
        if control is not None:
            opened = await ControlSocket.open(control, SocketOptions())
            stack.callback(opened.close)
        tasks = None if opened is None else HandlerTasks()
        server = DatagramServer(handler, endpoints, strict=strict, tasks=tasks)
        if lifespan is None:
            await server._run(workers, opened, task_status)
        else:
            await run_within(lifespan, functools.partial(server._run, workers, opened, task_status), lambda: -math.inf)


async def _open(address: Any, **options: Any) -> DatagramEndpoint:
    """The endpoint of an address, or of what stands in place of one."""
    return address.endpoint if isinstance(address, OpenedEndpoint) else await open_datagram_endpoint(address, **options)


async def _open_shards(
    address: str, count: int, stack: contextlib.AsyncExitStack, *, by_cpu: bool, **options: Any
) -> list[DatagramEndpoint]:
    """Endpoints that share the port, which is chosen once."""
    if count < 1:
        raise ValueError(f"shards must be at least 1, not {count}")
    parsed = parse_address(address, schemes=("udp", "unix"))
    if not isinstance(parsed, UdpAddress):
        raise ValueError(f"shards share a port, and {parsed} has none: leave shards= out")
    for name in ("remote_address", "multicast_groups"):
        if options.get(name):
            raise ValueError(f"{name} is not for shards: each of them would get the same: leave one of them out")
    options["reuse_port"] = True
    endpoints: list[DatagramEndpoint] = []
    for _ in range(count):
        endpoints.append(await stack.enter_async_context(await open_datagram_endpoint(address, **options)))
        host, port, *more = endpoints[0].local_address
        scope = f"%{more[1]}" if more and more[1] and "%" not in host else ""
        address = str(UdpAddress(host + scope, port))
    if by_cpu:
        steer_by_cpu(endpoints[0], count)
    return endpoints

"""A server with what its options add to it: signals that end it, sockets to look at it by, a service manager."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

import trio

from gain_trio._transports import shown

from ._control_socket import ControlSocket
from ._privileges import identity_of, socket_options_of
from ._server import Server
from ._server_config import ServerConfig
from ._service_manager import ServiceManager, service_manager
from ._signals import obey_signals, received_signals

if TYPE_CHECKING:
    from ._metrics import MetricsEndpoint

logger = logging.getLogger("gain_trio")


async def serve_with_signals_and_metrics(
    core: Callable[[trio.TaskStatus[Server]], Awaitable[None]],
    config: ServerConfig,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run ``core``, which serves, with the tasks for signals, metrics, control and the service manager, as far as wanted.

    Raises the exception of ``core`` unchanged, and:

    Raises:
      KeyboardInterrupt: SIGTERM or SIGINT came before the server was up.
      RuntimeError: ``signals`` outside of the main thread, or ``sd_notify`` of a second server.
      ImportError: ``metrics`` without the package that it needs.
      ValueError, OSError: its address, or that of the control socket, is not valid, or not available.
      WorkerFailed: the server had to kill worker processes at its end.
    """
    if not (config.signals or config.sd_notify) and (config.metrics, config.control) == (None, None):
        await core(task_status)
        return
    failure: Exception | None = None
    with contextlib.ExitStack() as stack:
        # First: its variables are to be gone from the environment before worker processes get that.
        manager = stack.enter_context(service_manager()) if config.sd_notify else None
        signals = stack.enter_context(received_signals()) if config.signals else None
        endpoint: MetricsEndpoint | None = None
        control: ControlSocket | None = None
        identity = None if config.user is None else identity_of(config.user)
        options = socket_options_of(ServerConfig(), identity)
        if config.metrics is not None:
            from ._metrics import MetricsEndpoint  # noqa: PLC0415 - a server without the endpoint is spared HTTP

            endpoint = await MetricsEndpoint.open(config.metrics, options)
            stack.callback(endpoint.close)
        if config.control is not None:
            control = await ControlSocket.open(config.control, options)
            stack.callback(control.close)
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            started = _StartedServer(
                nursery, scope, config, endpoint, control=control, manager=manager, task_status=task_status
            )
            if signals is not None:
                nursery.start_soon(obey_signals, signals, started, nursery, manager, name="gain_trio signals")
            with scope:
                try:
                    await core(started)
                except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would make a group of it
                    failure = error
            nursery.cancel_scope.cancel()
    if failure is None and started.server is not None:
        failure = started.server._end_failure()
    if failure is not None:
        raise failure
    if started.server is None:
        raise KeyboardInterrupt("a signal came before the server was up")


@final
class _StartedServer(trio.TaskStatus[Server]):
    """Gets the server when it has started, before its caller does, and passes signals on to it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        scope: trio.CancelScope,
        config: ServerConfig,
        endpoint: MetricsEndpoint | None,
        *,
        control: ControlSocket | None,
        manager: ServiceManager | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        self.nursery = nursery
        self.server: Server | None = None
        self._scope = scope
        self._graceful_timeout = config.graceful_timeout
        self._is_draining = False
        self._endpoint = endpoint
        self._control = control
        self._manager = manager
        self._task_status = task_status

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        self.server = value
        if self._endpoint is not None:
            value.metrics_addresses = self._endpoint.addresses
            self.nursery.start_soon(self._endpoint.run, value, name="gain_trio metrics")
        if self._control is not None:
            self.nursery.start_soon(self._control.run, value, name="gain_trio control")
        if self._manager is not None:
            name = "gain_trio service manager"
            self.nursery.start_soon(self._manager.attend, value._status, value.draining, name=name)
        self._task_status.started(value)

    # --- SignalTarget ---

    def begin_to_end(self, name: str) -> bool:
        """Let the server drain; False before the server is up, and when it drains already."""
        if self.server is None or self._is_draining:
            return False
        logger.info("%s: the server drains; another one cancels it", shown(name))
        self._is_draining = True
        # In this step and not by a task: another signal may have come, too, and what it kills is to count.
        self.server._begin_to_drain(self._graceful_timeout)
        return True

    def cancel(self, name: str) -> None:
        """Cancel the server, be it up or not."""
        logger.info("%s: the server is cancelled", shown(name))
        self._scope.cancel()

    async def renew(self, name: str) -> None:
        """Replace the worker processes, or make the TLS context again, of a server that is up."""
        if self.server is None or self._is_draining:
            when = "any more" if self._is_draining else "yet"
            logger.info("%s is ignored: the server is not up %s", shown(name), shown(when))
        else:
            await self.server._renew()
